"""Figures of where refusal lies: the selection sweep, cosines between stages, and scores against the coefficient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.refusal.results import Refusal
from posttrace.figures.refusal.tables import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = (
    ("bypass", "bypass: harmful, ablated", "log-odds, nats", "plain_harmful"),
    ("induce", "induce: harmless, added", "log-odds, nats", "plain_harmless"),
    ("kl", "KL: harmless, ablated", "KL, nats", None),
)
"""Array, title, axis, and the array of what it is without steering."""


def sweep(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield the selection sweep: a row for each swept stage, a line for each position.

    Example
    -------
    >>> [drawing.name for drawing in sweep([refusal])]
    ['refusal/sweep']
    """
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
            "refusal/sweep",
            "Selection sweep",
            f"{group.incomplete}{group.family}: means over n = {sizes[0]} harmful and {sizes[1]} harmless validation "
            f"prompts for the direction of every layer (input of the block) and every position of the template, "
            f"counted "
            f"from the prompt's end. Bypass: log-odds of refusal on harmful prompts with the direction ablated; "
            f"induce: "
            f"on harmless prompts with distance times direction added; dashed: not steered. KL: of the first token on "
            f"harmless prompts, plain from ablated, below {KL_SHOWN:g} drawn as that; dotted: the largest that "
            f"qualifies. Grey: layers too deep to qualify. Ring: chosen.",
            f"Lines of bypass, induce and KL over layers for {', '.join(group.stages[m] for m in swept)}.",
            _draw_sweep(group, swept, means),
            group.complete,
        )


KL_SHOWN = 1e-4
"""Smallest KL on the logarithmic axis, nats."""


def name_of_prompts(array: str) -> str:
    """Return the dimension of the prompts that a sweep array is over.

    Example
    -------
    >>> name_of_prompts("bypass")
    'validation_harmful'
    """
    return "validation_harmful" if array == "bypass" else "validation_harmless"


def _draw_sweep(group: Refusal, swept: Sequence[int], means: dict[str, np.ndarray]) -> Figure:
    attrs, n = group.data.attrs, len(group.layers)
    shown = [p for p in range(len(group.positions)) if np.isfinite(means["bypass"][swept, :, p]).any()]
    colours = _position_colours(shown)
    with theme.look():
        figure = theme.new_figure(7.2, 0.9 + 1.5 * len(swept))
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
        axes = figure.subplots(len(swept), len(MEASURES), sharex=True, squeeze=False)
        for row, m in zip(axes, swept, strict=True):
            for ax, (name, title, label, plain) in zip(row, MEASURES, strict=True):
                for p in shown:
                    values = (
                        np.maximum(means[name][m, :, p], KL_SHOWN) if name == "kl" else means[name][m, :, p]
                    )
                    ax.plot(group.layers, values, color=colours[p], marker="o", markersize=2, linewidth=1.1)
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
                ax.xaxis.get_major_locator().set_params(integer=True, nbins=6)
                ax.set_ylabel(label, labelpad=2)
                ax.set_title(f"{group.stages[m]} · {title}" if m == swept[0] else group.stages[m], pad=3)
        for ax in axes[-1]:
            ax.set_xlabel("layer", labelpad=2)
        figure.suptitle(f"{group.family}  ·  where the direction is taken", x=0.008, ha="left", fontsize=8)
        _legend(figure, [(colours[p], f"position {group.positions[p]}") for p in shown])
    return figure


def _position_colours(shown: Sequence[int]) -> dict[int, tuple]:
    """A colour for each position, dark to light towards the end; safe for colour-blind readers."""
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


