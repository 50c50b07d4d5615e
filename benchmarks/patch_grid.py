"""The exact patch grid: every method side by side, on the same random Llama and the same pairs.

    python -m benchmarks.patch_grid                                  all methods, to benchmarks/results/
    python -m benchmarks.patch_grid --quick --json quick.json        fewer rounds, under five minutes on two cores
    python -m benchmarks.patch_grid --growth                         how the cost grows
    OMP_WAIT_POLICY=ACTIVE python -m benchmarks.patch_grid           waiting threads keep their core (idle machines)
    python -m benchmarks.patch_grid --model hidden-2048              wide blocks; slow methods on some cells
    python -m benchmarks.patch_grid --device cuda --model llama-3.1-8b-shape
                                                                     random weights of the real shape, in bfloat16

Cells are (layer, statement token) at `resid_post`, within one model: activations of a clean run are patched into a
corrupt run. Seconds are for one pair's whole grid; slow methods are timed on fewer pairs, as recorded. Reading the
clean run's activations is never timed. Tools that are not installed are recorded as unavailable, with the reason.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import cyclopts

from benchmarks.growth import grow
from benchmarks.methods import METHODS, Load
from benchmarks.peers import ROOT
from benchmarks.records import Reference, header, record, write
from benchmarks.rounds import Entry, Unavailable, Worker, measure
from benchmarks.shapes import SHAPES, Shape, Task, make_task, save_random

RESULTS = ROOT / "benchmarks" / "results"
PAIRS_TIMED = {"TransformerLens 4, generic_activation_patch": 4}
"""Pairs that a slow method is timed on, if more than one."""
SAMPLED = ("paper loop", "raw hooks", "posttrace", "posttrace, cells checked")
"""Methods that run where slow ones are timed on some cells, unless others are named."""

app = cyclopts.App(help=__doc__, version_flags=[])


@app.default
def main(
    *,
    quick: bool = False,
    json: Path | None = None,
    device: str = "cpu",
    model: str = "small",
    growth: bool = False,
    sample: bool = False,
    rounds: int | None = None,
    threads: int = 2,
    methods: tuple[str, ...] | None = None,
) -> None:
    """Measure, print a table, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given).

    Parameters
    ----------
    sample
        For models too large to write to disk and to patch cell by cell: each process makes its weights on the device,
        and slow methods are timed on some cells. Implied by a hidden size above 1024.
    """
    shape = SHAPES[model]
    sample = sample or shape.hidden > 1024
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    rounds = rounds or (3 if quick or sample else 5 if growth else 9)
    if json is None and not quick:
        kind = "growth" if growth else "patch_grid"
        waiting = "" if os.environ["OMP_WAIT_POLICY"].upper() == "PASSIVE" else "-active"
        json = RESULTS / f"{kind}-{device.replace(':', '')}-{model}{waiting}.json"
    options = dict(device=device, dtype=dtype, threads=threads)
    head = header("growth" if growth else "patch grid", shape=shape, quick=quick, rounds=rounds, **options)
    if growth:
        parts = grow(shape, quick=quick, rounds=rounds, say=_say, **options)
    else:
        names = methods or (SAMPLED if sample else tuple(METHODS)[:-1])
        parts = [compare(shape, names, quick=quick, sample=sample, rounds=rounds, **options)]
    records: list[dict] = []
    for part in parts:
        records += part
        for row in part:
            print(line(row), flush=True)
        if json is not None:
            write(json, head, records)
    if json is not None:
        _say(f"written: {json}")


def compare(
    shape: Shape, methods, *, quick: bool, sample: bool, rounds: int, device: str, dtype: str, threads: int
) -> list[dict]:
    """Measure the methods in turns and return their records."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        if not sample:
            save_random(shape, Path(folder))
        what = Load(None if sample else folder, asdict(shape), device, dtype)
        cases = list(_cases(shape, methods, quick, sample))
        oracles = _oracles(cases, what, sample, 1 if quick else 4, threads, log)
        entries = [entry for _, entry in cases]
        measure(entries, what, rounds=rounds, threads=threads, log=log, say=_say)
    paper = next((entry for entry in entries if entry.method == "paper loop" and entry.seconds), None)
    return [record(entry, case, paper, oracles[case.shared_prefix], device) for case, entry in cases]


def _cases(shape: Shape, methods, quick: bool, sample: bool):
    """Yield (shape, entry) for each method."""
    for method in methods:
        if not method.startswith("posttrace"):
            task = some_pairs(make_task(shape), 1 if quick else PAIRS_TIMED.get(method, 1))
            cells = some_cells(task) if sample else task.cells
            yield shape, Entry(method, method, task, cells, count=not quick)
            continue
        variants = {method: shape}
        if method == "posttrace" and not sample:
            variants |= {
                "posttrace, each pair its own prefix": replace(shape, shared_prefix=False),
                "posttrace, every cell computed": replace(shape, use_unchanged=False),
            }
        for name, case in variants.items():
            yield case, Entry(name, method, make_task(case), make_task(case).cells)


def some_pairs(task: Task, n: int) -> Task:
    """Return the task with its first pairs only."""
    unchanged = task.unchanged and task.unchanged[:n]
    return replace(task, clean=task.clean[:n], corrupt=task.corrupt[:n], unchanged=unchanged)


def some_cells(task: Task) -> list[tuple[int, int, int]]:
    """Return the cells of two layers, above which there are as many blocks as above all layers on average.

    Slow methods are timed on them, and compared with the oracle, if a whole grid takes too long.
    """
    low = task.layers // 4
    return [cell for cell in task.cells if cell[1] in (low, task.layers - 1 - low)]


def _oracles(cases, what: Load, sample: bool, pairs: int, threads: int, log) -> dict[bool, Reference]:
    """Return the naive oracle's values on a few pairs; keys: whether the prefix is shared."""
    found = {}
    worker = Worker("naive oracle", log)
    try:
        worker.load(what, threads)
        worker.receive()
        for case, _ in cases:
            if case.shared_prefix in found:
                continue
            task = some_pairs(make_task(case), 1 if sample else pairs)
            cells = some_cells(task) if sample else task.cells
            worker.ask("prepare", task=asdict(task))
            values = worker.ask("run", cells=cells)["values"]
            logits = worker.ask("logits", ids=task.corrupt[0])["logits"]
            found[case.shared_prefix] = Reference(dict(zip(cells, values, strict=True)), logits)
    except Unavailable as error:
        log.seek(0)
        raise SystemExit(f"the naive oracle failed: {error}\n{log.read()[-3000:]}") from error
    finally:
        worker.close()
    return found


def line(row: dict) -> str:
    """Format one row of the printed table."""
    name = f"{row['name']}, {row['varied']} = {row['value']}" if "varied" in row else row["name"]
    if not row["available"]:
        return f"{name:<46} unavailable: {row['reason']}"
    paper = f"{row['ratio_to_paper_loop']:7.2f}x paper's loop" if row["ratio_to_paper_loop"] else ""
    return (
        f"{name:<46}{row['seconds']:9.4f} s a pair {paper} {row['ratio_to_floor']:8.2f} floors "
        f"{row['max_abs_diff']:.1e} off {row['peak_rss_mib']:6.0f} MiB"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
