"""Table and scatter figure of attribution patching against exact patching, on the pairs that have both.

Source: Nanda 2023, "Attribution patching"; Kramár et al. 2024, "AtP*" (arXiv 2403.00745), for its failures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED, Estimate
from posttrace.figures.studies.knowledge.captions import titled
from posttrace.figures.studies.knowledge.data import ESTIMATE, PatchGrid
from posttrace.figures.studies.knowledge.exact_sample import Agreement, ExactSample
from posttrace.figures.studies.knowledge.tables import column_names, interval_words
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

CHANGE = "change by the patch (patched − unpatched)"
FEW = 10
"""With fewer pairs, the caption warns about the intervals."""
STATISTICS = (
    ("effect", "correlation_effect", "Pearson r, change by the patch", 3, ""),
    ("logit_diff", "correlation", "Pearson r, logit difference", 3, ""),
    ("mean_miss", "mean_miss", "mean |estimate − exact|, nats", 2, "nats"),
)
"""Attribute of `Agreement`, name in the tidy table, label, digits, unit."""


def attribution(sets: Sequence[PatchGrid]) -> Iterator[Table | Drawing]:
    """Yield the table `knowledge_attribution` and `knowledge/<set>/attribution`; nothing for sets with exact values.

    Parameters
    ----------
    sets
        As read from the store, nats; sets of attribution patching are compared on their pairs with exact values.
    """
    sets = [grid for grid in sets if grid.sample is not None]
    if not sets:
        return
    found = {
        (grid.name, s, t): _sample(grid).agreement(s, t)
        for grid in sets
        for s in grid.sources
        for t in grid.targets
    }
    yield _table(sets, found)
    for grid in sets:
        some = {(s, t): found[grid.name, s, t] for s in grid.sources for t in grid.targets}
        if any(some.values()):
            yield _drawing(grid, _sample(grid), some)


def _sample(grid: PatchGrid) -> ExactSample:
    """Return the sample with exact values, which only sets of attribution patching have."""
    assert grid.sample is not None, f"{grid.name} was patched exactly"
    return grid.sample


def _table(sets: Sequence[PatchGrid], found: dict) -> Table:
    matrices = dict.fromkeys((s, t) for _, s, t in found)
    blocks = [
        Block(_arrow(*m) + (", storage" if m[0] == m[1] else ""), tuple(_rows(m, sets, found)))
        for m in matrices
    ]
    heading = f"Attribution: how far is the estimate from exact patching? · {ESTIMATE}"
    caption = (
        f"{ESTIMATE[0].upper()}{ESTIMATE[1:]} against exact patching, on the pairs that have both: "
        f"{', '.join(f'{g.name} {len(_sample(g).pairs)} of {g.planned}' for g in sets)}. Over all cells (layer, "
        f"statement token) of these pairs, including those that no patch can change; Pearson r of the {CHANGE}, "
        f"and of the patched logit difference itself, which is higher because pairs differ. "
        f"{' '.join(_worst_in_words(grid, found) for grid in sets)} {interval_words()} The largest miss has no "
        f"interval: resampling can only lower a maximum."
    )
    if any(len(_sample(grid).pairs) < FEW for grid in sets):
        caption += f" Intervals over fewer than {FEW} pairs are too narrow to rely on."
    tidy = [row for grid in sets for row in _tidy(grid, found)]
    return Table(
        name="knowledge_attribution",
        heading=heading,
        caption=caption,
        columns=column_names(sets),
        blocks=tuple(blocks),
        records=tidy,
    )


def _rows(matrix: tuple[str, str], sets: Sequence[PatchGrid], found: dict) -> Iterator[Row]:
    agreements = [found.get((grid.name, *matrix)) for grid in sets]

    def row(label: str, make) -> Row:
        return Row(label, tuple(Cell("–") if a is None else make(a) for a in agreements))

    counts = [
        f"{a.n_pairs if a else 0}"
        + ("" if a and a.n_pairs == len(_sample(g).pairs) else f" of {len(_sample(g).pairs)}")
        for a, g in zip(agreements, sets, strict=True)
    ]
    yield Row("pairs with exact values", tuple(map(Cell, counts)))
    yield row("cells", lambda a: Cell(str(a.n_cells)))
    for attribute, _, label, digits, _ in STATISTICS:
        yield row(label, lambda a, name=attribute, n=digits: _estimate_cell(getattr(a, name), n))
    yield row("largest |estimate − exact|, nats", lambda a: Cell(number(a.largest.nats, 2)))
    yield row(
        "its layer, token, pair", lambda a: Cell(f"{a.largest.place}, {a.largest.token}, {a.largest.pair}")
    )


def _estimate_cell(estimate: Estimate, digits: int) -> Cell:
    return cell(estimate.value, estimate.low, estimate.high, digits)


def _tidy(grid: PatchGrid, found: dict) -> Iterator[dict]:
    for (name, source, target), agreement in found.items():
        if name != grid.name or agreement is None:
            continue
        common = {"study": "knowledge", "set": grid.name, "family": grid.family, "site": grid.site,
                  "method": "attribution", "source": source, "target": target}  # fmt: skip
        counts = {"n_pairs": agreement.n_pairs, "n_pairs_planned": len(_sample(grid).pairs),
                  "n_cells": agreement.n_cells}  # fmt: skip
        for attribute, statistic, _, _, unit in STATISTICS:
            e = getattr(agreement, attribute)
            yield {**common, "statistic": statistic, "estimate": e.value, "low": e.low, "high": e.high, "unit": unit,
                   **counts, "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}  # fmt: skip
        miss = agreement.largest
        yield {**common, "statistic": "largest_miss", "estimate": miss.nats, "unit": "nats", **counts,
               "layer": miss.layer, **({} if miss.head is None else {"head": miss.head}), "token_label": miss.token,
               "pair": miss.pair, "clean_statement": miss.clean, "corrupt_statement": miss.corrupt}  # fmt: skip


def _worst(grid: PatchGrid, found: dict) -> tuple[str, str, Agreement] | None:
    here = [(s, t, a) for (name, s, t), a in found.items() if name == grid.name and a is not None]
    return max(here, key=lambda one: one[2].largest.nats, default=None)


def _worst_in_words(grid: PatchGrid, found: dict) -> str:
    worst = _worst(grid, found)
    if worst is None:
        return f"No pair of {grid.name} has exact values: nothing tells how good its estimate is."
    source, target, agreement = worst
    miss = agreement.largest
    statements = f" (“{miss.clean}” put into “{miss.corrupt}”)" if miss.clean or miss.corrupt else ""
    return (
        f"Largest miss of {grid.name}: {number(miss.nats, 2)} nats, {_arrow(source, target)}, layer {miss.place}, "
        f"token {miss.token}, pair {miss.pair}{statements}."
    )


def _drawing(grid: PatchGrid, sample: ExactSample, some: dict) -> Drawing:
    n = len(sample.pairs)
    counts = {matrix: agreement.n_pairs if agreement else 0 for matrix, agreement in some.items()}
    lacking = ", ".join(f"{_arrow(*matrix)} {count}" for matrix, count in counts.items() if count < n)
    pairs = f"n = {n} of {grid.planned} pairs, those with exact values."
    if lacking:
        pairs = f"INCOMPLETE: of {n} pairs with exact values there are only: {lacking}."
    found = {(grid.name, *matrix): agreement for matrix, agreement in some.items()}
    caption = (
        f"{grid.family + ', ' if grid.family else ''}{titled(grid, grid.name)} against exact patching of "
        f"{grid.site or 'the activation'}. A point is a cell (layer, statement token) of a pair; {CHANGE} of the "
        f"logit difference, nats, not normalised; on the grey line the estimate is right. Colour: layer. Ring: the "
        f"largest miss of a panel; r: Pearson over its cells. {_worst_in_words(grid, found)} Rows of panels: source; "
        f"columns of panels: target; bold: storage (source = target). {pairs}"
    )
    return Drawing(
        name=f"knowledge/{grid.name}/attribution",
        heading=titled(grid, "Estimate against exact values"),
        caption=caption,
        alt=f"Scatter of {ESTIMATE} against exact patching for {grid.name}, one panel for each source and target.",
        figure=_scatter(grid, sample, some, "INCOMPLETE" if lacking else f"n = {n} of {grid.planned} pairs"),
        complete=sample.complete,
    )


def _scatter(grid: PatchGrid, sample: ExactSample, some: dict, pairs: str) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    points = {
        matrix: _changes(sample, *matrix) for matrix, agreement in some.items() if agreement is not None
    }
    everything = np.concatenate([values[:2].ravel() for values in points.values()])
    margin = 0.04 * (np.ptp(everything) or 1.0)
    limits = everything.min() - margin, everything.max() + margin
    scale = ScalarMappable(
        Normalize(grid.layers[0], max(grid.layers[-1], grid.layers[0] + 1)), _layer_colours()
    )
    # As in heat maps, panels widen for long stage names; a letter takes about 0.01 inch per point of font size.
    longest = max(len(_arrow(*matrix)) for matrix in some)
    width = max(1.45, 6.0 * 0.01 * longest)
    size = min(7.5, width / (0.01 * longest))
    with theme.look():
        figure = theme.new_figure(
            1.5 + width * len(grid.targets),
            0.95 + (width + 0.05) * len(grid.sources),
            w_pad=0.03,
            h_pad=0.03,
            wspace=0.02,
            hspace=0.02,
        )
        shape = len(grid.sources), len(grid.targets)
        axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
        for ax, matrix in zip(axes.flat, some, strict=True):
            own = matrix[0] == matrix[1]
            ax.set_title(_arrow(*matrix), pad=3, fontsize=size, fontweight="bold" if own else "normal")
            # One range for both axes of all panels, so that estimates on the diagonal are right.
            ax.set(xlim=limits, ylim=limits, aspect="equal")
            if some[matrix] is None:
                theme.empty(ax, "no finished pair")
                continue
            _panel(ax, points[matrix], limits, scale)
            r = f"r = {number(some[matrix].effect.value, 2)}"
            # Top left, where estimates are too large, has the fewest points.
            ax.text(0.03, 0.97, r, transform=ax.transAxes, va="top", fontsize=6,
                    bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})  # fmt: skip
        figure.supxlabel("exact patching: change, nats", fontsize=7)
        figure.supylabel("estimate: change, nats", fontsize=7)
        bar = figure.colorbar(
            scale, ax=axes, shrink=1.0 if shape[0] == 1 else 0.6, aspect=12 * shape[0], pad=0.015
        )
        bar.set_label("layer", labelpad=4)
        theme.whole_numbers(bar.ax.yaxis)
        bar.outline.set_visible(False)
        theme.heading(figure, f"{grid.name}  ·  {pairs}\n{grid.estimate}")
    return figure


def _changes(sample: ExactSample, source: str, target: str) -> np.ndarray:
    """Return exact change, estimated change and layer of every cell, dims 3 x cell; the largest miss comes last."""
    cells = sample.cells(source, target)
    layers = np.broadcast_to(np.asarray(sample.layers)[:, None], cells.exact.shape)
    together = np.stack([cells.exact - cells.corrupt, cells.estimate - cells.corrupt, layers])
    together = together[:, np.isfinite(cells.exact)]
    # The worst cells are drawn on top.
    return together[:, np.argsort(np.abs(together[1] - together[0]), kind="stable")]


def _panel(ax: Axes, points: np.ndarray, limits: tuple[float, float], scale: ScalarMappable) -> None:
    from matplotlib.ticker import MaxNLocator

    exact, estimate, layer = points
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    ax.plot(limits, limits, color=theme.GUIDE, linewidth=0.8, zorder=0)
    # Thousands of points: rasterised, the PDF stays small.
    dots = ax.scatter(exact, estimate, c=scale.to_rgba(layer), s=3, linewidths=0, alpha=0.7, rasterized=True)
    note(dots, name=[f"layer {int(one)}" for one in layer])
    ax.scatter(exact[-1:], estimate[-1:], s=26, facecolors="none", edgecolors=theme.KEY, linewidths=0.8)


def _layer_colours() -> Colormap:
    """Return Crameri's `batlow` without its palest end, which would not show on white."""
    from cmcrameri import cm
    from matplotlib.colors import ListedColormap

    return ListedColormap(np.asarray(cm.batlow.colors)[:225], name="batlow_225")


def _arrow(source: str, target: str) -> str:
    return f"{source} → {target}"
