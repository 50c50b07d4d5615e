"""Point figures of the truthfulness study: activations seen along the direction, and effects beside random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.statistics import CONFIDENCE, RESAMPLES, SEED
from posttrace.figures.truthfulness.measures import Drawn, control_range, effect, pushed_sets
from posttrace.figures.truthfulness.source import StatementSet, Summary, parted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {True: ("true", "#d1752b", "o"), False: ("false", "#2a7fa8", "x")}
"""Whether a statement is true -> word, colour and marker."""


def projections(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield, per set, its activations along the first stage's direction and their widest spread beside it.

    Example
    -------
    >>> [drawing.name for drawing in projections(groups)][0]
    'truthfulness/cities/projection'
    """
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
            f"truthfulness/{name}/projection",
            "Activations along the truth direction",
            f"{summary.family}, {name}: last-token activations behind block {summary.layers[layer]}, each stage "
            f"centred on its own mean. Across: projection on {base}'s direction, learned without this set (model "
            "units); up: first principal component of what is left, of all stages together. "
            f"n = {n} statements{'' if n == planned else f' of {planned}, INCOMPLETE'} in every stage.",
            f"Scatter plots of activations of {name}, true and false statements, one panel for each stage.",
            _draw_projection(summary, one, layer),
            n == planned,
        )


def effects_beside_random(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield the intervention effects of own and transferred directions beside those of random directions.

    Example
    -------
    >>> [drawing.name for drawing in effects_beside_random(groups)]
    ['truthfulness/effects']
    """
    summary, sets = parted(groups)
    names = pushed_sets(summary, sets) if summary else []
    if not names:
        return
    found = {name: effect(sets[name]) for name in names}
    controls, base = sets[names[0]].controls, summary.stages[0]
    spans = ", ".join(f"{name} {summary.span(name)} (n = {found[name].n})" for name in names)
    lacking = [name for name in summary.sets if name not in names]
    yield Drawing(
        "truthfulness/effects",
        "Intervention effects beside random directions",
        f"{summary.family}: share of the way to certainty of the opposite answer, mean of both directions, coefficient "
        f"{summary.coefficient:g}. Filled: the stage's own direction with its {CONFIDENCE:.0%} percentile interval "
        f"over statements ({RESAMPLES} resamples, seed {SEED}, true and false ones drawn apart); open: {base}'s "
        f"direction; grey: {len(controls)} random directions with the norm of the stage's own (a transferred one keeps "
        "its own), the bar holds 95 % of them. A marker within the bar is the effect of a push, not of its direction. "
        f"Blocks pushed, {summary.chosen}: {spans}."
        f"{' INCOMPLETE: nothing yet for ' + ', '.join(lacking) + '.' if lacking else ''}",
        "Dots of intervention effects for every set, one panel for each stage, over the range of random directions.",
        _draw_effects(summary, found, controls),
        not lacking,
    )


def _draw_projection(summary: Summary, one: StatementSet, layer: int) -> Figure:
    h = one.activations(layer)[:, one.read]
    h = h - h.mean(axis=1, keepdims=True)
    across = summary.values("direction")[0, summary.sets.index(one.name), layer].astype(np.float64)
    across = across / np.linalg.norm(across)
    x = h @ across
    rest = h - x[..., None] * across
    _, _, axes_of_rest = np.linalg.svd(rest.reshape(-1, h.shape[-1]), full_matrices=False)
    up = axes_of_rest[0] * np.sign(
        axes_of_rest[0][np.abs(axes_of_rest[0]).argmax()]
    )  # else its sign is chance
    y, truth = rest @ up, one.truth[one.read]
    with theme.look():
        figure = theme.new_figure(max(3.0, 0.5 + 1.75 * len(one.stages)), 2.35)
        axes = np.atleast_1d(figure.subplots(1, len(one.stages), sharex=True, sharey=True))
        for m, (ax, stage) in enumerate(zip(axes, one.stages, strict=True)):
            for label, (word, colour, marker) in LABELS.items():
                some = truth == label
                # Crosses have no edge to colour, circles no face, so that points behind points stay visible.
                style = {"color": colour} if marker == "x" else {"facecolors": "none", "edgecolors": colour}
                ax.scatter(
                    x[m, some],
                    y[m, some],
                    s=9,
                    marker=marker,
                    label=word,
                    alpha=0.75,
                    linewidths=0.8,
                    **style,
                )
            ax.axvline(0, color="#c3c8cf", linewidth=0.6, zorder=0)
            ax.set_title(stage, pad=3)
            ax.set_xlabel(f"along {summary.stages[0]}'s direction", labelpad=2)
        axes[0].set_ylabel("widest spread beside it")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        title = f"{summary.family}, {one.name}: layer {summary.layers[layer]}"
        figure.suptitle(title, x=0.008, ha="left", fontsize=8)
    return figure


def _draw_effects(summary: Summary, found: dict[str, Drawn], controls: Sequence[int]) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    rows = np.arange(len(found))
    with theme.look():
        figure = theme.new_figure(max(4.0, 1.1 + 1.75 * len(summary.stages)), 0.9 + 0.24 * len(found))
        axes = np.atleast_1d(figure.subplots(1, len(summary.stages), sharex=True, sharey=True))
        for t, (ax, stage) in enumerate(zip(axes, summary.stages, strict=True)):
            for row, drawn in zip(rows, found.values(), strict=True):
                both, (low, high) = drawn.value[0, :, t], drawn.interval[:, 0, :, t]
                _, bottom, top = control_range(both[controls])
                ax.plot(
                    [bottom, top], [row, row], color="#c3c8cf", linewidth=5, solid_capstyle="butt", zorder=1
                )
                ax.plot(
                    both[controls],
                    np.full(len(controls), row),
                    "|",
                    color=theme.MUTED,
                    markersize=4,
                    zorder=2,
                )
                own = summary.directions.index(stage)
                ax.plot(
                    [low[own], high[own]],
                    [row - 0.2, row - 0.2],
                    color=colours[stage],
                    linewidth=0.9,
                    zorder=3,
                )
                ax.plot(both[own], row - 0.2, "o", color=colours[stage], markersize=4, zorder=4)
                if stage != base:
                    ax.plot(both[summary.directions.index(base)], row + 0.2, "o", markerfacecolor="white",
                            markeredgecolor=colours[base], markersize=4, zorder=4)  # fmt: skip
            ax.axvline(0, color="#c3c8cf", linewidth=0.6, zorder=0)
            ax.set_title(f"into {stage}", pad=3)
            ax.set_xlabel("effect", labelpad=2)
        axes[0].set_yticks(rows, list(found))
        axes[0].set_ylim(len(found) - 0.5, -0.5)
        _legend(figure, base)
        figure.suptitle(f"{summary.family}: intervention effects", x=0.008, ha="left", fontsize=8)
    return figure


def _legend(figure: Figure, base: str) -> None:
    from matplotlib.lines import Line2D

    dot = {"linestyle": "", "marker": "o", "markersize": 4}
    handles = [
        Line2D([], [], color=theme.INK, label="own direction", **dot),
        Line2D(
            [], [], markerfacecolor="white", markeredgecolor=theme.INK, label=f"{base}'s direction", **dot
        ),
        Line2D([], [], color="#c3c8cf", linewidth=5, label="random directions, 95 %"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
