"""Lines of the stages study: removal by share, and updates put in part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import mean_interval
from posttrace.figures.studies.stages.bars import short
from posttrace.figures.studies.stages.data import Effects
from posttrace.figures.studies.stages.tables import INTERVALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDER_COLOURS = {"below": "#2a7fa8", "above": "#d1752b"}


def dose(groups: Sequence) -> Iterator[Drawing]:
    """Yield, for each behaviour, the effect of removing a share of each update."""
    for group in of_type(groups, Effects):
        if group.effects_only:
            continue
        controls = (
            "Grey band: the middle 95% of the means of the controls (Gaussian and permuted) at share 1. "
            if "control_removed" in group.data
            else ""
        )
        yield Drawing(
            name=f"stages/{group.name}/dose",
            heading=f"Removing a share of an update: {group.name}",
            caption=(
                f"{group.incomplete}{group.family}, {group.name} ({group.unit}): mean over prompts of f(final) - "
                f"f(final - share x update), n = {_counts(group)}; not normalised. {controls}A line that is not "
                f"straight says that one slope does not stand for the update. Bars: {INTERVALS}."
            ),
            alt=f"Lines of the effect of removing a share of each update on {group.name}.",
            figure=_draw_dose(group),
            complete=group.complete,
        )


def _draw_dose(group: Effects) -> Figure:
    colours, alphas = theme.stage_colours(group.stages), group.values("alpha")
    with theme.look():
        figure = theme.new_figure(
            0.5 + 1.9 * len(group.kinds), 0.6 + 1.6 * len(group.updates), w_pad=0.03, h_pad=0.04
        )
        axes = figure.subplots(len(group.updates), len(group.kinds), squeeze=False, sharex=True, sharey="row")
        for row, update in zip(axes, group.updates, strict=True):
            removed = group.values("removed")[group.at(update)]
            for ax, kind in zip(row, group.kinds, strict=True):
                if "control_removed" in group.data:
                    draws = group.values("control_removed")[group.at(update)][..., group.of_kind(kind)]
                    low, high = np.quantile(draws.mean(axis=-1), [0.025, 0.975])
                    ax.axhspan(low, high, color="#c9ced6", linewidth=0, zorder=0)
                found = [group.estimate(values, kind) for values in removed]
                x, y = np.r_[0, alphas], np.r_[0, [e.value for e in found]]
                (line,) = ax.plot(x, y, color=colours[update], marker="o", markersize=3)
                ends = np.array([[e.low for e in found], [e.high for e in found]])
                ax.vlines(alphas, *ends, color=colours[update])
                note(line, n=found[0].n, interval=np.pad(ends, ((0, 0), (1, 0))))  # 0 removed: no effect
                ax.axhline(0, color=theme.MUTED, linewidth=0.6)
                ax.set_title(f"{update} removed · {kind}", pad=3)
            row[0].set_ylabel(short(group.unit), labelpad=2)
        for ax in axes[-1]:
            ax.set_xlabel("share removed", labelpad=2)
        theme.heading(figure, f"{group.family}  ·  {group.name}")
    return figure


def cumulative(groups: Sequence) -> Iterator[Drawing]:
    """Yield, for each behaviour, its values as each update is put in part by part."""
    for group in of_type(groups, Effects):
        if "cumulative" not in group.data:
            continue
        yield Drawing(
            name=f"stages/{group.name}/cumulative",
            heading=f"An update put in part by part: {group.name}",
            caption=(
                f"{group.incomplete}{group.family}, {group.name} ({group.unit}): mean over prompts, n = "
                f"{_counts(group)}, with the update of the first parts (from below) or of the last ones (from above) "
                "only; parts are the embeddings, attention and MLP of every block, and final norm with unembedding. "
                f"Both begin at the stage before and end at the stage itself. {group.untrained_template}Not normalised."
            ),
            alt=f"Lines of {group.name} as the update of each stage is put in part by part.",
            figure=_draw_cumulative(group),
            complete=group.complete,
        )


def _draw_cumulative(group: Effects) -> Figure:
    with theme.look():
        figure = theme.new_figure(
            0.5 + 2.2 * len(group.kinds), 0.9 + 1.6 * len(group.updates), w_pad=0.03, h_pad=0.04
        )
        axes = figure.subplots(len(group.updates), len(group.kinds), squeeze=False, sharex=True)
        for row, update in zip(axes, group.updates, strict=True):
            values = group.values("cumulative")[group.at(update)]
            for ax, kind in zip(row, group.kinds, strict=True):
                for o, order in enumerate(map(str, group.data["order"].values)):
                    prompts = values[o][:, group.of_kind(kind)]
                    (line,) = ax.plot(
                        prompts.mean(axis=1), color=ORDER_COLOURS[order], label=f"from {order}", linewidth=1.2
                    )
                    note(
                        line,
                        name=f"from {order}",
                        n=prompts.shape[1],
                        interval=partial(mean_interval, prompts.T),
                    )
                ax.set_title(f"{update} · {kind}", pad=3)
            row[0].set_ylabel(short(group.unit), labelpad=2)
        for ax in axes[-1]:
            ax.set_xlabel("parts put in", labelpad=2)
            theme.whole_numbers(ax.xaxis)
        axes[0, 0].legend()
        theme.heading(figure, f"{group.family}  ·  {group.name}")
    return figure


def _counts(group: Effects) -> str:
    return " + ".join(f"{int(group.of_kind(kind).sum())} {kind}" for kind in group.kinds)
