"""Line figure of the selection sweep: bypass, induce and KL of the direction of every layer and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import mean_interval
from posttrace.figures.studies.refusal.data import Refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MEASURES = (
    ("bypass", "bypass: harmful, ablated", "log-odds, nats", "plain_harmful"),
    ("induce", "induce: harmless, added", "log-odds, nats", "plain_harmless"),
    ("kl", "KL: harmless, ablated", "KL, nats", None),
)
"""Array, title, axis label, and the array of unsteered values."""


def sweep(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield `refusal/sweep`: a row for each swept stage, a line for each position."""
    for group in groups:
        means = {
            name: np.asarray(group.data[name].mean(name_of_prompts(name), skipna=False))
            for name, *_ in MEASURES
        }
        swept = [m for m in range(len(group.stages)) if np.isfinite(means["bypass"][m]).any()]
        if not swept:
            continue
        sizes = group.data.attrs["n_validation"]
        yield Drawing(
            name="refusal/sweep",
            heading="Selection sweep",
            caption=(
                f"{group.incomplete}{group.family}: means over n = {sizes[0]} harmful and {sizes[1]} harmless "
                "validation prompts for the direction of every layer (input of the block) and every position of the "
                "template, counted from the prompt's end. Bypass: log-odds of refusal on harmful prompts with the "
                "direction ablated; induce: on harmless prompts with the direction added, times the distance between "
                "the class means; dashed: unsteered. KL: of the first token on harmless prompts, unsteered from "
                f"ablated, at least {KL_SHOWN:g} for the log axis; dotted: the limit to qualify. Grey: layers too "
                "deep to qualify. Ring: chosen."
            ),
            alt=f"Lines of bypass, induce and KL over layers for {', '.join(group.stages[m] for m in swept)}.",
            figure=_draw_sweep(group, swept, means),
            complete=group.complete,
        )


KL_SHOWN = 1e-4
"""Smallest KL on the logarithmic axis, nats."""


def name_of_prompts(array: str) -> str:
    """Return the prompt dimension of a sweep array."""
    return "validation_harmful" if array == "bypass" else "validation_harmless"


def _draw_sweep(group: Refusal, swept: Sequence[int], means: dict[str, np.ndarray]) -> Figure:
    attrs, n = group.data.attrs, len(group.layers)
    shown = [p for p in range(len(group.positions)) if np.isfinite(means["bypass"][swept, :, p]).any()]
    colours = _position_colours(shown)
    with theme.look():
        figure = theme.new_figure(
            7.2, 0.9 + 1.5 * len(swept), w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03
        )
        axes = figure.subplots(len(swept), len(MEASURES), sharex=True, squeeze=False)
        for row, m in zip(axes, swept, strict=True):
            for ax, (name, title, label, plain) in zip(row, MEASURES, strict=True):
                for p in shown:
                    values = (
                        np.maximum(means[name][m, :, p], KL_SHOWN) if name == "kl" else means[name][m, :, p]
                    )
                    (line,) = ax.plot(
                        group.layers, values, color=colours[p], marker="o", markersize=2, linewidth=1.1
                    )
                    prompts = group.data[name][m, :, p].transpose(..., "layer").values
                    note(line, name=f"{group.stages[m]}, position {group.positions[p]}", n=len(prompts),
                         interval=partial(_drawn_interval, prompts, name))  # fmt: skip
                if plain:
                    ax.axhline(
                        float(group.data[plain][m].mean()), color=theme.MUTED, linestyle="--", linewidth=0.8
                    )
                else:
                    ax.set_yscale("log")
                    ax.yaxis.set_major_formatter("{x:g}")
                    ax.minorticks_off()
                    ax.axhline(attrs["max_kl"], color=theme.MUTED, linestyle=":", linewidth=0.8)
                too_deep = np.ceil(attrs["max_depth"] * n)
                ax.axvspan(too_deep - 0.5, n - 0.5, color="#eceef1", zorder=0, linewidth=0)
                _ring(ax, group, m, means[name][m], name)
                ax.set_xlim(-0.3, n - 0.7)
                theme.whole_numbers(ax.xaxis, nbins=6)
                ax.set_ylabel(label, labelpad=2)
                ax.set_title(f"{group.stages[m]} · {title}" if m == swept[0] else group.stages[m], pad=3)
        for ax in axes[-1]:
            ax.set_xlabel("layer", labelpad=2)
        theme.heading(figure, f"{group.family}  ·  where the direction is taken")
        line_legend(figure, [(colours[p], f"position {group.positions[p]}") for p in shown])
    return figure


def _drawn_interval(prompts: np.ndarray, name: str) -> np.ndarray:
    """Return the interval over prompts (dims prompt x layer) on the axis of a measure, dims 2 x layer."""
    return np.maximum(mean_interval(prompts), KL_SHOWN if name == "kl" else -np.inf)


def _position_colours(shown: Sequence[int]) -> dict[int, tuple]:
    """Return a colour for each position, dark to light towards the end; safe for colour-blind readers."""
    from cmcrameri import cm

    return {p: cm.batlow(0.05 + 0.7 * i / max(len(shown) - 1, 1)) for i, p in enumerate(shown)}


def _ring(ax: Axes, group: Refusal, m: int, values: np.ndarray, name: str) -> None:
    layer, position = (int(group.data[key][m]) for key in ("selected_layer", "selected_position"))
    if layer >= 0:
        value = values[layer, group.positions.index(position)]
        value = max(value, KL_SHOWN) if name == "kl" else value
        ax.plot(
            [layer],
            [value],
            marker="o",
            markersize=7,
            color="none",
            markeredgecolor=theme.INK,
            markeredgewidth=1,
        )


def line_legend(figure: Figure, entries: Sequence[tuple]) -> None:
    handles = [theme.key(color=colour, label=label, linewidth=1.4) for colour, label in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), handlelength=1.8)
