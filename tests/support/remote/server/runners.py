"""Where runners come from: `python -I -m loopback_server.runners MODEL_KEY FOLDER AUTOCAST META`.

Standard input has the path of a socket a line, in FOLDER. NDIF starts a new Python for every runner; here each is
forked from this process, which has imported everything and built its model without weights: the same code in the same
state, some six seconds of a core earlier.
"""

import os
import shutil
import signal
import sys


def main(key: str, folder: str, autocast: str, meta: str) -> None:
    from ndif.services.ray.sandbox import nns, runner

    if autocast == "1":
        as_on_cuda()
    if meta == "1":
        _build_tokenizers()
    try:
        nns.load_meta_model(key)
    except Exception as error:  # as the package's Runner does: then its modules resolve to None
        print(f"runner: no meta model for {key!r} ({error!r})", file=sys.stderr, flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            runner.die_with_parent()
            _serve_one(runner, line.strip())
    shutil.rmtree(folder)


def _serve_one(runner, path: str) -> None:
    """One request, then the end: NDIF stops a runner after it."""
    served = runner.Runner(path)
    handle = served.handle

    def once(channels):
        try:
            handle(channels)
        finally:
            for channel in channels:
                channel.close()
            os._exit(0)

    served.handle = once
    served.serve()


def as_on_cuda() -> None:
    """Let the autocast region around a request, which NDIF opens on a GPU only, be one of the CPU."""
    import torch
    from ndif.services.ray.deployments.modeling import nns

    def request_dtype(dtype):
        half = dtype in (torch.float16, torch.bfloat16)
        return torch.autocast("cpu", dtype=dtype if half else None, enabled=half, cache_enabled=False)

    nns.request_dtype = request_dtype
    from ndif.services.ray.sandbox import driver

    driver.request_dtype = request_dtype


def _build_tokenizers() -> None:
    """Let the model without weights be built: from transformers 5.23 on nnsight 0.8.1 names no tokenizer for it."""
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    named = TransformersModel._preprocessor_sources

    def with_tokenizer(self):
        return {**named(self), "tokenizer": AutoTokenizer.from_pretrained(self.repo_id)}

    TransformersModel._preprocessor_sources = with_tokenizer


if __name__ == "__main__":
    main(*sys.argv[1:])
