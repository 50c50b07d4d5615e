"""Lines by layer: CKA and R², recovered divergence, and spectra of the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import SEED, percentile_interval, resampled_counts
from posttrace.figures.studies.difference.data import Difference, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTORS = {"identity": "as it is", "shift": "mean shift", "linear": "linear map"}
GREY = "#9aa1ab"


def maps(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield the figure of CKA and R² by layer, for each set."""
    for one in groups:
        cka, r2 = one.values("cka"), one.values("r2")
        if not np.isfinite(cka).any():
            continue
        layers = one.data["sampled_layer"].values
        dots: dict[str, Any] = {"marker": "o", "markersize": 2}
        with _panels(one, "layer", "CKA, R²") as (figure, panels):
            for ax, pair in panels:
                lines = ax.plot(layers, cka[pair.number], color=theme.INK, label="CKA", **dots)
                for k, name in enumerate(map(str, one.data["predictor"].values)):
                    colour = theme.STAGE_COLOURS[(k + 1) % len(theme.STAGE_COLOURS)]
                    lines += ax.plot(layers, r2[pair.number, k], color=colour, label=PREDICTORS[name], **dots)
                for line in lines:
                    note(line, n=one.data.sizes["sample"])
                ax.set_ylim(min(-0.05, max(-1.0, float(np.nanmin(r2)) - 0.05)), 1.05)
                theme.whole_numbers(ax.xaxis)
        yield Drawing(
            name=f"difference/{one.name}/maps",
            heading="CKA and R² by layer",
            caption=(
                f"{one.data.sizes['sample']} tokens drawn from {one.n}. Linear CKA of the two stages' streams "
                "(resid_post), and R² of the target's stream on held-out documents, predicted from the source's as it "
                "is, with the mean shift, and with a linear map, ridge-penalised towards no change. R² below -1 is "
                f"cut. {one.control_note}"
            ),
            alt="Lines of CKA and three R² by layer, a panel for each pair.",
            figure=figure,
            complete=one.complete,
        )


