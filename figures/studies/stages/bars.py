"""Bars of the effect of every stage on every behaviour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.hover import note
from posttrace.figures.studies.stages.data import Effects
from posttrace.figures.studies.stages.tables import INTERVALS, incomplete, measured, template

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def credit(groups: Sequence) -> Iterator[Drawing]:
    """Yield the bars of all behaviours, a panel for each."""
    chosen = of_type(groups, Effects)
    if not chosen:
        return
    sizes = ", ".join(f"{group.name} {len(group.prompts)}" for group in chosen)
    yield Drawing(
        name="stages/credit",
        heading="Effects of the stages",
        caption=(
            f"{incomplete(chosen)}{chosen[0].family}: mean of f(stage) - f(stage "
            f"before) over prompts (n: {sizes}), by kind of prompt, in each panel's own unit; not normalised. Bars of "
            f"one kind sum to the difference of the last and the first stage. {measured(chosen)}{template(chosen)}"
            f"Lines: {INTERVALS}."
        ),
        alt="Bars of the mean effect of every stage on every behaviour.",
        figure=_draw(chosen),
        complete=all(group.complete for group in chosen),
    )


def _draw(groups: Sequence[Effects]) -> Figure:
    colours = theme.stage_colours(groups[0].stages)
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    with theme.look():
        figure = theme.new_figure(0.5 + 1.75 * columns, 0.6 + 1.8 * rows, w_pad=0.03, h_pad=0.04, wspace=0.04)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, group in zip(axes, groups, strict=False):
            width = 0.8 / len(group.updates)
            for u, update in enumerate(group.updates):
                found = [group.estimate(group.effect(update), kind) for kind in group.kinds]
                x = np.arange(len(found)) + (u - (len(group.updates) - 1) / 2) * width
                bars = ax.bar(
                    x, [e.value for e in found], width=0.9 * width, color=colours[update], label=update
                )
                ends = [e.low for e in found], [e.high for e in found]
                ax.vlines(x, *ends, color=theme.INK, linewidth=0.8)
                note(bars, name=update, n=[e.n for e in found], interval=ends)
            ax.axhline(0, color=theme.MUTED, linewidth=0.6)
            ax.set_xticks(range(len(group.kinds)), group.kinds)
            ax.set_title(group.name, pad=3)
            ax.set_ylabel(short(group.unit), labelpad=2)
        for ax in axes[len(groups) :]:
            ax.set_axis_off()
        axes[0].legend()
        theme.heading(figure, f"{groups[0].family}  ·  effect of every stage")
    return figure


def short(unit: str) -> str:
    """Return the beginning of a unit's words, as an axis has room for.

    Example
    -------
    >>> short("log-odds, nats: log P(refusal opening) - log P(compliant opening)")
    'log-odds, nats'
    """
    return unit.split(":")[0].split(", nats,")[0][:40]
