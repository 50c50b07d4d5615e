"""The four findings of Du et al. 2025, paper beside family, from the built-in jobs run on a family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import published
from posttrace.figures.measures import calibration
from posttrace.figures.measures.intervals import (
    Estimate,
    mean_draws,
    mean_over_items,
    middle_range,
    percentile_interval,
    wilson_estimate,
)
from posttrace.figures.measures.patching import recovered_share
from posttrace.figures.studies.confidence.data import Answers, Neurons
from posttrace.figures.studies.confidence.data import read as read_confidence
from posttrace.figures.studies.confidence.tables import pooled
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import comparisons, estimates, judged_right
from posttrace.figures.studies.refusal.data import SCORED, Refusal
from posttrace.figures.studies.refusal.tables import estimated
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, effect, parted
from posttrace.figures.studies.truthfulness.data import read as read_truthfulness
from posttrace.pipeline.embedded import STAGES

if TYPE_CHECKING:
    import xarray as xr

PAPER = published.PAPER
BASE, LAST = "base", "instruct"
"""The stages that the paper compares."""
STUDIES = {"knowledge": (BASE, LAST), "truthfulness": (BASE, LAST), "refusal": STAGES, "confidence": STAGES}
"""Study -> stages that it is run on."""
EARLY = 4
"""Blocks that count as early: the first half."""


@dataclass(frozen=True)
class Finding:
    """One cell of the tables."""

    study: str
    row: str
    column: str
    paper: float | None
    """Its value for Llama-3.1-8B; None where the paper has none."""
    value: float | None
    """None where it is undefined."""
    low: float | None
    high: float | None
    n: int


def stores(family: Path, folder: Path) -> dict[str, Path]:
    """Run the built-in job of every study on a family, or go on with it; return the stores."""
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job

    models = {stage: {"model": str((family / stage).resolve())} for stage in STAGES}
    made = {}
    for study, stages in STUDIES.items():
        made[study] = folder / study
        chosen = {"name": "embedded", "stages": {stage: models[stage] for stage in stages}}
        run_job(load_job(study, [f"family={json.dumps(chosen)}"]), str(made[study]))
    return made


def findings(made: Mapping[str, Path]) -> list[Finding]:
    """Return one finding for each cell of the tables, from the stores of `stores` or some of them."""
    return [one for study, url in made.items() for one in READERS[study](list(_groups(url)))]


def _groups(url: Path) -> Iterator[xr.Dataset]:
    from posttrace.stores import Store, open_group

    store = Store.open(str(url))
    yield from (open_group(store, path) for path in store.groups)


def _cell(study: str, row: str, column: str, found: Estimate, paper: float | None = None) -> Finding:
    value, low, high = (
        None if np.isnan(x) else round(float(x), 4) for x in (found.value, found.low, found.high)
    )
    return Finding(study, row, column, paper, value, low, high, found.n)


def _knowledge(groups: Sequence[xr.Dataset]) -> Iterator[Finding]:
    for grid in (PatchGrid.from_dataset(data) for data in groups if "set" in data.attrs):
        yield from _patching(grid)


def _patching(grid: PatchGrid) -> Iterator[Finding]:
    for stage in (BASE, LAST):
        yield _cell("knowledge", grid.name, f"pairs {stage} judges right", judged_right(grid, stage))
    if "subject" in grid.roles:
        last = len(grid.roles) - 1 - grid.roles[::-1].index("subject")
        at = grid.patched(BASE, BASE)[:, :EARLY, last]
        unpatched = grid.unpatched(BASE, BASE, grid.pairs((BASE, BASE)))
        column = f"recovered at the last subject token, {BASE}, highest of blocks 0 to {EARLY - 1}"
        yield _cell("knowledge", grid.name, column, _highest(np.column_stack([at, *unpatched]), _shares))
    for comparison in comparisons(grid):
        storage = comparison.kind == "storage"
        paper = published.STORAGE["correlation"].get(grid.name) if storage else None
        column = "r of maps, storage" if storage else f"r of maps, {' -> '.join(comparison.first)}"
        r = estimates(grid, comparison)["normalised", "correlation"]
        yield _cell("knowledge", grid.name, column, r, paper)
    for source, target in ((BASE, LAST), (LAST, BASE)):
        patched = grid.patched(source, target)
        column = f"highest logit difference, {source} -> {target}, nats"
        yield _cell(
            "knowledge", grid.name, column, _highest(patched.reshape(len(patched), -1), lambda means: means)
        )


def _shares(means: np.ndarray) -> np.ndarray:
    """Return recovered shares from means; the last two are those of the clean and the corrupt run."""
    return recovered_share(means[..., :-2, None], means[..., -2], means[..., -1])[..., 0]


def _highest(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Return the highest of some statistics of means; every resample of items has its own highest one."""
    low, high = percentile_interval(statistic(mean_draws(values)).max(axis=-1))
    return Estimate(float(statistic(mean_over_items(values)).max()), float(low), float(high), len(values))


