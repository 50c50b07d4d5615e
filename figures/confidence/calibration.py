"""Calibration of each stage's answers: reliability curves, and the expected calibration error with intervals.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599); the intervals are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.confidence.results import Answers
from posttrace.figures.drawing import Drawing
from posttrace.figures.statistics import (
    CHUNK,
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Estimate,
    percentile_interval,
    wilson,
)
from posttrace.figures.tables import Block, Cell, Row, Table, cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10
"""Of equal width over the range of a confidence, 0.5 to 1."""
EDGES = np.linspace(0.5, 1.0, BINS + 1)
POOLED = "all sets"
FEW = 5
"""Statements below which a bin is a ring without an interval, and no line goes through it."""
STATISTICS = (
    ("accuracy", "accuracy", 3),
    ("confidence", "mean confidence", 3),
    ("overconfidence", "mean confidence − accuracy", 3),
    ("ece", "ECE", 3),
)
"""Name in the tidy table, label, digits."""
BINS_IN_WORDS = f"{BINS} bins of equal width over confidences of 0.5 to 1"


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence; each bin holds its lower edge, the last one both.

    Example
    -------
    >>> bins_of(np.array([0.5, 0.55, 1.0]))
    array([0, 1, 9])
    """
    return np.clip(np.searchsorted(EDGES, np.asarray(confidence), side="right") - 1, 0, BINS - 1)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: |accuracy - mean confidence| of each bin, weighted by its statements.

    Example
    -------
    >>> round(calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False])), 3)
    0.1
    """
    return float(_statistics(np.ones((1, len(right))), confidence, right)["ece"][0])


def estimates(confidence: np.ndarray, right: np.ndarray) -> dict[str, Estimate]:
    """Return accuracy, mean confidence, their difference and ECE, with percentile intervals over statements.

    Example
    -------
    >>> estimates(np.full(50, 0.9), np.ones(50, bool))["accuracy"].value
    1.0

    Arguments
    ---------
    confidence, right: of one stage, dims statement. Resampling cannot show the bias of ECE, which noise raises.
    """
    return _estimated(len(right), lambda counts: _statistics(counts, confidence, right))


def differences(first, second) -> dict[str, Estimate]:
    """Return what the second stage has more of than the first, on the same statements, with paired intervals.

    Example
    -------
    >>> one, two = (np.full(9, 0.9), np.ones(9, bool)), (np.full(9, 0.8), np.ones(9, bool))
    >>> round(differences(one, two)["confidence"].value, 3)
    -0.1

    Arguments
    ---------
    first, second: (confidence, right) of each stage, dims statement each.
    """

    def statistics(counts):
        one, two = _statistics(counts, *first), _statistics(counts, *second)
        return {name: two[name] - one[name] for name in one}

    return _estimated(len(first[1]), statistics)


def pooled(sets: Sequence[Answers], stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and correctness over the statements of all sets."""
    judged = [answers.judged(stage) for answers in sets]
    return np.concatenate([c for c, _ in judged]), np.concatenate([r for _, r in judged])


