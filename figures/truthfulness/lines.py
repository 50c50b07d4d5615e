"""Line figures of the truthfulness study: accuracy and cosine by layer, effect by coefficient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.statistics import CONFIDENCE, RESAMPLES, SEED
from posttrace.figures.truthfulness.measures import Drawn, accuracy, effect, mean_of, pushed_sets, tested_sets
from posttrace.figures.truthfulness.source import StatementSet, Summary, parted
from posttrace.figures.truthfulness.tables import MEAN, PROBES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Panels in a row."""


def accuracy_by_layer(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield, per kind of probe, the accuracy on each held-out set by layer, own probe and base's.

    Example
    -------
    >>> [drawing.name for drawing in accuracy_by_layer(groups)][0]
    'truthfulness/accuracy_mass_mean'
    """
    summary, sets = parted(groups)
    names = tested_sets(summary, sets) if summary else []
    if not names:
        return
    found = {name: accuracy(sets[name]) for name in names}
    found[MEAN] = mean_of([found[name] for name in names])
    for k, probe in enumerate(summary.probes):
        kind = PROBES.get(probe, probe)
        yield Drawing(
            f"truthfulness/accuracy_{probe}",
            f"Accuracy by layer, {kind}",
            f"{family(summary)}share of statements of the set left out that a probe ({kind}) trained on the other "
            f"sets judges right, by layer. Solid: the stage's own probe, with its {CONFIDENCE:.0%} percentile interval "
            f"over statements ({RESAMPLES} resamples, seed {SEED}); dashed: {summary.stages[0]}'s probe on the stage. "
            "Vertical line: the layer chosen without the set. Horizontal line: guessing. "
            f"{_counts(found)}{gaps(summary, names)}",
            f"Lines of probe accuracy over layers, one panel for each of {len(names)} sets and one for their mean.",
            _draw_accuracy(summary, found, k, kind),
            len(names) == len(summary.sets),
        )


def cosine_by_layer(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield the cosine of the directions of every two stages, by layer.

    Example
    -------
    >>> [drawing.name for drawing in cosine_by_layer(groups)]
    ['truthfulness/cosine']
    """
    summary, _ = parted(groups)
    if summary is None or len(summary.stages) < 2 or not summary.learned.any():
        return
    names = [name for name, done in zip(summary.sets, summary.learned, strict=True) if done]
    yield Drawing(
        "truthfulness/cosine",
        "Cosine of truth directions by layer",
        f"{family(summary)}cosine of the angle between the directions mean(h | true) − mean(h | false) of two stages, "
        f"each learned on all sets but one: line, mean over the {len(names)} sets left out; band, lowest to highest. "
        f"Directions of unrelated origin would have a cosine near 0.{gaps(summary, names)}",
        "Lines of the cosine between the truth directions of two stages over layers.",
        _draw_cosine(summary),
        len(names) == len(summary.sets),
    )


def effect_by_coefficient(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield the effect of interventions by coefficient, where a job asked for several.

    Example
    -------
    >>> [drawing.name for drawing in effect_by_coefficient(groups)]
    []
    """
    summary, sets = parted(groups)
    names = pushed_sets(summary, sets) if summary else []
    if not names or "effect_coefficient" not in summary.data:
        return
    coefficients = [float(c) for c in summary.data["coefficient"].values]
    found = []
    for c in range(len(coefficients)):
        found.append(mean_of([effect(sets[n], sets[n].values("p_diff_coefficient")[c]) for n in names]))
    yield Drawing(
        "truthfulness/coefficients",
        "Effect by coefficient",
        f"{family(summary)}intervention effect, mean of both directions and over {len(names)} sets, by the factor of "
        f"the direction: the stage's own (solid, {CONFIDENCE:.0%} interval over statements), {summary.stages[0]}'s "
        "(dashed) and random directions of the same norm (grey: median and 95 % range). "
        f"n = {found[0].n} statements.{gaps(summary, names)}",
        "Lines of the intervention effect over coefficients, one panel for each stage.",
        _draw_coefficients(summary, coefficients, found, sets[names[0]].controls),
        len(names) == len(summary.sets),
    )


def _draw_accuracy(summary: Summary, found: dict[str, Drawn], k: int, kind: str) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    with theme.look():
        figure, axes = _panels(len(found), 1.35)
        for ax, (name, drawn) in zip(axes, found.items(), strict=True):
            low, high = drawn.interval[:, k]
            for s, stage in enumerate(summary.stages):
                ax.fill_between(
                    summary.layers, low[s, s], high[s, s], color=colours[stage], alpha=0.13, linewidth=0
                )
                ax.plot(
                    summary.layers,
                    drawn.value[k, s, s],
                    color=colours[stage],
                    linewidth=max(2.4 - 0.7 * s, 0.9),
                )
                if stage != base:
                    ax.plot(summary.layers, drawn.value[k, 0, s], color=colours[stage], linewidth=0.9,
                            linestyle=(3.0 * s, (3, 3)), zorder=3)  # fmt: skip
            if name != MEAN:
                ax.axvline(
                    summary.layers[summary.layer(name)], color=theme.MUTED, linewidth=0.6, linestyle=":"
                )
            ax.axhline(0.5, color="#c3c8cf", linewidth=0.6, zorder=0)
            ax.set_title(f"{name} (n = {drawn.n})", pad=3, fontweight="bold" if name == MEAN else "normal")
            ax.set_ylim(min(0.4, float(low.min())), 1.02)
            layer_axis(ax, summary)
        _label_outer(axes, "accuracy", "layer")
        figure.suptitle(
            title(summary, f"{kind}: accuracy on the set left out"), x=0.008, ha="left", fontsize=8
        )
        _stage_legend(figure, summary, colours, f"{base}'s probe")
    return figure


def _draw_cosine(summary: Summary) -> Figure:
    values = summary.values("cosine")[:, :, summary.learned].astype(np.float64)
    with theme.look():
        figure = theme.new_figure(3.6, 2.3)
        ax = figure.subplots()
        for i, (a, b) in enumerate(combinations(range(len(summary.stages)), 2)):
            colour = theme.STAGE_COLOURS[i % len(theme.STAGE_COLOURS)]
            some = values[a, b]
            ax.fill_between(summary.layers, some.min(0), some.max(0), color=colour, alpha=0.15, linewidth=0)
            ax.plot(summary.layers, some.mean(0), color=colour, linewidth=max(2.4 - 0.7 * i, 0.9),
                    label=f"{summary.stages[a]}, {summary.stages[b]}")  # fmt: skip
        lowest = float(values.min())
        ax.set_ylim(min(0.0, lowest - 0.05) if lowest < 0.5 else np.floor(20 * lowest - 1) / 20, 1.005)
        ax.set_ylabel("cosine")
        ax.set_xlabel("layer", labelpad=2)
        layer_axis(ax, summary)
        ax.legend(loc="lower right")
        figure.suptitle(title(summary, "truth directions of two stages"), x=0.008, ha="left", fontsize=8)
    return figure


def _draw_coefficients(summary: Summary, coefficients, found: Sequence[Drawn], controls) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    both = np.stack([one.value[0] for one in found])  # coefficient x direction x target
    ends = np.stack([one.interval[:, 0] for one in found])
    with theme.look():
        figure, axes = _panels(len(summary.stages), 1.6, columns=len(summary.stages))
        for t, (ax, stage) in enumerate(zip(axes, summary.stages, strict=True)):
            random = both[:, controls, t]
            low, high = np.quantile(random, [0.025, 0.975], axis=1)
            ax.fill_between(coefficients, low, high, color=theme.MUTED, alpha=0.25, linewidth=0)
            ax.plot(coefficients, np.median(random, axis=1), color=theme.MUTED, linewidth=0.9)
            own = summary.directions.index(stage)
            ax.fill_between(coefficients, ends[:, 0, own, t], ends[:, 1, own, t], color=colours[stage], alpha=0.15,
                            linewidth=0)  # fmt: skip
            ax.plot(coefficients, both[:, own, t], "o-", markersize=3, color=colours[stage])
            if stage != base:
                ax.plot(coefficients, both[:, summary.directions.index(base), t], color=colours[stage],
                        linestyle=(0, (3, 3)), linewidth=0.9)  # fmt: skip
            ax.axhline(0, color="#c3c8cf", linewidth=0.6, zorder=0)
            ax.set_title(f"into {stage}", pad=3)
        _label_outer(axes, "effect", "coefficient")
        figure.suptitle(title(summary, "intervention effect by coefficient"), x=0.008, ha="left", fontsize=8)
        _stage_legend(figure, summary, colours, f"{base}'s direction", random=True)
    return figure


def _panels(n: int, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure with n panels that share their axes, filled row by row."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = theme.new_figure(max(3.4, 0.5 + 1.6 * columns), 0.75 + height * rows)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for empty in axes.flat[n:]:
        empty.set_visible(False)
    for column in range(columns):
        last = (n - 1 - column) // columns
        axes[last, column].tick_params(labelbottom=True)
    return figure, list(axes.flat[:n])


def _label_outer(axes: Sequence[Axes], y: str, x: str) -> None:
    columns = axes[0].get_subplotspec().get_gridspec().ncols
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel(y)
        if i + columns >= len(axes):
            ax.set_xlabel(x, labelpad=2)


def layer_axis(ax: Axes, summary: Summary) -> None:
    """Number the layers along the horizontal axis."""
    ax.set_xlim(summary.layers[0] - 0.2, summary.layers[-1] + 0.2)
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=8)


def _stage_legend(figure: Figure, summary: Summary, colours, transferred: str, random: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[stage], label=f"{stage}, own") for stage in summary.stages]
    if len(summary.stages) > 1:
        handles.append(
            Line2D([], [], color=theme.MUTED, linestyle=(0, (3, 3)), linewidth=0.9, label=transferred)
        )
    if random:
        handles.append(Line2D([], [], color=theme.MUTED, linewidth=4, alpha=0.3, label="random directions"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), handlelength=2.4)


def title(summary: Summary, what: str) -> str:
    """Return the line above a figure."""
    return f"{summary.family}: {what}" if summary.family else what


def family(summary: Summary) -> str:
    """Return the beginning of a caption."""
    return f"{summary.family}: " if summary.family else ""


def _counts(found: dict[str, Drawn]) -> str:
    return (
        "n = " + ", ".join(f"{one.n} {name}" for name, one in found.items() if name != MEAN) + " statements."
    )


def gaps(summary: Summary, names: Sequence[str]) -> str:
    """Return what a caption says of sets that are not there yet."""
    lacking = [name for name in summary.sets if name not in names]
    return f" INCOMPLETE: nothing yet for {', '.join(lacking)}." if lacking else ""
