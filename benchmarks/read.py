"""Reading activations into a store, against bare forward passes.

    python -m benchmarks.read                      to benchmarks/results/
    python -m benchmarks.read --quick --json quick.json

Uses the embedded family's base model on prompts of its own sets. *Bare*: a plain transformers forward pass of the
batch, without a cache and with logits at the last token only. *Read*: what a job does with the same batch:
`read_statements` at every block, then the runner's `Writer` writes the unit to a Zarr store while the next batch is
computed. A turn takes all batches and ends when the last unit is stored; creating the store is not timed. Turns
alternate.
"""

from __future__ import annotations

import gc
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cyclopts

from benchmarks.records import header, keep

app = cyclopts.App(help=__doc__, version_flags=[])


@dataclass(frozen=True)
class Case:
    """What is read."""

    name: str
    few_shot: int
    """Labelled statements before each statement."""
    tokens: str
    batch: int


CASES = (
    Case("few-shot prompts, statement tokens", 4, "statement", 16),
    Case("few-shot prompts, last token", 4, "last", 16),
    Case("bare statements, last token", 0, "last", 256),
)


@app.default
def main(
    *,
    quick: bool = False,
    json: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    rounds: int | None = None,
    batches: int = 12,
    threads: int = 2,
) -> None:
    """Measure, print, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given)."""
    import torch

    from posttrace.pipeline.spec import families
    from posttrace.tracers.models.loading import open_model

    torch.set_num_threads(threads)
    rounds = rounds or (3 if quick else 15)
    model = open_model(families()["embedded"]["base"], device=device, dtype=dtype)
    head = header(
        "read",
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=threads,
        quick=quick,
        rounds=rounds,
    )
    head["model"] = dict(layers=model.n_layers, hidden=model.hidden_size)
    records = [compare(model, case, batches=batches, rounds=rounds, device=device) for case in CASES]
    for row in records:
        print(
            f"{row['name']:<38}bare {row['seconds_bare'] * 1000:7.1f} ms a batch, "
            f"read and stored {row['seconds'] * 1000:7.1f} ms, {100 * row['throughput']:.0f} % of bare throughput "
            f"({100 * row['throughput_cpu']:.0f} % in CPU time)"
        )
    keep(json, f"read-{device.replace(':', '')}", quick, head, records)


