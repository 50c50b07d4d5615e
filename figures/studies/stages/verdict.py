"""The stages study in a few sentences: what each stage did to each behaviour, next to controls of the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures.group import of_type
from posttrace.figures.measures.intervals import percentile_interval
from posttrace.figures.studies.stages.bars import short
from posttrace.figures.studies.stages.data import ALL, Effects, Weights
from posttrace.figures.studies.stages.estimators import CEILING, LABELS, fits
from posttrace.figures.studies.stages.tables import DIGITS
from posttrace.figures.verdict import Verdict, in_words


def verdict(groups: Sequence[Weights | Effects]) -> Verdict:
    """Give the mean effect of every stage on every behaviour, and say which removals do no more than their controls.

    Numbers are those of the tables `stages_effects` and `stages_removal`, of the first kind of prompts; where training
    was repeated, those of `stages_estimators`, of all prompts.
    """
    chosen = of_type(groups, Effects)
    caveats = []
    for group in chosen:
        if group.effects_only:
            caveats.append(
                f"{group.name}: measured on a server, so nothing says where in the weights it arises."
            )
            continue
        if "control_removed" not in group.data:
            caveats.append(f"{group.name}: no control, so any change of that length might do the same.")
            continue
        within = "; ".join(filter(None, (_within(group, update) for update in group.updates)))
        if within:
            caveats.append(f"{group.name}: removing an update does no more than its controls do ({within}).")
    for group in chosen:
        caveats += _no_better(group)
    return Verdict(
        sentence=" ".join([*map(_effects, chosen), *_retrained(chosen)])
        or "Only the weights were compared: see the table of their sizes.",
        caveat=" ".join(caveats),
        weak=not any("control_removed" in group.data for group in chosen),
    )


def _effects(group: Effects) -> str:
    kind = group.kinds[0]
    found = {update: group.estimate(group.effect(update), kind) for update in group.updates}
    each = ", ".join(f"{update} {in_words(e, DIGITS)}" for update, e in found.items())
    n = max((e.n for e in found.values()), default=0)
    return f"Mean effect on {group.name}, {short(group.unit)}: {each} ({kind} prompts, n = {n})."


def _retrained(groups: Sequence[Effects]) -> Iterator[str]:
    for group in groups:
        for without in group.left_out:
            found = fits(group, without, ALL)
            errors = ", ".join(f"{label} {in_words(fit.mae, DIGITS)}" for label, fit in found.items())
            yield (
                f"Trained again without {without}, mean absolute error of {group.name}, {short(group.unit)}: {errors}."
            )


def _no_better(group: Effects) -> Iterator[str]:
    """Yield a caveat for estimates that are no better than those that need no computation."""
    for without in group.left_out:
        found = {label: fit.mae.value for label, fit in fits(group, without, ALL).items()}
        trivial = [label for label in found if label not in (*LABELS.values(), CEILING)]
        best = min(trivial, key=lambda label: found[label])
        poor = [label for label in LABELS.values() if label in found and found[label] >= found[best]]
        if poor:
            yield f"{group.name} without {without}: {', '.join(poor)} no better than {best!r}, which is no estimate."


def _within(group: Effects, update: str) -> str:
    """Return the controls whose middle 95 % hold the effect of removing all of an update; empty if there are none."""
    alphas = [float(alpha) for alpha in group.data["alpha"].values]
    if 1.0 not in alphas:
        return ""
    kind, at = group.kinds[0], group.at(update)
    removed = group.estimate(group.values("removed")[at, alphas.index(1.0)], kind)
    names = []
    for name, draws in zip(group.data["control"].values, group.values("control_removed")[at], strict=True):
        means = draws[:, group.of_kind(kind)].mean(axis=1)
        low, high = percentile_interval(means)
        if np.isfinite(removed.value) and low <= removed.value <= high:
            names.append(str(name))
    return f"{update}: {', '.join(names)}" if names else ""