def calibration(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_calibration`: per stage and set, and what later stages have more of than the first.

    Example
    -------
    >>> [table.name for table in calibration([answers])]
    ['confidence_calibration']
    """
    import pandas as pd

    sets = [group for group in groups if isinstance(group, Answers)]
    if not sets:
        return
    stages = sets[0].stages
    names = [*(answers.name for answers in sets), *([POOLED] if len(sets) > 1 else [])]
    judged = {
        (name, stage): pooled(sets, stage) if name == POOLED else sets[names.index(name)].judged(stage)
        for name in names
        for stage in stages
    }
    blocks, tidy = [], []
    for stage in stages:
        found = {name: estimates(*judged[name, stage]) for name in names}
        counts = Row("statements", tuple(Cell(str(found[name]["ece"].n)) for name in names))
        blocks.append(Block(stage, (counts, *_rows(found, names))))
        tidy += _tidy(sets[0].family, stage, found)
    for stage in stages[1:]:
        found = {name: differences(judged[name, stages[0]], judged[name, stage]) for name in names}
        words = f"{stage} − {stages[0]}"
        blocks.append(Block(f"{words}, same statements", tuple(_rows(found, names))))
        tidy += _tidy(sets[0].family, words, found)
    mass = min(float(np.nanmin(answers.answer_mass)) for answers in sets)
    caption = (
        f"{sets[0].family}: calibration of the answers to few-shot prompts. Confidence: the larger of P(TRUE) and "
        f"P(FALSE), renormalised to the two (together they have a probability of {mass:.3f} or more). ECE: "
        f"{BINS_IN_WORDS}, weighted by statements; it is biased upward where statements are few. {_intervals()}"
        f"{_lacking(sets)}"
    )
    yield Table("confidence_calibration", "Calibration: is a stage right as often as it is sure?", caption,
                tuple(names), tuple(blocks), pd.DataFrame(tidy))  # fmt: skip


def reliability(groups: Sequence) -> Iterator[Drawing]:
    """Yield the reliability curves, a panel for each set and one for all together, a line for each stage.

    Example
    -------
    >>> [drawing.name for drawing in reliability([answers])]
    ['confidence/answers/reliability']
    """
    sets = [group for group in groups if isinstance(group, Answers)]
    if not sets:
        return
    caption = (
        f"{sets[0].family}: share of right answers against mean confidence, {BINS_IN_WORDS}; a point is a bin, its "
        f"area grows with its statements; a ring is one of fewer than {FEW}, through which no line goes. Bars: "
        f"{CONFIDENCE:.0%} Wilson intervals. On the grey line a stage is right "
        f"as often as it is sure, below it it is overconfident. n: statements, the same for all stages. Bins without "
        f"statements are left out.{_lacking(sets)}"
    )
    yield Drawing(
        "confidence/answers/reliability",
        "Reliability curves",
        caption,
        f"Accuracy against confidence for {', '.join(a.name for a in sets)}, a line for each of the stages "
        f"{', '.join(sets[0].stages)}.",
        _draw(sets),
        all(answers.complete for answers in sets),
    )


def _statistics(counts: np.ndarray, confidence, right) -> dict[str, np.ndarray]:
    """Of resamples that draw statement i `counts[:, i]` times; dims resample each."""
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    n = len(right)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), bins_of(confidence)] = right - confidence
    accuracy, mean = counts @ right / n, counts @ confidence / n
    return {
        "accuracy": accuracy,
        "confidence": mean,
        "overconfidence": mean - accuracy,
        "ece": np.abs(counts @ gaps).sum(axis=1) / n,
    }


def _estimated(n: int, statistics) -> dict[str, Estimate]:
    point = {name: float(values[0]) for name, values in statistics(np.ones((1, n))).items()}
    if n < 2:
        return {name: Estimate(value, np.nan, np.nan, n) for name, value in point.items()}
    rng = np.random.default_rng(SEED)
    draws: dict[str, list] = {name: [] for name in point}
    for start in range(0, RESAMPLES, CHUNK):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(CHUNK, RESAMPLES - start))
        for name, values in statistics(counts).items():
            draws[name].append(values)
    return {
        name: Estimate(point[name], *map(float, percentile_interval(np.concatenate(values))), n)
        for name, values in draws.items()
    }


def _rows(found: dict[str, dict[str, Estimate]], names: Sequence[str]) -> Iterator[Row]:
    for key, label, digits in STATISTICS:
        each = [found[name][key] for name in names]
        yield Row(label, tuple(cell(e.value, e.low, e.high, digits) for e in each))


def _tidy(family: str, stage: str, found: dict) -> Iterator[dict]:
    for name, values in found.items():
        for key, e in values.items():
            yield {"study": "confidence", "set": name, "family": family, "stage": stage, "statistic": key,
                   "estimate": e.value, "low": e.low, "high": e.high, "n_statements": e.n, "bins": BINS,
                   "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}  # fmt: skip


def _intervals() -> str:
    return (
        f"In brackets: {CONFIDENCE:.0%} percentile bootstrap intervals over statements ({RESAMPLES} resamples, seed "
        f"{SEED}); of a statistic that is the same for every statement they are a point."
    )


def _lacking(sets: Sequence[Answers]) -> str:
    lacking = [f"{answers.name} {answers.progress}" for answers in sets if not answers.complete]
    return f" INCOMPLETE: {', '.join(lacking)}." if lacking else ""


def _draw(sets: Sequence[Answers]) -> Figure:
    stages = sets[0].stages
    panels = [(a.name, {s: a.judged(s) for s in stages}) for a in sets]
    if len(sets) > 1:
        panels.append((POOLED, {s: pooled(sets, s) for s in stages}))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    colours = theme.stage_colours(stages)
    with theme.look():
        figure = theme.new_figure(0.5 + 1.75 * columns, 0.75 + 1.65 * rows)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.04)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (name, judged) in zip(axes.flat, panels, strict=False):
            n = len(next(iter(judged.values()))[1])
            ax.set_title(
                f"{name}  ·  n = {n}", pad=3, fontsize=6.5, fontweight="bold" if name == POOLED else "normal"
            )
            ax.plot([0.5, 1], [0.5, 1], color="#c3c8cf", linewidth=0.8, zorder=0)
            for i, stage in enumerate(stages):
                _curve(ax, *judged[stage], colours[stage], shift=0.006 * (i - (len(stages) - 1) / 2))
            ax.set(xlim=(0.48, 1.03), ylim=(-0.04, 1.06), xticks=[0.5, 0.75, 1], yticks=[0, 0.5, 1])
        # A panel with none below it carries the labels of its column.
        for i, ax in enumerate(axes.flat[: len(panels)]):
            if i + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel("mean confidence", labelpad=2)
        figure.supylabel("share of right answers", fontsize=7)
        figure.suptitle("reliability of the answers TRUE and FALSE", x=0.008, ha="left", fontsize=8)
        _legend(figure, colours)
    return figure


def _curve(ax: Axes, confidence: np.ndarray, right: np.ndarray, colour: str, shift: float) -> None:
    """Points of the bins that hold statements; the shift keeps stages apart."""
    which = bins_of(confidence)
    filled = np.unique(which)
    counts = np.array([(which == b).sum() for b in filled])
    x = np.array([confidence[which == b].mean() for b in filled]) + shift
    y = np.array([right[which == b].mean() for b in filled])
    low, high = wilson(y, counts)
    enough = counts >= FEW
    ax.plot(x[enough], y[enough], color=colour, linewidth=1.0)
    ax.vlines(x[enough], low[enough], high[enough], color=colour, linewidth=0.6, alpha=0.6)
    # A handful of statements says next to nothing: a faint ring, not a bar from end to end.
    ax.scatter(x[~enough], y[~enough], s=7, facecolors="none", edgecolors=colour, linewidths=0.5, alpha=0.6)
    size = 4 + 26 * counts[enough] / counts.sum()
    ax.scatter(x[enough], y[enough], s=size, color=colour, linewidths=0, zorder=3)


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker="o", markersize=3, label=stage) for stage, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
