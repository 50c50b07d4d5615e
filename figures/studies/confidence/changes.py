"""Strip figure of the changes of entropy and loss by ablating candidates and random neurons of similar norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import first_of, of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import bootstrap_mean, mean_interval
from posttrace.figures.studies.confidence.data import METRICS, Metric, Neurons, OnText
from posttrace.figures.studies.confidence.tables import ablation_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


KINDS = {"candidates": "random_set", "candidate": "random_neuron"}
"""Ablations and what each is compared with, in the order of the axis."""


def changes(groups: Sequence) -> Iterator[Drawing]:
    """Yield `confidence/text/changes`: random sets and neurons as dots, the candidates marked."""
    norms = first_of(groups, Neurons)
    for text in of_type(groups, OnText):
        yield Drawing(
            name="confidence/text/changes",
            heading="Changes of entropy and loss by ablation",
            caption=(
                f"{ablation_caption(text, norms)} Grey dots: random sets and single random neurons; diamond: the "
                "candidates together; small diamonds: one candidate each. Bar: interval over documents for the "
                "candidates together. Each column of panels has its own scale."
            ),
            alt="Strip plots of the change of entropy and loss when candidates and random neurons are ablated.",
            figure=_draw(text),
            complete=text.complete,
        )


def _draw(text: OnText) -> Figure:
    stages = text.finished
    colours = theme.stage_colours(text.stages)
    with theme.look():
        figure = theme.new_figure(
            0.6 + 1.55 * len(METRICS),
            0.75 + 1.25 * len(stages),
            w_pad=0.03,
            h_pad=0.03,
            wspace=0.03,
            hspace=0.03,
        )
        axes = figure.subplots(len(stages), len(METRICS), sharex=True, sharey="col", squeeze=False)
        for row, stage in zip(axes, stages, strict=True):
            for ax, metric in zip(row, METRICS, strict=True):
                _panel(ax, text, stage, metric, colours[stage])
            row[0].set_ylabel(f"{stage}\nchange, nats")
        for ax, metric in zip(axes[0], METRICS, strict=True):
            ax.set_title(metric.words, pad=4)
        count = int((text.kind == "candidate").sum())
        for ax in axes[-1]:
            ax.set_xticks([0, 1], [f"{count} neurons", "one neuron"])
        n = text.planned
        done = f"n = {n} documents" if text.complete else f"INCOMPLETE ({n} documents planned)"
        theme.heading(figure, f"{text.family}  ·  neurons of layer {text.layer} at their mean  ·  {done}")
        _legend(figure)
    return figure


def _panel(ax: Axes, text: OnText, stage: str, metric: Metric, colour: str) -> None:
    ax.axhline(0, color=theme.GUIDE, linewidth=0.7, zorder=0)
    for place, (kind, other) in enumerate(KINDS.items()):
        controls = text.change(stage, metric, other)
        random = controls.mean(axis=1)
        # Spread out by a fixed sequence, so that the same store always gives the same dots.
        aside = 0.3 * ((np.arange(len(random)) * 0.618034) % 1 - 0.5)
        dots = ax.scatter(place - 0.18 + aside, random, s=5, color="#9aa1ab", linewidths=0, alpha=0.8)
        note(
            dots,
            name=other.replace("_", " "),
            n=controls.shape[1],
            interval=partial(mean_interval, controls.T),
        )
        mine = text.change(stage, metric, kind)
        if len(mine) == 1:
            found = bootstrap_mean(mine[0])
            ax.vlines(place + 0.25, found.low, found.high, color=colour, linewidth=1.0)
            dots = ax.scatter(
                [place + 0.25], [found.value], s=26, marker="D", color=colour, linewidths=0, zorder=3
            )
        else:
            means = mine.mean(axis=1)
            aside = 0.2 * ((np.arange(len(means)) * 0.618034) % 1 - 0.5)
            dots = ax.scatter(
                place + 0.25 + aside, means, s=9, marker="D", color=colour, linewidths=0, zorder=3
            )
        note(dots, name=kind, n=mine.shape[1], interval=partial(mean_interval, mine.T))
    ax.set_xlim(-0.6, 1.6)


def _legend(figure: Figure) -> None:
    figure.legend(
        handles=[
            theme.key(
                color="#9aa1ab", marker="o", markersize=2.5, label="random, similar norm", linestyle="none"
            ),
            theme.key(
                color=theme.INK, marker="D", markersize=4.5, label="candidates together", linestyle="none"
            ),
            theme.key(color=theme.INK, marker="D", markersize=2.8, label="one candidate", linestyle="none"),
        ],
        loc="outside lower center",
        ncols=3,
    )
