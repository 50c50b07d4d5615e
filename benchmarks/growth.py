"""How the cost of the grid grows: one size is varied at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.methods import Load
from benchmarks.records import Reference, record
from benchmarks.rounds import Entry, measure
from benchmarks.shapes import Shape, make_task, save_random

SWEEP = {
    "pairs": (1, 4, 16, 64),
    "layers": (4, 8, 16),
    "statement": (8, 15, 30, 60),
    "prefix": (1, 65, 260, 1040),
    "hidden": (128, 256, 512),
}
QUICK = {"pairs": (1, 2), "prefix": (1, 12)}


def grow(
    shape: Shape, *, quick: bool, rounds: int, device: str, dtype: str, threads: int, say
) -> Iterator[list[dict]]:
    """Yield records of posttrace (all pairs) and of the paper's loop (a few cells), with `varied` and `value`.

    One value at a time, so that results are kept if a long sweep ends early. Each shape is measured once, so the shape
    common to all sweeps has the same figures in all of them. Records include the load average, because other work may
    share the cores.
    """
    known: dict[Shape, list[dict]] = {}
    for varied, values in (QUICK if quick else SWEEP).items():
        for value in values:
            one = shape.but(**{varied: value})
            if one not in known:
                say(f"{varied} = {value}")
                known[one] = _at(one, rounds, device, dtype, threads)
            yield [dict(varied=varied, value=value) | row for row in known[one]]


def _at(shape: Shape, rounds: int, device: str, dtype: str, threads: int) -> list[dict]:
    task = make_task(shape)
    pair = [cell for cell in task.cells if cell[0] == 0]
    few = pair[:: max(1, len(pair) // 8)]
    entries = [
        Entry("paper loop", "paper loop", task, few),
        Entry("posttrace", "posttrace", task, task.cells),
    ]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        save_random(shape, Path(folder))
        what = Load(folder, asdict(shape), device, dtype)
        measure(entries, what, rounds=rounds, threads=threads, log=log, say=lambda _: None)
    reference = Reference(dict(zip(few, entries[0].values, strict=False)), entries[0].logits)
    load = dict(load_average=os.getloadavg()[0])
    return [record(entry, shape, entries[0], reference, device) | load for entry in entries]
