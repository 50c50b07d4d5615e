"""Dot figure of intervention effects compared with random directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED, Bootstrap, middle_range
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, effect, parted, steered_sets
from posttrace.figures.studies.truthfulness.panels import gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def effects_against_random(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/effects`: own and transferred directions compared with random ones."""
    summary, sets = parted(groups)
    names = steered_sets(summary, sets) if summary else []
    if summary is None or not names:
        return
    found = {name: effect(sets[name]) for name in names}
    controls, base = sets[names[0]].controls, summary.stages[0]
    spans = ", ".join(f"{name} {summary.span(name)} (n = {found[name].n})" for name in names)
    yield Drawing(
        name="truthfulness/effects",
        heading="Intervention effects compared with random directions",
        caption=(
            f"{summary.family}: share of the distance to certainty of the opposite answer, mean of both directions, "
            f"coefficient {summary.coefficient:g}. Filled: the stage's own direction with its {CONFIDENCE:.0%} "
            f"percentile interval over statements ({RESAMPLES} resamples, seed {SEED}, true and false statements drawn "
            f"separately); open: {base}'s direction; grey: {len(controls)} random directions with the norm of the "
            "stage's own (a transferred one keeps its own norm); the bar covers 95 % of them. A marker within the bar "
            f"is the effect of steering with that norm, not of the direction. Blocks steered, {summary.chosen}: "
            f"{spans}.{gaps(summary, names)}"
        ),
        alt=(
            "Dots of intervention effects for every set, one panel for each stage, over the range of random "
            "directions."
        ),
        figure=_draw_effects(summary, found, controls),
        complete=len(names) == len(summary.sets),
    )


def _draw_effects(summary: Summary, found: dict[str, Bootstrap], controls: Sequence[int]) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    rows = np.arange(len(found))
    with theme.look():
        figure = theme.new_figure(max(4.0, 1.1 + 1.75 * len(summary.stages)), 0.9 + 0.24 * len(found))
        axes = np.atleast_1d(figure.subplots(1, len(summary.stages), sharex=True, sharey=True))
        for t, (ax, stage) in enumerate(zip(axes, summary.stages, strict=True)):
            for row, drawn in zip(rows, found.values(), strict=True):
                both, (low, high) = drawn.value[0, :, t], drawn.interval[:, 0, :, t]
                random = middle_range(both[controls])
                ax.plot(
                    [random.low, random.high],
                    [row, row],
                    color=theme.GUIDE,
                    linewidth=5,
                    solid_capstyle="butt",
                    zorder=1,
                )
                (ticks,) = ax.plot(
                    both[controls],
                    np.full(len(controls), row),
                    "|",
                    color=theme.MUTED,
                    markersize=4,
                    zorder=2,
                )
                names = [summary.directions[i] for i in controls]
                note(ticks, name=names, n=drawn.n, interval=[low[controls], high[controls]])
                own, first = (summary.directions.index(name) for name in (stage, base))
                ax.hlines(row - 0.2, low[own], high[own], color=colours[stage], linewidth=0.9, zorder=3)
                dots = ax.plot(both[own], row - 0.2, "o", color=colours[stage], markersize=4, zorder=4)
                if stage != base:
                    dots += ax.plot(both[first], row + 0.2, "o", markerfacecolor="white",
                                    markeredgecolor=colours[base], markersize=4, zorder=4)  # fmt: skip
                for dot, i in zip(dots, (own, first), strict=False):
                    name = f"{summary.directions[i]}'s direction"
                    note(dot, name=name, n=drawn.n, interval=[low[[i]], high[[i]]])
            ax.axvline(0, color=theme.GUIDE, linewidth=0.6, zorder=0)
            ax.set_title(f"into {stage}", pad=3)
            ax.set_xlabel("effect", labelpad=2)
        axes[0].set_yticks(rows, list(found))
        axes[0].set_ylim(len(found) - 0.5, -0.5)
        _legend(figure, base)
        theme.heading(figure, f"{summary.family}: intervention effects")
    return figure


def _legend(figure: Figure, base: str) -> None:
    own = theme.key(color=theme.INK, label="own direction", linestyle="", marker="o", markersize=4)
    transferred = theme.key(
        markerfacecolor="white",
        markeredgecolor=theme.INK,
        label=f"{base}'s direction",
        linestyle="",
        marker="o",
        markersize=4,
    )
    handles = [own, transferred, theme.key(color=theme.GUIDE, linewidth=5, label="random directions, 95 %")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
