"""The four findings of Du et al. 2025, paper beside family, from the built-in jobs run on a family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import published
from posttrace.figures.measures import calibration
from posttrace.figures.measures.intervals import SEED, Estimate, bootstrap_mean, percentile_interval, wilson
from posttrace.figures.measures.interventions import bootstrap_effect
from posttrace.figures.measures.patching import compare, recovered_share_interval
from posttrace.pipeline.embedded import STAGES

if TYPE_CHECKING:
    import xarray as xr

PAPER = published.PAPER
STUDIES = ("knowledge", "truthfulness", "refusal", "confidence")
BASE, LAST = "base", "instruct"
"""The stages that the paper compares."""
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

    stages = ", ".join(f"{stage}: {{model: {(family / stage).resolve()}}}" for stage in STAGES)
    made = {}
    for study in STUDIES:
        made[study] = folder / study
        job = load_job(study, [f"family={{name: embedded, stages: {{{stages}}}}}"])
        run_job(job, str(made[study]))
    return made


def findings(made: dict[str, Path]) -> list[Finding]:
    """Return the lines of the table from the stores of `stores`."""
    return [
        *_knowledge(_groups(made["knowledge"])),
        *_truth(_groups(made["truthfulness"])),
        *_refusal(_groups(made["refusal"])["refusal"]),
        *_confidence(_groups(made["confidence"])),
    ]


def _groups(url: Path) -> dict[str, xr.Dataset]:
    """Return every group of a store by its path."""
    from posttrace.stores import open_store

    return {node.path.strip("/"): node.to_dataset() for node in open_store(str(url)).subtree}


def _cell(study: str, row: str, column: str, found: Estimate, paper: float | None = None) -> Finding:
    value, low, high = (
        None if np.isnan(x) else round(float(x), 4) for x in (found.value, found.low, found.high)
    )
    return Finding(study, row, column, paper, value, low, high, found.n)


def _knowledge(groups: dict[str, xr.Dataset]) -> Iterator[Finding]:
    for name, data in ((path.split("/")[1], data.load()) for path, data in groups.items() if "/" in path):
        clean = {stage: data["logit_diff_clean"].sel(source=stage).values for stage in (BASE, LAST)}
        corrupt = {stage: data["logit_diff_corrupt"].sel(target=stage).values for stage in (BASE, LAST)}
        for stage in (BASE, LAST):
            right = (clean[stage] > 0) & (corrupt[stage] < 0)
            yield _cell("knowledge", name, f"pairs {stage} judges right", _share(right))
        maps = {
            (source, target): _columns(data, data["logit_diff"].sel(source=source, target=target).values)
            for source in (BASE, LAST)
            for target in (BASE, LAST)
        }
        roles = [str(role) for role in data["token_role"].values] if "token_role" in data else []
        if "subject" in roles:
            last = len(roles) - 1 - roles[::-1].index("subject")
            at = maps[BASE, BASE][:, :EARLY, last : last + 1]
            found = recovered_share_interval(at, clean[BASE], corrupt[BASE], np.random.default_rng(SEED))
            share, low, high = (part[:, 0] for part in found)
            best = int(share.argmax())
            estimate = Estimate(share[best], low[best], high[best], len(at))
            yield _cell("knowledge", name, "recovered at the last subject token, base", estimate)
        for column, one, other in (
            ("r of maps, storage", (BASE, BASE), (LAST, LAST)),
            (f"r of maps, {BASE} -> {LAST}", (BASE, LAST), (LAST, LAST)),
            (f"r of maps, {LAST} -> {BASE}", (LAST, BASE), (BASE, BASE)),
        ):
            paper = published.STORAGE["correlation"].get(name) if one == (BASE, BASE) else None
            r = compare(maps[one], maps[other], [], np.random.default_rng(SEED))["normalised", "correlation"]
            yield _cell("knowledge", name, column, r, paper)
        for source, target in ((BASE, LAST), (LAST, BASE)):
            patched = maps[source, target]
            layer, token = np.unravel_index(patched.mean(axis=0).argmax(), patched.shape[1:])
            highest = bootstrap_mean(patched[:, layer, token])
            yield _cell("knowledge", name, f"highest logit difference, {source} -> {target}, nats", highest)


def _columns(data: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Return values by token, or by role where the pairs are free-form."""
    if "token_role_of_pair" not in data or data.attrs.get("alignment") != "free":
        return values[..., : int(data["n_tokens"].max())] if "n_tokens" in data else values
    roles = data["token_role_of_pair"].transpose("pair", "token").values.astype(object)
    chosen = [(roles == role)[:, None, :] for role in ("knowledge", "last", "other")]
    return np.stack([np.nanmean(np.where(one, values, np.nan), axis=-1) for one in chosen], axis=-1)


