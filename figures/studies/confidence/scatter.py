"""Scatter figure of norm against LogitVar with marginal distributions, two stages side by side.

Source: Du et al. 2025 (arXiv 2504.02904), figure on entropy neurons; Gurnee et al. 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.entropy_neurons import top_by_norm
from posttrace.figures.studies.confidence.data import Neurons, StageNeurons

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN_BINS = 40


def scatter(groups: Sequence) -> Iterator[Drawing]:
    """Yield `confidence/neurons/scatter_<stages>` for the first stage and each other one, or for a single stage."""
    for neurons in of_type(groups, Neurons):
        first, *others = neurons.finished
        drawn: list[tuple[str, ...]] = [(first, other) for other in others] or [(first,)]
        for stages in drawn:
            shared = neurons.shared(*stages)
            linked = (
                f"Filled: candidates of both ({len(shared)}), linked; rings: candidates of this stage only."
                if len(stages) > 1
                else "Filled: the candidates."
            )
            caption = (
                f"{neurons.family}, layer {neurons.layer}: norm of the output vector (|w_out|) against LogitVar (log "
                f"scale) of all {neurons.norm.shape[1]} neurons, with the distribution of each. {linked} Dashed: the "
                f"lower end of the top {neurons.top_share:.0%} by norm, of which the {neurons.chosen.shape[1]} with "
                f"the smallest LogitVar are candidates. From the weights alone; both panels have the same axes."
            )
            yield Drawing(
                name=f"confidence/neurons/scatter_{'_'.join(stages)}",
                heading=f"Neurons of {' and '.join(stages)}",
                caption=caption,
                alt=f"Scatter of norm against LogitVar of the neurons of {' and '.join(stages)}, candidates marked.",
                figure=_draw(neurons, stages, shared),
                complete=neurons.complete,
            )


def _draw(neurons: Neurons, stages: Sequence[str], shared: np.ndarray) -> Figure:
    from matplotlib.patches import ConnectionPatch

    values = [neurons.of(stage) for stage in stages]
    norms = np.concatenate([one.norm for one in values])
    variances = np.concatenate([one.logit_var for one in values])
    variances = variances[variances > 0]
    x_limits = _widened(norms.min(), norms.max())
    y_limits = np.exp(_widened(np.log(variances.min()), np.log(variances.max())))
    colours = theme.stage_colours(neurons.stages)
    with theme.look():
        figure = theme.new_figure(
            0.4 + 3.1 * len(stages), 3.3, w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0
        )
        grid = figure.add_gridspec(
            2, 2 * len(stages), width_ratios=[5, 1] * len(stages), height_ratios=[1, 5]
        )
        mains = []
        for i, stage in enumerate(stages):
            main = figure.add_subplot(grid[1, 2 * i])
            above = figure.add_subplot(grid[0, 2 * i], sharex=main)
            right = figure.add_subplot(grid[1, 2 * i + 1], sharey=main)
            main.set(xlim=x_limits, ylim=y_limits, yscale="log")
            _plain_ticks(main)
            _panel(main, neurons, stage, shared, colours[stage])
            _marginals(above, right, neurons.of(stage), x_limits, y_limits, colours[stage])
            above.set_title(f"{stage}  ·  {len(neurons.of(stage).norm)} neurons", pad=3)
            main.set_xlabel("|w_out|, model units", labelpad=2)
            if i == 0:
                main.set_ylabel("LogitVar", labelpad=2)
            else:
                main.tick_params(labelleft=False, which="both")
            mains.append(main)
        if len(stages) > 1:
            for neuron in shared:
                ends = [(one.norm[neuron], one.logit_var[neuron]) for one in values]
                figure.add_artist(
                    ConnectionPatch(
                        ends[0],
                        ends[1],
                        "data",
                        "data",
                        axesA=mains[0],
                        axesB=mains[1],
                        color=theme.KEY,
                        linewidth=0.5,
                        alpha=0.55,
                        zorder=5,
                    )
                )
        words = f"{neurons.family}  ·  MLP of layer {neurons.layer}"
        if len(stages) > 1:
            words += f"  ·  {len(shared)} of {neurons.chosen.shape[1]} candidates shared"
        theme.heading(figure, words)
    return figure


def _panel(ax: Axes, neurons: Neurons, stage: str, shared: np.ndarray, colour: str) -> None:
    norm, logit_var, chosen = neurons.of(stage)
    # Large models have thousands of points: rasterised, the PDF stays small.
    dots = ax.scatter(norm, logit_var, s=5, color=colour, alpha=0.45, linewidths=0, rasterized=True)
    note(dots, name=[f"neuron {i}" for i in range(len(norm))])
    threshold = norm[top_by_norm(norm, neurons.top_share)].min()
    ax.axvline(threshold, color=theme.MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    both = np.isin(chosen, shared)
    shown, own = chosen[both], chosen[~both]
    dots = ax.scatter(norm[shown], logit_var[shown], s=20, color=theme.KEY, linewidths=0, zorder=6)
    note(dots, name=[f"neuron {i}, candidate" for i in shown])
    dots = ax.scatter(norm[own], logit_var[own], s=18, facecolors="none", edgecolors=theme.KEY,
                      linewidths=0.9, zorder=6)  # fmt: skip
    note(dots, name=[f"neuron {i}, candidate" for i in own])


def _plain_ticks(ax: Axes) -> None:
    """Put ticks at 1, 2 and 5 of each decade, as plain numbers (text is never parsed as mathematics)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _marginals(above: Axes, right: Axes, one: StageNeurons, x_limits, y_limits, colour: str) -> None:
    norms = np.linspace(x_limits[0], x_limits[1], MARGIN_BINS).tolist()
    variances = np.geomspace(y_limits[0], y_limits[1], MARGIN_BINS).tolist()
    above.hist(one.norm, bins=norms, color=colour, alpha=0.55, linewidth=0)
    right.hist(one.logit_var, bins=variances, orientation="horizontal", color=colour, alpha=0.55, linewidth=0)
    note(above, y="neurons")
    note(right, x="neurons")
    for ax in (above, right):
        ax.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False, which="both")
        for spine in ax.spines.values():
            spine.set_visible(False)


def _widened(low: float, high: float) -> np.ndarray:
    margin = 0.05 * ((high - low) or 1.0)
    return np.array([low - margin, high + margin])
