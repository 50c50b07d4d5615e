"""The four findings of Du et al. 2025, paper beside family, from the built-in jobs run on a family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import published
from posttrace.figures.measures import calibration
from posttrace.figures.measures.intervals import SEED, Estimate, percentile_interval, wilson
from posttrace.figures.measures.interventions import bootstrap_effect
from posttrace.figures.measures.patching import compare, recovered_share_interval
from posttrace.pipeline.embedded import STAGES

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("knowledge", "truthfulness", "refusal", "confidence")
BASE, LAST = "base", "instruct"
"""The stages that the paper compares."""
EARLY = 4
"""Blocks that count as early: the first half."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    study: str
    what: str
    paper: float | None
    """Its value for Llama-3.1-8B; None where the paper has none."""
    value: float
    low: float
    high: float
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
    from posttrace.stores import open_store

    opened = {study: open_store(str(url)) for study, url in made.items()}
    return [
        *_knowledge(
            {
                name: node.to_dataset().load()
                for name, node in opened["knowledge"]["knowledge"].children.items()
            }
        ),
        *_truth(opened["truthfulness"]["truthfulness"]),
        *_refusal(opened["refusal"]["refusal"].to_dataset().load()),
        *_confidence(opened["confidence"]["confidence"]),
    ]


def _line(study: str, what: str, paper: float | None, found: Estimate) -> Finding:
    return Finding(study, what, paper, found.value, found.low, found.high, found.n)


def _knowledge(sets: dict[str, xr.Dataset]) -> Iterator[Finding]:
    for name, data in sets.items():
        roles = [str(role) for role in data["token_role"].values] if "token_role" in data else []
        maps = {
            (source, target): data["logit_diff"].sel(source=source, target=target).values
            for source in (BASE, LAST)
            for target in (BASE, LAST)
        }
        if "subject" in roles:
            last = len(roles) - 1 - roles[::-1].index("subject")
            clean = data["logit_diff_clean"].sel(source=BASE).values
            corrupt = data["logit_diff_corrupt"].sel(target=BASE).values
            at = maps[BASE, BASE][:, :EARLY, last : last + 1]
            share, low, high = (
                part[:, 0]
                for part in recovered_share_interval(at, clean, corrupt, np.random.default_rng(SEED))
            )
            best = int(share.argmax())
            yield _line(
                "knowledge",
                f"{name}: share recovered at the last subject token (block {best}), base",
                None,
                Estimate(float(share[best]), float(low[best]), float(high[best]), len(clean)),
            )
        for words, one, other in (
            ("storage, base and instruct", (BASE, BASE), (LAST, LAST)),
            ("base -> instruct and instruct's own", (BASE, LAST), (LAST, LAST)),
            ("instruct -> base and base's own", (LAST, BASE), (BASE, BASE)),
        ):
            paper = published.STORAGE["correlation"].get(name) if one == (BASE, BASE) else None
            first, second = (_columns(data, maps[cell]) for cell in (one, other))
            r = compare(first, second, [], np.random.default_rng(SEED))["normalised", "correlation"]
            yield _line("knowledge", f"{name}: r of maps, {words}", paper, r)


