"""Line figure of the cosine of the stages' truth directions, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, parted
from posttrace.figures.studies.truthfulness.panels import family, gaps, layer_axis, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cosine_by_layer(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/cosine`: the cosine of the directions of every two stages, by layer."""
    summary, _ = parted(groups)
    if summary is None or len(summary.stages) < 2 or not summary.learned.any():
        return
    names = [name for name, done in zip(summary.sets, summary.learned, strict=True) if done]
    yield Drawing(
        name="truthfulness/cosine",
        heading="Cosine of truth directions by layer",
        caption=(
            f"{family(summary)}cosine of the angle between the directions mean(h | true) − mean(h | false) of two "
            f"stages, each learned on all sets but one: line, mean over the {len(names)} held-out sets; band, lowest "
            f"to highest. Unrelated directions would have a cosine near 0.{gaps(summary, names)}"
        ),
        alt="Lines of the cosine between the truth directions of two stages over layers.",
        figure=_draw_cosine(summary),
        complete=len(names) == len(summary.sets),
    )


def _draw_cosine(summary: Summary) -> Figure:
    values = summary.array("cosine")[:, :, summary.learned].astype(np.float64)
    with theme.look():
        figure = theme.new_figure(3.6, 2.3)
        ax = figure.subplots()
        for i, (a, b) in enumerate(combinations(range(len(summary.stages)), 2)):
            colour = theme.STAGE_COLOURS[i % len(theme.STAGE_COLOURS)]
            some = values[a, b]
            ax.fill_between(summary.layers, some.min(0), some.max(0), color=colour, alpha=0.15, linewidth=0)
            label = f"{summary.stages[a]}, {summary.stages[b]}"
            width = max(2.4 - 0.7 * i, 0.9)
            (line,) = ax.plot(summary.layers, some.mean(0), color=colour, linewidth=width, label=label)
            name = f"{label}: mean, lowest and highest of {len(some)} sets"
            note(line, name=name, interval=[some.min(0), some.max(0)])
        lowest = float(values.min())
        ax.set_ylim(min(0.0, lowest - 0.05) if lowest < 0.5 else np.floor(20 * lowest - 1) / 20, 1.005)
        ax.set_ylabel("cosine")
        ax.set_xlabel("layer", labelpad=2)
        layer_axis(ax, summary)
        ax.legend(loc="lower right")
        theme.heading(figure, title(summary, "truth directions of two stages"))
    return figure
