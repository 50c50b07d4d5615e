"""The cost of a tracing context by itself: a forward pass with nothing declared, against the bare model.

    python -m benchmarks.overhead                      to benchmarks/results/
    python -m benchmarks.overhead --quick --json quick.json

Both return the logits at the last token; turns alternate, and the ratio is the median over rounds.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from pathlib import Path

import cyclopts

from benchmarks.records import header, keep
from benchmarks.shapes import SHAPES, Shape, make_task, random_module, tokenizer

app = cyclopts.App(help=__doc__, version_flags=[])


@app.default
def main(
    *,
    quick: bool = False,
    json: Path | None = None,
    device: str = "cpu",
    model: str = "small",
    batch: int = 16,
    rounds: int | None = None,
    threads: int = 2,
) -> None:
    """Measure, print, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given)."""
    shape, rounds = SHAPES[model].but(pairs=batch), rounds or (5 if quick else 41)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    options = dict(device=device, dtype=dtype, threads=threads)
    head = header("overhead", shape=shape, quick=quick, rounds=rounds, **options)
    records = compare(shape, rounds=rounds, **options)
    for row in records:
        print(
            f"{row['name']:<34}{row['seconds'] * 1000:9.2f} ms {row['ratio_to_bare']:6.3f} of the bare model"
        )
    keep(json, f"overhead-{device.replace(':', '')}-{model}", quick, head, records)


def compare(shape: Shape, *, rounds: int, device: str, dtype: str, threads: int, module=None) -> list[dict]:
    """Return a record for the bare model and one for the tracing context, with seconds per forward pass.

    Parameters
    ----------
    module
        A loaded model of that shape; a random one by default.
    """
    import torch

    from benchmarks.floor import synchronize
    from posttrace.tracers.models.loading import wrap

    torch.set_num_threads(threads)
    module = module or random_module(shape, device=device, dtype=dtype)
    model = wrap(module, tokenizer(shape.vocab), name="random", check=False)
    ids = torch.tensor(make_task(shape).corrupt, device=device)

    def bare():
        return module(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    def traced():
        return _traced(model.nn, ids)

    seconds: dict = {bare: [], traced: []}
    with torch.no_grad():
        difference = float((bare() - traced()).abs().max())
        for turn in range(rounds):
            for run in (bare, traced) if turn % 2 else (traced, bare):
                gc.collect()
                synchronize(device)
                begin = time.perf_counter()
                run()
                synchronize(device)
                seconds[run].append(time.perf_counter() - begin)
    ratio = statistics.median(t / b for t, b in zip(seconds[traced], seconds[bare], strict=True))
    common = dict(
        device=device,
        cells=0,
        batch=len(ids),
        max_abs_diff=difference,
        ratio_to_paper_loop=None,
        ratio_to_floor=None,
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    return [
        dict(name=name, method=name, seconds=statistics.median(each), ratio_to_bare=r, seconds_each=each)
        | common
        for name, each, r in [
            ("bare model", seconds[bare], 1.0),
            ("tracing context, nothing declared", seconds[traced], ratio),
        ]
    ]


def _traced(nn, ids):
    with nn.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
        logits = nn.output.logits.save()
    return logits


if __name__ == "__main__":
    app()
