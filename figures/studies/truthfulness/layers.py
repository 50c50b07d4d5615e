"""Line figure of the criteria for choosing the layers, on the training sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, parted
from posttrace.figures.studies.truthfulness.panels import family, layer_axis, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = (0, (3, 2))
"""Line style of random directions."""

COLUMNS = 3
"""Panels of interventions per row."""


def choice_of_layers(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/layers`: accuracy and intervention effects on the training sets, which chose the layers."""
    summary, _ = parted(groups)
    if summary is None or not summary.learned.any():
        return
    base = summary.stages[0]
    tried = "sweep_effect" in summary.data and bool(np.isfinite(summary.array("sweep_effect")).any())
    n = summary.data.attrs.get("sweep_random_directions", "")
    effects = (
        " Right, a panel for each held-out set: effect of steering from a block to the probe layer on some training "
        f"statements, along {base}'s own direction (line; the dot is its largest value, at the chosen block) and "
        f"along {n} random directions of the same norm (dashed: mean; band: up to the highest). If the line lies "
        "within or below the band, the effect is not specific to the direction, wherever the dot is."
        if tried
        else " The blocks to steer were given."
    )
    yield Drawing(
        name="truthfulness/layers",
        heading="Choice of layers on the training sets",
        caption=(
            f"{family(summary)}Left: accuracy of the mass-mean probe in {base} within the training sets, each held "
            "out in turn, a line for each set that the study holds out; the dot is the layer used: the earliest that "
            "is not distinguishably worse than the best (95 % Wilson interval), unless "
            f"given.{effects} The held-out set influences neither."
        ),
        alt="Lines of training accuracy over layers, and of intervention effects over the first steered block.",
        figure=_draw_choice(summary, tried),
        complete=bool(summary.learned.all()),
    )


def _draw_choice(summary: Summary, tried: bool) -> Figure:
    from matplotlib.patches import Patch

    colours = [theme.STAGE_COLOURS[i % len(theme.STAGE_COLOURS)] for i in range(len(summary.sets))]
    columns = min(COLUMNS, len(summary.sets)) if tried else 0
    rows = -(-len(summary.sets) // columns) if tried else 1
    with theme.look():
        figure = theme.new_figure(
            3.6 if not tried else 2.9 + 1.5 * columns, 1.0 + 1.4 * max(rows, 1 + (not tried))
        )
        grid = figure.add_gridspec(rows, 1 + columns, width_ratios=[1.7, *[1] * columns])
        ax = figure.add_subplot(grid[:, 0])
        for h, name in enumerate(summary.sets):
            if not summary.learned[h]:
                continue
            shares = summary.array("sweep_accuracy")[0, h]
            ax.plot(summary.layers, shares, color=colours[h], linewidth=1.0, label=f"without {name}")
            place = summary.layer(name)
            ax.plot(summary.layers[place], shares[place], "o", color=colours[h], markersize=4)
        ax.set_ylabel("accuracy within training sets")
        ax.set_xlabel("layer", labelpad=2)
        layer_axis(ax, summary)
        handles, _ = ax.get_legend_handles_labels()
        shared = None
        for h in range(len(summary.sets) if tried else 0):
            row, column = divmod(h, columns)
            shared = figure.add_subplot(grid[row, 1 + column], sharex=shared, sharey=shared)
            _draw_interventions(shared, summary, h, colours[h])
            lowest = h + columns >= len(summary.sets)
            shared.tick_params(labelleft=not column, labelbottom=lowest)
            shared.set_ylabel("" if column else "effect in training")
            shared.set_xlabel("first steered block" if lowest else "", labelpad=2)
        if tried:
            handles.append(theme.key(color=theme.MUTED, linestyle=DASHES, label="random, mean"))
            handles.append(Patch(color=theme.MUTED, alpha=0.25, linewidth=0, label="random, to the highest"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        theme.heading(figure, title(summary, "choice of layers"))
    return figure


def _draw_interventions(ax: Axes, summary: Summary, h: int, colour: str) -> None:
    """Draw effects by first block with one set held out: the learned direction and random ones."""
    names = ("sweep_effect", "sweep_effect_random", "sweep_effect_random_highest")
    own, mean, highest = (summary.array(name)[h] for name in names)
    ax.fill_between(summary.layers, mean, highest, color=theme.MUTED, alpha=0.25, linewidth=0)
    (line,) = ax.plot(summary.layers, mean, color=theme.MUTED, linewidth=0.9, linestyle=DASHES)
    note(line, name="mean and highest of the random directions", interval=[mean, highest])
    (line,) = ax.plot(summary.layers, own, color=colour, linewidth=1.2)
    note(line, name=f"{summary.stages[0]}'s direction")
    first = int(summary.array("intervene_layer")[h])
    if first in summary.layers and np.isfinite(own).any():
        ax.plot(first, own[summary.layers.index(first)], "o", color=colour, markersize=4)
    ax.axhline(0, color=theme.GUIDE, linewidth=0.6, zorder=0)
    ax.set_title(f"without {summary.sets[h]}", pad=3)
    layer_axis(ax, summary)