def compare(model, case: Case, *, batches: int, rounds: int, device: str, prompts=None) -> dict:
    """Return the record of one case, with seconds per batch; `prompts` are batches of prompts of equal length."""
    import torch

    prompts = prompts or make_prompts(model, case, batches)
    module, seconds, cpu = model.nn._module, {"bare": [], "read": []}, {"bare": [], "read": []}
    ids = [torch.tensor([p.ids for p in some], device=model.device) for some in prompts]

    def bare(_folder):
        for one in ids:
            module(input_ids=one, use_cache=False, logits_to_keep=1)

    def read(store):
        return read_all(model, case, prompts, store)

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        size = 0
        for turn in range(-1, rounds):  # the first turn warms up
            for name, run in (("bare", bare), ("read", read))[:: 1 if turn % 2 else -1]:
                store = make_store(Path(folder) / f"{turn}", model, case, prompts) if name == "read" else None
                gc.collect()
                begin, begin_cpu = time.perf_counter(), time.process_time()
                run(store)
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                if turn >= 0:
                    seconds[name].append((time.perf_counter() - begin) / batches)
                    cpu[name].append((time.process_time() - begin_cpu) / batches)
                if store is not None:
                    size = sum(file.stat().st_size for file in Path(store.url).rglob("*") if file.is_file())
    return dict(
        name=case.name,
        method="read",
        device=device,
        cells=0,
        batch=case.batch,
        batches=batches,
        prompt_tokens=ids[0].shape[1],
        bytes_stored=size,
        seconds=statistics.median(seconds["read"]),
        seconds_bare=statistics.median(seconds["bare"]),
        seconds_each=seconds["read"],
        seconds_bare_each=seconds["bare"],
        throughput=_ratio(seconds),
        throughput_each=[b / r for b, r in zip(seconds["bare"], seconds["read"], strict=True)],
        throughput_cpu=_ratio(cpu),
        max_abs_diff=largest_difference(model, prompts[0]),
        ratio_to_paper_loop=None,
        ratio_to_floor=None,
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _ratio(seconds: dict) -> float:
    return statistics.median(b / r for b, r in zip(seconds["bare"], seconds["read"], strict=True))


def make_prompts(model, case: Case, batches: int) -> list[list]:
    """Return batches of prompts of one length, so that a plain forward pass needs no padding."""
    import random
    from collections import defaultdict

    from posttrace.pipeline.spec import StatementSet
    from posttrace.pipeline.statements import read_set
    from posttrace.tracers.prompts import encode

    statements = [
        s for name in ("cities", "animal_class") for s in read_set(StatementSet.model_validate(name))
    ]
    rng, by_length = random.Random(0), defaultdict(list)
    while max(map(len, by_length.values()), default=0) < case.batch * batches:
        *shots, last = rng.sample(statements, case.few_shot + 1)
        prefix = "".join(f"{s.text} This statement is: {'TRUE' if s.label else 'FALSE'}\n" for s in shots)
        prompt = encode(model.tokenizer, prefix, last.text + (" This statement is:" if shots else ""))
        by_length[len(prompt.ids), len(prompt.statement)].append(prompt)
    some = max(by_length.values(), key=len)
    return [some[i * case.batch : (i + 1) * case.batch] for i in range(batches)]


def make_store(url: Path, model, case: Case, prompts):
    """Create a store for all batches, one unit each."""
    from posttrace.stores import Array, Group, Store, Unit

    width = len(prompts[0][0].statement) if case.tokens == "statement" else 1
    activation = Array(
        "activation",
        ("prompt", "layer", "token", "hidden"),
        str(model.dtype).removeprefix("torch."),
        "activation, model units",
        "resid_post",
        {"prompt": case.batch},
        "activation",
    )
    sizes = dict(
        prompt=case.batch * len(prompts), layer=model.n_layers, token=width, hidden=model.hidden_size
    )
    group = Group("read/all", sizes, (activation,))
    units = [
        Unit(
            f"read/all/{i:04d}",
            "read/all",
            {"prompt": (i * case.batch, (i + 1) * case.batch)},
            ("activation",),
        )
        for i in range(len(prompts))
    ]
    return Store.create(str(url), [group], units, {"study": "benchmark"}, "0123abcd", {})


def read_all(model, case: Case, prompts, store) -> None:
    """Read every batch and write it, as `pipeline.run` does."""
    from posttrace.pipeline.tensors import as_stored
    from posttrace.pipeline.writer import Writer
    from posttrace.tracers.engines.activations import read_statements

    options = dict(site="resid_post", layers=range(model.n_layers), answers=(1, 2), tokens=case.tokens)
    with Writer(store) as writer:
        for unit, some in zip(store.units.values(), prompts, strict=True):
            reading = model.run(read_statements, some, **options)
            writer.write(unit, {"activation": as_stored(reading.values)}, {})


def largest_difference(model, prompts) -> float:
    """Return the largest difference from hooks on the plain model, at the last token of one batch."""
    import torch

    from posttrace.tracers.engines.activations import read_statements

    kept = []
    hooks = [
        block.register_forward_hook(lambda m, i, output: kept.append(output[:, -1].cpu()))
        for block in model.nn._module.model.layers
    ]
    with torch.no_grad():
        model.nn._module(input_ids=torch.tensor([p.ids for p in prompts], device=model.device))
    for hook in hooks:
        hook.remove()
    options = dict(site="resid_post", layers=range(model.n_layers), answers=(1, 2), tokens="last")
    found = read_statements(model, prompts, **options).values[:, :, 0]
    return float((found - torch.stack(kept, dim=1)).abs().max())


if __name__ == "__main__":
    app()