def steering(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield the figure of recovered divergence by layer, for each set whose sources were steered."""
    for one in groups:
        if "js_steered" not in one.data or not np.isfinite(one.values("js_steered")).any():
            continue
        with _panels(one, "layer", "recovered share of JS") as (figure, panels):
            for ax, pair in panels:
                _draw_steering(ax, one, pair)
        n = one.data.sizes["steered_document"]
        yield Drawing(
            name=f"difference/{one.name}/steering",
            heading="What the mean difference recovers",
            caption=(
                f"n = {n} held-out documents of {one.name}. Share of JS(target, source) that goes when the mean "
                "difference of the other documents is added to every token but the first of the source's stream after "
                "one block: 1 - JS(target, steered) / JS(target, source), sums over documents, bars: 95 % bootstrap "
                "intervals over documents. Grey: middle 95 % of random directions of the same length; other and "
                f"control pair: their mean differences at that length. {one.control_note}"
            ),
            alt="Lines of the recovered share by layer, with random directions as a band, a panel for each pair.",
            figure=figure,
            complete=bool(np.isfinite(one.values("js_unsteered")).all()),
        )


def _draw_steering(ax: Axes, one: Difference, pair: Pair) -> None:
    """Draw the mean difference with every coefficient; its controls with the last one."""
    steered, plain = one.values("js_steered")[pair.number], one.values("js_unsteered")[pair.number]
    names = [str(name) for name in one.data["direction"].values]
    layers, amounts = one.data["steered_layer"].values, one.data["coefficient"].values
    ax.axhline(0, color=theme.GUIDE, linewidth=0.7)
    shares = np.array(
        [[recovered(steered[d, -1, k], plain) for k in range(len(layers))] for d in range(len(names))]
    )
    random = shares[[name.startswith("random-") for name in names]]
    if len(random) and np.isfinite(random).all():
        low, high = percentile_interval(random)
        ax.fill_between(layers, low, high, color=GREY, alpha=0.5, linewidth=0, label="random")
    for name, colour in (("other", theme.STAGE_COLOURS[2]), ("control", theme.STAGE_COLOURS[3])):
        values = shares[names.index(name)]
        if np.isfinite(values).any():
            (line,) = ax.plot(
                layers, values, color=colour, label=f"{name} pair", linewidth=1, marker="o", markersize=2
            )
            ends = [recovery(steered[names.index(name), -1, k], plain)[1:] for k in range(len(layers))]
            note(line, name=f"{name} pair", n=len(plain), interval=np.transpose(ends))
    mean, colour = steered[names.index("mean")], theme.STAGE_COLOURS[1]
    for a, amount in enumerate(amounts):
        value, low, high = np.array([recovery(mean[a, k], plain) for k in range(len(layers))]).T
        label = "mean difference" if len(amounts) == 1 else f"{amount:g} x mean difference"
        width = 1.6 if a == len(amounts) - 1 else 0.8
        (line,) = ax.plot(
            layers, value, color=colour, linewidth=width, marker="o", markersize=2.5, label=label
        )
        note(line, name=label, n=len(plain), interval=[low, high])
        ax.vlines(layers, low, high, color=colour, linewidth=0.8)
    ax.set_xticks(layers)


def recovered(steered: np.ndarray, plain: np.ndarray) -> float:
    """Return the recovered share over all documents; NaN where nothing differs or a document is not finished."""
    if not (np.isfinite(steered).all() and np.isfinite(plain).all() and plain.sum() > 0):
        return np.nan
    return float(1 - steered.sum() / plain.sum())


def recovery(steered: np.ndarray, plain: np.ndarray) -> tuple[float, float, float]:
    """Return the recovered share over all documents with its bootstrap interval; NaN where nothing differs.

    Examples
    --------
    >>> recovery(np.array([0.1, 0.1]), np.array([0.2, 0.2]))
    (0.5, 0.5, 0.5)

    Parameters
    ----------
    steered, plain: JS to the target of the steered and the unsteered source, dims document.
    """
    value = recovered(steered, plain)
    if np.isnan(value) or len(plain) < 2:
        return (value, np.nan, np.nan)
    draws = [
        1 - (counts @ steered) / np.maximum(counts @ plain, 1e-300)
        for counts in resampled_counts(len(plain), np.random.default_rng(SEED))
    ]
    low, high = map(float, percentile_interval(np.concatenate(draws)))
    return (value, low, high)


def spectra(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield the figure of variance explained by component, for each set."""
    for one in groups:
        share, null = one.values("variance_share"), one.values("variance_null")
        if not np.isfinite(share).any():
            continue
        layers = one.data["sampled_layer"].values
        chosen = sorted({0, len(layers) // 2, len(layers) - 1})
        above, ratio = one.data["n_above_null"].values, one.values("participation")
        numbers = np.arange(1, share.shape[-1] + 1)
        with _panels(one, "component", "share of variance", legend=False) as (figure, panels):
            for ax, pair in panels:
                i = pair.number
                for k, colour in zip(chosen, theme.STAGE_COLOURS, strict=False):
                    if np.isfinite(share[i, k]).all() and share[i, k, 0] > 0:
                        label = f"{layers[k]}: {above[i, k]}, {ratio[i, k]:.1f}"
                        line = np.maximum(share[i, k], 1e-9)
                        lines = ax.plot(numbers, line, color=colour, linewidth=1.2, label=label)
                        lines += ax.plot(numbers, null[i, k], color=colour, linewidth=0.8, linestyle="--")
                        for drawn, words in zip(lines, ("", ", shuffled"), strict=True):
                            note(drawn, name=f"layer {layers[k]}{words}", n=one.data.sizes["sample"])
                ax.set(xscale="log", yscale="log")
                for axis in (ax.xaxis, ax.yaxis):
                    theme.plain_numbers(axis)
                ax.legend(fontsize=5, loc="lower left")
        yield Drawing(
            name=f"difference/{one.name}/spectra",
            heading="Principal components of the difference",
            caption=(
                f"{one.data.sizes['sample']} tokens drawn from {one.n}. Share of the variance of target - source "
                "(resid_post, centred) that each principal component explains; dashed: 95th percentile of 20 shuffles "
                "of every column. Legend: layer: components above it, participation ratio. The mean difference is "
                f"left out; its share of the squared difference is in the store (mean_share). {one.control_note}"
            ),
            alt="Lines of the variance explained by each component, shuffled columns dashed, a panel for each pair.",
            figure=figure,
            complete=one.complete,
        )


@contextmanager
def _panels(one: Difference, x: str, y: str, *, legend: bool = True) -> Iterator[tuple[Figure, list]]:
    """Give a figure and its (axes, pair): a panel for each pair, sharing axes; put in titles, labels and legend."""
    with theme.look():
        figure = theme.new_figure(0.5 + 1.9 * len(one.forward), 2.3)
        axes = figure.subplots(1, len(one.forward), sharex=True, sharey=True, squeeze=False)[0]
        yield figure, list(zip(axes, one.forward, strict=True))
        for ax, pair in zip(axes, one.forward, strict=True):
            ax.set_title(pair.label)
            ax.set_xlabel(x)
        axes[0].set_ylabel(y)
        theme.heading(figure, f"{one.family}  ·  {one.name}")
        handles, labels = axes[0].get_legend_handles_labels()
        if legend and handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=5)