def _truth(groups: dict[str, xr.Dataset]) -> Iterator[Finding]:
    summary = groups["truthfulness"].load()
    for name in map(str, summary["held_out"].values):
        data = groups[f"truthfulness/{name}"].load()
        layer = int(summary["probe_layer"].sel(held_out=name))
        for source in (BASE, LAST):
            right = data["correct"].sel(probe="mass_mean", source=source, target=LAST, layer=layer).values
            paper = published.PROBE_TRANSFER[name][source, LAST] / 100
            yield _cell("truthfulness", name, f"accuracy of {source}'s probe on {LAST}", _share(right), paper)
        used = ~data["example"].values.astype(bool)
        names = [str(one) for one in data["direction"].values]
        p_diff = data["p_diff"].sel(target=LAST).values[:, None, used]
        found = bootstrap_effect(p_diff[names.index("none")], p_diff, data["label"].values[used] == 1)
        for source in (BASE, LAST):
            at = (0, names.index(source), 0)
            low, high = found.interval
            estimate = Estimate(found.value[at], low[at], high[at], found.n)
            paper = published.INTERVENTION[name][source, LAST]
            yield _cell("truthfulness", name, f"effect of {source}'s direction on {LAST}", estimate, paper)
        random = found.value[0, [i for i, one in enumerate(names) if one.startswith("random-")], 0]
        low, high = percentile_interval(random)
        middle = Estimate(float(np.median(random)), float(low), float(high), len(random))
        yield _cell("truthfulness", name, f"effect of random directions on {LAST}, 95 % range", middle)


def _refusal(data: xr.Dataset) -> Iterator[Finding]:
    kinds = data["kind"].values.astype(object)
    for stage in STAGES:
        for kind, intervention in (("harmful", "ablation"), ("harmless", "addition")):
            paper = published.REFUSAL.get(stage, {}).get(kind, {})
            for key, direction, what in (
                ("baseline", stage, "none"),
                ("own", stage, intervention),
                ("base", BASE, intervention),
            ):
                if (key, stage) != ("base", BASE):
                    cell = data["refused"].sel(direction=direction, target=stage, intervention=what)
                    column = {"baseline": "unsteered", "own": "own direction", "base": f"{BASE}'s direction"}[
                        key
                    ]
                    found = _share(cell.values[kinds == kind])
                    yield _cell("refusal", f"{stage}, {kind} ({intervention})", column, found, paper.get(key))


def _confidence(groups: dict[str, xr.Dataset]) -> Iterator[Finding]:
    candidates = groups["confidence"]["candidate"]
    chosen = {stage: set(candidates.sel(model=stage).values.tolist()) for stage in STAGES}
    sets = [data.load() for data in groups.values() if "answer_mass" in data]
    for stage in STAGES:
        if stage != BASE:
            count, shared = len(chosen[BASE]), len(chosen[BASE] & chosen[stage])
            paper = published.ENTROPY_NEURONS.get(f"{published.MODEL}, {BASE} and {stage}")
            found = Estimate(shared / count, np.nan, np.nan, count)
            column = f"entropy neurons shared with {BASE}"
            yield _cell("confidence", stage, column, found, paper and paper[0] / count)
        logit = np.concatenate([data["logit_diff"].sel(model=stage).values for data in sets])
        truth = np.concatenate([data["label"].values for data in sets]) == 1
        sure = 1 / (1 + np.exp(-np.abs(logit)))
        for name, found in calibration.estimates(sure, (logit > 0) == truth).items():
            if name in ("accuracy", "confidence", "ece"):
                yield _cell("confidence", stage, f"{name}, {len(sets)} sets", found)


def _share(hits: np.ndarray) -> Estimate:
    hits = hits[np.isfinite(hits)]
    low, high = wilson(float(hits.mean()), len(hits))
    return Estimate(float(hits.mean()), float(low), float(high), len(hits))


def tables(found: Sequence[Finding]) -> str:
    """Return a markdown table for each study: value, interval, n, and in brackets the paper's value."""
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