def _columns(data: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Return values by token, or by role where the pairs are free-form."""
    if "token_role_of_pair" not in data or data.attrs.get("alignment") != "free":
        return values[..., : int(data["n_tokens"].max())] if "n_tokens" in data else values
    roles = data["token_role_of_pair"].transpose("pair", "token").values.astype(object)
    chosen = [(roles == role)[:, None, :] for role in ("knowledge", "last", "other")]
    return np.stack([np.nanmean(np.where(one, values, np.nan), axis=-1) for one in chosen], axis=-1)


def _truth(node: xr.DataTree) -> Iterator[Finding]:
    summary = node.to_dataset().load()
    for name in map(str, summary["held_out"].values):
        data = node[name].to_dataset().load()
        layers = summary["probe_layer"].sel(held_out=name)
        for source in (BASE, LAST):
            right = (
                data["correct"].sel(probe="mass_mean", source=source, target=LAST, layer=int(layers)).values
            )
            yield _line(
                "truthfulness",
                f"{name}: accuracy of {source}'s probe on {LAST}",
                published.PROBE_TRANSFER[name][source, LAST] / 100,
                _share(right),
            )
        used = ~data["example"].values.astype(bool)
        truth = data["label"].values[used] == 1
        names = [str(one) for one in data["direction"].values]
        p_diff = data["p_diff"].sel(target=LAST).values[:, None, used]
        found = bootstrap_effect(p_diff[names.index("none")], p_diff, truth)
        for source in (BASE, LAST):
            at = (0, names.index(source), 0)
            low, high = (float(end[at]) for end in found.interval)
            yield _line(
                "truthfulness",
                f"{name}: effect on {LAST} of {source}'s direction",
                published.INTERVENTION[name][source, LAST],
                Estimate(float(found.value[at]), low, high, found.n),
            )
        random = found.value[0, [i for i, one in enumerate(names) if one.startswith("random-")], 0]
        low, high = percentile_interval(random)
        middle = Estimate(float(np.median(random)), float(low), float(high), len(random))
        yield _line("truthfulness", f"{name}: effect on {LAST} of random directions", None, middle)


def _refusal(data: xr.Dataset) -> Iterator[Finding]:
    def refused(stage: str, direction: str, intervention: str, kind: str) -> Estimate:
        cell = data["refused"].sel(direction=direction, target=stage, intervention=intervention)
        return _share(cell.values[data["kind"].values.astype(object) == kind])

    for kind, intervention in (("harmful", "ablation"), ("harmless", "addition")):
        for stage in STAGES:
            paper = published.REFUSAL.get(stage, {}).get(kind, {})
            for key, direction, what in (
                ("baseline", stage, "none"),
                ("own", stage, intervention),
                ("base", BASE, intervention),
            ):
                if (key, stage) != ("base", BASE):
                    words = "unsteered" if key == "baseline" else f"{intervention} of {direction}'s direction"
                    found = refused(stage, direction, what, kind)
                    yield _line("refusal", f"{stage}: refuses {kind}, {words}", paper.get(key), found)


def _confidence(node: xr.DataTree) -> Iterator[Finding]:
    chosen = {stage: set(node["candidate"].sel(model=stage).values.tolist()) for stage in STAGES}
    for stage in STAGES[1:]:
        count = len(chosen[BASE])
        shared = len(chosen[BASE] & chosen[stage])
        paper = published.ENTROPY_NEURONS.get(f"{published.MODEL}, {BASE} and {stage}")
        found = Estimate(shared / count, np.nan, np.nan, count)
        yield _line(
            "confidence", f"entropy neurons of {BASE} that {stage} has too", paper and paper[0] / count, found
        )
    sets = [part.to_dataset().load() for part in node.children.values() if "answer_mass" in part]
    for stage in STAGES:
        logit = np.concatenate([data["logit_diff"].sel(model=stage).values for data in sets])
        truth = np.concatenate([data["label"].values for data in sets]) == 1
        sure = 1 / (1 + np.exp(-np.abs(logit)))
        for name, found in calibration.estimates(sure, (logit > 0) == truth).items():
            if name in ("accuracy", "confidence", "ece"):
                yield _line("confidence", f"{stage}: {name} of answers, {len(sets)} sets", None, found)


def _share(hits: np.ndarray) -> Estimate:
    hits = hits[np.isfinite(hits)] if hits.dtype.kind == "f" else hits
    low, high = wilson(float(hits.mean()), len(hits))
    return Estimate(float(hits.mean()), float(low), float(high), len(hits))


def table(found: Sequence[Finding]) -> str:
    """Return the findings as a markdown table, the paper's value beside the family's."""
    lines = ["| study | what | paper | family | n |", "|---|---|---|---|---|"]
    for one in found:
        interval = "" if np.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"
        paper = "" if one.paper is None else f"{one.paper:.2f}"
        lines.append(f"| {one.study} | {one.what} | {paper} | {one.value:.2f}{interval} | {one.n} |")
    return "\n".join(lines)