def _truth(groups: Sequence[xr.Dataset]) -> Iterator[Finding]:
    summary, sets = parted([read_truthfulness(data) for data in groups])
    assert summary is not None, "every store of the study has it"
    for one in sets.values():
        yield from _steering(summary, one)


def _steering(summary: Summary, one: StatementSet) -> Iterator[Finding]:
    stages, layer = one.stages, summary.layer(one.name)
    correct = one.array("correct")[one.probes.index("mass_mean"), ..., layer]
    steered, target = effect(one), stages.index(LAST)
    for source in (BASE, LAST):
        right = wilson_estimate(correct[stages.index(source), target])
        paper = published.PROBE_TRANSFER[one.name][source, LAST] / 100
        yield _cell("truthfulness", one.name, f"accuracy of {source}'s probe on {LAST}", right, paper)
    for source in (BASE, LAST):
        at = (0, one.directions.index(source), target)
        low, high = steered.interval[:, *at]
        found = Estimate(steered.value[at], low, high, steered.n)
        paper = published.INTERVENTION[one.name][source, LAST]
        yield _cell("truthfulness", one.name, f"effect of {source}'s direction on {LAST}", found, paper)
    random = middle_range(steered.value[0, one.controls, target])
    yield _cell("truthfulness", one.name, f"effect of random directions on {LAST}, 95 % range", random)


def _refusal(groups: Sequence[xr.Dataset]) -> Iterator[Finding]:
    group = Refusal.from_dataset(groups[0])
    for stage in STAGES:
        for kind, intervention in SCORED.items():
            paper = published.REFUSAL.get(stage, {}).get(kind, {})
            cells = {
                "unsteered": (stage, "none", "baseline"),
                "own direction": (stage, intervention, "own"),
                f"{BASE}'s direction": (BASE, intervention, "base"),
            }
            for column, (direction, what, key) in cells.items():
                if stage != BASE or key != "base":
                    found = estimated(group, "refused", direction, stage, what, kind)
                    yield _cell("refusal", f"{stage}, {kind} ({intervention})", column, found, paper.get(key))


def _confidence(groups: Sequence[xr.Dataset]) -> Iterator[Finding]:
    parts = [read_confidence(data) for data in groups]
    neurons = next(one for one in parts if isinstance(one, Neurons))
    sets = [one for one in parts if isinstance(one, Answers)]
    for stage in STAGES:
        if stage != BASE:
            count, shared = neurons.chosen.shape[1], len(neurons.shared(BASE, stage))
            paper = published.ENTROPY_NEURONS.get(f"{published.MODEL}, {BASE} and {stage}")
            found = Estimate(shared / count, np.nan, np.nan, count)
            column = f"entropy neurons shared with {BASE}"
            yield _cell("confidence", stage, column, found, paper and paper[0] / count)
        for name, found in calibration.estimates(*pooled(sets, stage)).items():
            if name in ("accuracy", "confidence", "ece"):
                yield _cell("confidence", stage, f"{name}, {len(sets)} sets", found)


READERS = {"knowledge": _knowledge, "truthfulness": _truth, "refusal": _refusal, "confidence": _confidence}


def tables(found: Sequence[Finding]) -> str:
    """Return a markdown table for each study: value, interval, n, and the paper's value where it has one."""
    lines: list[str] = []
    for study in dict.fromkeys(one.study for one in found):
        cells = {(one.row, one.column): one for one in found if one.study == study}
        columns = list(dict.fromkeys(column for _, column in cells))
        lines += ["", f"| {study} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
        for row in dict.fromkeys(row for row, _ in cells):
            shown = [_shown(cells.get((row, column))) for column in columns]
            lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines[1:])


def _shown(one: Finding | None) -> str:
    if one is None or one.value is None:
        return "-"
    interval = "" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]"
    paper = "" if one.paper is None else f"; paper {one.paper:.2f}"
    return f"{one.value:.2f}{interval} ({one.n}){paper}"
