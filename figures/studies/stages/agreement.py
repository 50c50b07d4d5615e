"""Scatter of the attribution of every part against what swapping it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import mean_interval
from posttrace.figures.studies.stages.bars import short
from posttrace.figures.studies.stages.data import Effects, correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Agreement:
    """Attribution and swaps of one update, over the parts of the model."""

    attribution: np.ndarray
    """Mean over converged prompts, nats; dims part."""
    insert: np.ndarray
    """Mean effect of inserting a part into the stage before, nats; dims part."""
    remove: np.ndarray
    """Mean effect of removing it from the stage, nats; dims part."""
    r: float
    """Correlation of the attribution with the mean of both, over parts."""
    r_prompts: float
    """The same over parts and prompts together."""
    missed: float
    """Mean absolute difference of the sum of all insertions and the effect, nats: how far swaps are from adding up."""
    swaps: np.ndarray
    """Mean of both effects, nats; dims prompt x part."""

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.swaps)


def agree(group: Effects, update: str, kind: str) -> Agreement | None:
    """Compare attribution with swaps on the prompts of a kind; None where the job has no swaps, or none converged."""
    insert, remove = (group.swapped(update, name) for name in ("insert", "remove"))
    if insert is None or remove is None:
        return None
    chosen = group.converged(update) & group.of_kind(kind) & np.isfinite(insert + remove).all(axis=1)
    if not chosen.any():
        return None
    credit, both = group.credit(update)[chosen], (insert + remove)[chosen] / 2
    return Agreement(
        attribution=credit.mean(axis=0),
        insert=insert[chosen].mean(axis=0),
        remove=remove[chosen].mean(axis=0),
        r=correlation(credit.mean(axis=0), both.mean(axis=0)),
        r_prompts=correlation(credit.ravel(), both.ravel()),
        missed=float(np.abs(insert[chosen].sum(axis=1) - group.effect(update)[chosen]).mean()),
        swaps=both,
    )


def agreement(groups: Sequence) -> Iterator[Drawing]:
    """Yield a scatter for each behaviour."""
    for group in of_type(groups, Effects):
        found = {(u, kind): agree(group, u, kind) for u in group.updates for kind in group.kinds}
        there = {key: one for key, one in found.items() if one is not None}
        if not there:
            continue
        words = "; ".join(
            f"{update}, {kind}: r = {one.r:.3f} over parts, {one.r_prompts:.3f} over parts and prompts, inserts miss "
            f"the effect by {one.missed:.2g} on average (n = {one.n})"
            for (update, kind), one in there.items()
        )
        yield Drawing(
            name=f"stages/{group.name}/agreement",
            heading=f"Attribution against swaps: {group.name}",
            caption=(
                f"{group.incomplete}{group.family}, {group.name} ({group.unit}): attribution of every part of the "
                "model against the mean of inserting it into the stage before and removing it from the stage; lines "
                f"join the two, means over prompts, not normalised. {words}. Where inserts do not add up to the "
                f"effect, credit depends on the order in which parts are counted. {group.untrained_template}"
            ),
            alt=f"Scatter of the attribution of every part against its swaps, for {group.name}.",
            figure=_draw(group, there),
            complete=group.complete,
        )


def _draw(group: Effects, found: dict[tuple[str, str], Agreement]) -> Figure:
    colours = theme.stage_colours(group.stages)
    rows, columns = len(group.updates), len(group.kinds)
    with theme.look():
        figure = theme.new_figure(0.5 + 2.1 * columns, 0.6 + 2.0 * rows, w_pad=0.03, h_pad=0.04)
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, update in zip(axes, group.updates, strict=True):
            for ax, kind in zip(row, group.kinds, strict=True):
                ax.set_title(f"{update} · {kind}", pad=3)
                one = found.get((update, kind))
                if one is None:
                    continue
                both = (one.insert + one.remove) / 2
                low, high = (
                    float(end(np.r_[one.insert, one.remove, one.attribution])) for end in (np.min, np.max)
                )
                ax.plot([low, high], [low, high], color=theme.GUIDE, linewidth=0.6, zorder=0)
                ax.vlines(one.attribution, one.insert, one.remove, color="#c3c8cf", linewidth=0.7, zorder=1)
                dots = ax.scatter(one.attribution, both, s=9, color=colours[update], linewidths=0, zorder=2)
                note(dots, name=group.parts, n=one.n, interval=partial(mean_interval, one.swaps))
                for part in np.argsort(-np.abs(both))[:3]:
                    ax.annotate(
                        group.parts[part], (one.attribution[part], both[part]), fontsize=5, xytext=(2, 2),
                        textcoords="offset points",
                    )  # fmt: skip
            row[0].set_ylabel("mean of insert and remove", labelpad=2)
        for ax in axes[-1]:
            ax.set_xlabel("attribution", labelpad=2)
        theme.heading(figure, f"{group.family}  ·  {group.name}, {short(group.unit)}")
    return figure