def cosines(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield the cosine similarity of the directions of every two stages, layer by position.

    Example
    -------
    >>> [drawing.name for drawing in cosines([refusal])]
    ['refusal/cosines']
    """
    for group in groups:
        pairs = list(combinations(group.stages, 2))
        panels = [Panel(f"{a} · {b}", cosine(group.direction(a), group.direction(b))) for a, b in pairs]
        panels = [panel for panel in panels if np.isfinite(panel.matrix).any()]
        if not panels:
            continue
        yield Drawing(
            "refusal/cosines",
            "Cosine similarity of the stages' directions",
            f"{group.incomplete}{group.family}: cosine between the refusal directions of two stages at the same layer "
            f"(input of the block) and the same position from the prompt's end; each is the difference of the mean "
            f"streams of {group.data.attrs['n_direction'][0]} harmful and {group.data.attrs['n_direction'][1]} "
            f"harmless "
            f"prompts. White: no direction, since both kinds have the same token there. The stages' templates differ, "
            f"so "
            f"the same position need not be the same token. Two random directions of {group.data.sizes['hidden']} "
            f"dimensions have a cosine of 0 ± {1 / np.sqrt(group.data.sizes['hidden']):.2f} (standard deviation).",
            f"Heat maps of cosines, layer by position, for {', '.join(panel.title for panel in panels)}.",
            heatmap_grid(
                [panels],
                [str(p) for p in group.positions],
                [],
                group.layers,
                _cosine_scale(),
                f"{group.family}  ·  cosine of refusal directions",
                "position from the end",
            ),
            bool(np.isfinite(group.data["class_distance"].values).all()),
        )  # fmt: skip


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine along the last axis; NaN where either is.

    Example
    -------
    >>> cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))
    array([0.96])
    """
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / norms


def _cosine_scale() -> theme.Scale:
    from matplotlib.colors import Normalize

    return theme.Scale(theme.vik(), Normalize(-1, 1), (-1.0, -0.5, 0.0, 0.5, 1.0), "cosine similarity")


def coefficients(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield scores against the length of what is added; nothing where no coefficient was searched.

    Example
    -------
    >>> [drawing.name for drawing in coefficients([refusal])]
    ['refusal/coefficients']
    """
    for group in groups:
        if "search_refused" not in group.data:
            continue
        finite = np.isfinite(group.data["search_log_odds"].values).all(axis=(1, 2))
        if not finite.any():
            continue
        yield Drawing(
            "refusal/coefficients",
            "Score against coefficient",
            f"{group.incomplete}{group.family}: harmless validation prompts (n = "
            f"{group.data.attrs['n_validation'][1]}) "
            f"answered with each stage's own direction added, against the length of what is added, in multiples of "
            f"the "
            f"distance of the class means. Left: share of answers that begin with a refusal phrase, 95% Wilson "
            f"intervals; middle: mean log-odds of refusal at the first token; right: mean surprise of the stage, not "
            f"steered, at the answer from its second token on, with 95% bootstrap intervals over prompts. Ring: "
            f"chosen, "
            f"the smallest with nearly the largest share (within 0.05), or once the distance where nothing is "
            f"refused.",
            "Lines of refusal share, log-odds and surprise over the coefficient, one for each stage.",
            _draw_search(group, finite),
            bool(finite.all()),
        )


def _draw_search(group: Refusal, finite: np.ndarray) -> Figure:
    colours = theme.stage_colours(group.stages)
    with theme.look():
        figure = theme.new_figure(7.2, 2.2)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.04)
        axes = figure.subplots(1, 3)
        for ax, (name, label) in zip(
            axes,
            [
                ("search_refused", "share of refusals"),
                ("search_log_odds", "log-odds of refusal, nats"),
                ("search_unlikelihood", "surprise, nats a token"),
            ],
            strict=True,
        ):
            for m in np.flatnonzero(finite):
                one = group.data.isel(model=m)
                distance = float(
                    one.class_distance.isel(
                        layer=int(one.selected_layer),
                        position=group.positions.index(int(one.selected_position)),
                    )
                )
                x = one.search_coefficient.values / distance
                values = one[name].values.astype(np.float64)
                y, low, high = np.array([estimate(row, name == "search_refused") for row in values]).T
                colour = colours[group.stages[m]]
                ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                ax.plot(x, y, color=colour, marker="o", markersize=2.5)
                at = np.flatnonzero(np.isclose(one.search_coefficient.values, float(one.coefficient)))
                ax.plot(
                    x[at],
                    y[at],
                    marker="o",
                    markersize=7,
                    color="none",
                    markeredgecolor=colour,
                    linestyle="none",
                )
            ax.set_xlabel("coefficient / distance of the class means", labelpad=2)
            ax.set_ylabel(label, labelpad=2)
        axes[0].set_ylim(-0.04, 1.04)
        axes[1].axhline(0, color="#c3c8cf", linewidth=0.6, zorder=0)
        axes[2].set_ylim(bottom=0)
        figure.suptitle(
            f"{group.family}  ·  harmless prompts, own direction added", x=0.008, ha="left", fontsize=8
        )
        _legend(figure, [(colours[group.stages[m]], group.stages[m]) for m in np.flatnonzero(finite)])
    return figure


def _legend(figure: Figure, entries: Sequence[tuple]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=label, linewidth=1.4) for colour, label in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), handlelength=1.8)
