"""Figure of reliability curves of each stage's answers.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.calibration import bins_of
from posttrace.figures.measures.intervals import CONFIDENCE, wilson
from posttrace.figures.studies.confidence.data import Answers
from posttrace.figures.studies.confidence.tables import BINS_IN_WORDS, POOLED, lacking, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FEW = 5
"""Bins with fewer statements are drawn as rings, without interval and line."""


def reliability(groups: Sequence) -> Iterator[Drawing]:
    """Yield `confidence/answers/reliability`: a panel for each set and one for all together, a line for each stage."""
    sets = of_type(groups, Answers)
    if not sets:
        return
    caption = (
        f"{sets[0].family}: share of right answers against mean confidence, {BINS_IN_WORDS}; a point is a bin, its "
        f"area grows with its number of statements; rings are bins with fewer than {FEW}, which the lines skip. Bars: "
        f"{CONFIDENCE:.0%} Wilson intervals. On the grey line a stage is right as often as it is confident, below it "
        f"the stage is overconfident. n: statements, the same for all stages. Empty bins are left out.{lacking(sets)}"
    )
    yield Drawing(
        name="confidence/answers/reliability",
        heading="Reliability curves",
        caption=caption,
        alt=(
            f"Accuracy against confidence for {', '.join(a.name for a in sets)}, a line for each of the stages "
            f"{', '.join(sets[0].stages)}."
        ),
        figure=_draw(sets),
        complete=all(answers.complete for answers in sets),
    )


def _draw(sets: Sequence[Answers]) -> Figure:
    stages = sets[0].stages
    panels = [(a.name, {s: a.judged(s) for s in stages}) for a in sets]
    if len(sets) > 1:
        panels.append((POOLED, {s: pooled(sets, s) for s in stages}))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    colours = theme.stage_colours(stages)
    with theme.look():
        figure = theme.new_figure(
            0.5 + 1.75 * columns, 0.75 + 1.65 * rows, w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.04
        )
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (name, judged) in zip(axes.flat, panels, strict=False):
            n = len(next(iter(judged.values())).right)
            ax.set_title(
                f"{name}  ·  n = {n}", pad=3, fontsize=6.5, fontweight="bold" if name == POOLED else "normal"
            )
            ax.plot([0.5, 1], [0.5, 1], color=theme.GUIDE, linewidth=0.8, zorder=0)
            for i, stage in enumerate(stages):
                _curve(ax, *judged[stage], colours[stage], stage, shift=0.006 * (i - (len(stages) - 1) / 2))
            ax.set(xlim=(0.48, 1.03), ylim=(-0.04, 1.06), xticks=[0.5, 0.75, 1], yticks=[0, 0.5, 1])
        # A panel with none below it has the labels of its column.
        for i, ax in enumerate(axes.flat[: len(panels)]):
            if i + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel("mean confidence", labelpad=2)
        figure.supylabel("share of right answers", fontsize=7)
        theme.heading(figure, "reliability of the answers TRUE and FALSE")
        _legend(figure, colours)
    return figure


def _curve(
    ax: Axes, confidence: np.ndarray, right: np.ndarray, colour: str, stage: str, *, shift: float
) -> None:
    """Draw a point for each bin with statements; the shift keeps stages apart."""
    which = bins_of(confidence)
    filled = np.unique(which)
    counts = np.array([(which == b).sum() for b in filled])
    means = np.array([confidence[which == b].mean() for b in filled])
    x = means + shift
    y = np.array([right[which == b].mean() for b in filled])
    low, high = wilson(y, counts)
    enough = counts >= FEW
    note(ax.plot(x[enough], y[enough], color=colour, linewidth=1.0)[0], guide=True)
    ax.vlines(x[enough], low[enough], high[enough], color=colour, linewidth=0.6, alpha=0.6)
    # A handful of statements says next to nothing: a faint ring instead of a bar from end to end.
    rings = ax.scatter(
        x[~enough], y[~enough], s=7, facecolors="none", edgecolors=colour, linewidths=0.5, alpha=0.6
    )
    size = 4 + 26 * counts[enough] / counts.sum()
    dots = ax.scatter(x[enough], y[enough], s=size, color=colour, linewidths=0, zorder=3)
    for marks, kept in ((rings, ~enough), (dots, enough)):
        ends = [low[kept], high[kept]]
        note(marks, name=stage, n=counts[kept], interval=ends, at=means[kept])


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    handles = [theme.key(color=c, marker="o", markersize=3, label=stage) for stage, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
