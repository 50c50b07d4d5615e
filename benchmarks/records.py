"""The JSON that a benchmark writes: a header about the machine and the run, and one record per row."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.floor import multiply_adds
from benchmarks.peers import ROOT
from benchmarks.rounds import Entry, ratio
from benchmarks.shapes import Shape, to_json

PACKAGES = ("torch", "transformers", "nnsight", "numpy")


@dataclass(frozen=True)
class Reference:
    """What the methods are compared with."""

    cells: dict[tuple[int, int, int], float]
    """(pair, layer, token) -> logit difference."""
    logits: list[float]
    """At the end of the first corrupt prompt, unpatched."""


def header(
    benchmark: str,
    *,
    device: str,
    dtype: str,
    threads: int,
    quick: bool,
    rounds: int,
    shape: Shape | None = None,
) -> dict:
    """Return what is needed to interpret and reproduce the results."""
    return dict(
        benchmark=benchmark,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_git("rev-parse", "--short", "HEAD"),
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no", "--", "tracers", "benchmarks")),
        device=device,
        device_name=device_name(device),
        dtype=dtype,
        threads=threads,
        waiting_threads=os.environ.get("OMP_WAIT_POLICY", "").lower(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        versions={package: version(package) for package in PACKAGES},
        quick=quick,
        repeats=rounds,
        **({} if shape is None else dict(shape=to_json(shape), pairs=shape.pairs)),
        load_average=[os.getloadavg()[0]],
    )


def device_name(device: str) -> str:
    """Return the name of the processor or accelerator."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def record(entry: Entry, shape: Shape, paper: Entry | None, reference: Reference, device: str) -> dict:
    """Return one row, with the median seconds per pair and the difference from the reference."""
    row = dict(
        name=entry.name,
        method=entry.method,
        device=device,
        available=entry.unavailable is None and bool(entry.seconds),
        reason=entry.unavailable,
        versions=entry.versions,
        cells=len(entry.cells),
        pairs=len({pair for pair, _, _ in entry.cells}),
        shared_prefix=shape.shared_prefix,
        first_difference_used=shape.use_unchanged,
        floor_multiply_adds_per_pair=multiply_adds(shape) / shape.pairs,
    )
    keys = ("seconds", "max_abs_diff", "ratio_to_paper_loop", "ratio_to_floor", "peak_rss_mib")
    if not row["available"]:
        return row | dict.fromkeys(keys)
    known = paper is not None and paper.unavailable is None and bool(paper.seconds)
    per_pair = shape.cells_per_pair / len(entry.cells)
    each = [seconds * per_pair for seconds in entry.seconds]
    compared = [
        abs(value - reference.cells[cell])
        for cell, value in zip(entry.cells, entry.values, strict=True)
        if cell in reference.cells
    ]
    return row | dict(
        seconds=statistics.median(each),
        seconds_of_a_cell=statistics.median(each) / shape.cells_per_pair,
        seconds_each=each,
        cpu_seconds=statistics.median(entry.cpu_seconds) * per_pair,
        max_abs_diff=max(compared),
        cells_compared=len(compared),
        logits_max_abs_diff=max(abs(a - b) for a, b in zip(entry.logits, reference.logits, strict=True)),
        ratio_to_paper_loop=ratio(paper, entry) if known else None,
        ratio_to_paper_loop_cpu=ratio(paper, entry, "cpu_seconds") if known else None,
        ratio_to_floor=_over_floor(entry, row["floor_multiply_adds_per_pair"] / per_pair, "seconds"),
        ratio_to_floor_cpu=_over_floor(entry, row["floor_multiply_adds_per_pair"] / per_pair, "cpu_seconds"),
        multiply_adds_per_second=statistics.median(rate["seconds"] for rate in entry.rates),
        counted_multiply_adds_per_pair=entry.multiply_adds and entry.multiply_adds * per_pair,
        **entry.memory,
    )


def _over_floor(entry: Entry, multiply_adds_of_a_run: float, what: str) -> float:
    """Return how many times longer than its floor a run takes, at the rate measured just before."""
    turns = zip(getattr(entry, what), entry.rates, strict=True)
    return statistics.median(taken * rate[what] / multiply_adds_of_a_run for taken, rate in turns)


def keep(file: Path | None, name: str, quick: bool, head: dict, records: list[dict]) -> None:
    """Write the JSON to `file`, or to benchmarks/results/NAME.json unless the run is quick."""
    if file is None and not quick:
        file = ROOT / "benchmarks" / "results" / f"{name}.json"
    if file is not None:
        write(file, head, records)
        print(f"written: {file}", file=sys.stderr)


def write(file: Path, head: dict, records: list[dict]) -> None:
    """Write the JSON, with the load averages at the beginning and the end."""
    load = [head["load_average"][0], os.getloadavg()[0]]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head | dict(load_average=load, records=records), indent=1) + "\n")


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
