"""Scatter figure of activations along the truth direction, by label and stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.axes import leading_axis
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, parted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LABELS = {True: ("true", "#d1752b", "o"), False: ("false", "#2a7fa8", "x")}
"""Whether a statement is true -> word, colour and marker."""


def projections(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/<set>/projection`: activations along the first stage's direction."""
    summary, sets = parted(groups)
    if summary is None:
        return
    for name, learned in zip(summary.sets, summary.learned, strict=True):
        one = sets.get(name)
        if one is None or not learned or not one.read.any():
            continue
        layer, base = summary.layer(name), summary.stages[0]
        n, planned = int(one.read.sum()), len(one.truth)
        yield Drawing(
            name=f"truthfulness/{name}/projection",
            heading="Activations along the truth direction",
            caption=(
                f"{summary.family}, {name}: last-token activations after block {summary.layers[layer]}, each stage "
                f"centred on its own mean. Across: projection on {base}'s direction, learned without this set (model "
                "units); up: first principal component of the remainder, over all stages together. "
                f"n = {n} statements{'' if n == planned else f' of {planned}, INCOMPLETE'} in every stage."
            ),
            alt=f"Scatter plots of activations of {name}, true and false statements, one panel for each stage.",
            figure=_draw_projection(summary, one, layer),
            complete=n == planned,
        )


def _draw_projection(summary: Summary, one: StatementSet, layer: int) -> Figure:
    h = one.activations(layer)[:, one.read]
    h = h - h.mean(axis=1, keepdims=True)
    across = summary.array("direction")[0, summary.sets.index(one.name), layer].astype(np.float64)
    across = across / np.linalg.norm(across)
    x = h @ across
    rest = h - x[..., None] * across
    up = leading_axis(rest.reshape(-1, h.shape[-1]))
    y, truth, texts = rest @ up, one.truth[one.read], one.data["text"].values[one.read]
    with theme.look():
        figure = theme.new_figure(max(3.0, 0.5 + 1.75 * len(one.stages)), 2.35)
        axes = np.atleast_1d(figure.subplots(1, len(one.stages), sharex=True, sharey=True))
        for m, (ax, stage) in enumerate(zip(axes, one.stages, strict=True)):
            for label, (word, colour, marker) in LABELS.items():
                some = truth == label
                # Circles are not filled, so that points under other points stay visible; crosses have no edge colour.
                style = {"color": colour} if marker == "x" else {"facecolors": "none", "edgecolors": colour}
                dots = ax.scatter(
                    x[m, some],
                    y[m, some],
                    s=9,
                    marker=marker,
                    label=word,
                    alpha=0.75,
                    linewidths=0.8,
                    **style,
                )
                note(dots, name=[f"{word}: {text}" for text in texts[some]])
            ax.axvline(0, color=theme.GUIDE, linewidth=0.6, zorder=0)
            ax.set_title(stage, pad=3)
            ax.set_xlabel(f"along {summary.stages[0]}'s direction", labelpad=2)
        axes[0].set_ylabel("main remaining component")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        title = f"{summary.family}, {one.name}: layer {summary.layers[layer]}"
        theme.heading(figure, title)
    return figure
