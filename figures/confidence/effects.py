"""What ablating the candidates does to entropy and loss, beside random neurons of like norm: a table and a figure.

Source of the two kinds of effect: Stolfo et al. 2024, "Confidence Regulation Neurons" (arXiv 2406.16254).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.confidence.overlap import mean_with_interval
from posttrace.figures.confidence.results import METRICS, Neurons, OnText
from posttrace.figures.drawing import Drawing
from posttrace.figures.statistics import CONFIDENCE, RESAMPLES, SEED
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (("candidates", "random_set", "set"), ("candidate", "random_neuron", "one"))
"""What is looked at, what it is compared with, and the place on the axis."""
DIGITS = 4


def ablation(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_ablation`: changes of entropy and loss, per stage.

    Example
    -------
    >>> [table.name for table in ablation([on_text])]
    ['confidence_ablation']
    """
    import pandas as pd

    norms = next((group for group in groups if isinstance(group, Neurons)), None)
    for text in (group for group in groups if isinstance(group, OnText)):
        found = {stage: _stage(text, stage) for stage in text.finished}
        blocks = [Block(stage, tuple(rows)) for stage, (rows, _) in found.items()]
        tidy = [row for _, each in found.values() for row in each]
        yield Table("confidence_ablation", "Ablation: do the candidates do anything?", _caption(text, norms),
                    tuple(words for _, _, words in METRICS), tuple(blocks), pd.DataFrame(tidy))  # fmt: skip


def changes(groups: Sequence) -> Iterator[Drawing]:
    """Yield the figure of all changes: random sets and neurons as dots, the candidates marked.

    Example
    -------
    >>> [drawing.name for drawing in changes([on_text])]
    ['confidence/text/changes']
    """
    norms = next((group for group in groups if isinstance(group, Neurons)), None)
    for text in (group for group in groups if isinstance(group, OnText)):
        yield Drawing(
            "confidence/text/changes",
            "Changes of entropy and loss by ablation",
            f"{_caption(text, norms)} Grey dots: random sets and single random neurons; diamond: the candidates "
            f"together; small diamonds: one candidate each. Bar: interval of the candidates together over documents. "
            f"Each column of panels has its own scale.",
            "Strip plots of the change of entropy and loss when candidates and random neurons are ablated.",
            _draw(text),
            text.complete,
        )


def as_large(change: float, others: np.ndarray) -> float:
    """Return the share of random changes at least as large in absolute value, the given one counted in.

    Example
    -------
    >>> as_large(2.0, np.array([-3.0, 1.0, 0.5]))
    0.5
    """
    return float((1 + (np.abs(others) >= abs(change)).sum()) / (1 + len(others)))


def _stage(text: OnText, stage: str) -> tuple[list[Row], list[dict]]:
    at, done = text.stages.index(stage), text.documents(stage)
    n = int(done.sum())
    common = {"study": "confidence", "family": text.family, "layer": text.layer, "stage": stage}
    tidy, cells = (
        [],
        {key: [] for key in ("plain", "set", "random", "range", "share", "one", "single", "single_range")},
    )
    for what, how, _ in METRICS:
        plain = mean_with_interval(text.plain[what][at][done].astype(np.float64))
        cells["plain"].append(cell(*plain[:3], 3) if how == "total" else Cell(""))
        together, sets, ones, singles = (
            text.change(stage, what, how, kind)
            for kind in ("candidates", "random_set", "candidate", "random_neuron")
        )
        value, low, high, _ = mean_with_interval(together[0])
        share = as_large(value, sets.mean(axis=1))
        cells["set"].append(cell(value, low, high, DIGITS))
        cells["random"].append(Cell(number(float(sets.mean()), DIGITS)))
        cells["range"].append(_range(sets.mean(axis=1)))
        cells["share"].append(Cell(number(share, 2)))
        cells["one"].append(Cell(number(float(ones.mean()), DIGITS), _range(ones.mean(axis=1), (0, 1)).text))
        cells["single"].append(Cell(number(float(singles.mean()), DIGITS)))
        cells["single_range"].append(_range(singles.mean(axis=1)))
        tidy.append({**common, "quantity": what, "effect": how, "unablated": plain[0], "change": value, "low": low,
                     "high": high, "n_documents": n, "n_random_sets": len(sets), "random_mean": float(sets.mean()),
                     "random_low": float(np.quantile(sets.mean(axis=1), 0.025)),
                     "random_high": float(np.quantile(sets.mean(axis=1), 0.975)), "share_as_large": share,
                     "one_candidate_mean": float(ones.mean()), "n_random_neurons": len(singles),
                     "one_random_mean": float(singles.mean()), "unit": "nats", "confidence": CONFIDENCE,
                     "resamples": RESAMPLES, "seed": SEED})  # fmt: skip
    count, sets, singles = (
        int((text.kind == kind).sum()) for kind in ("candidate", "random_set", "random_neuron")
    )
    labels = {
        "plain": f"unablated, {n} documents",
        "set": f"{count} candidates together",
        "random": f"{sets} random sets, mean",
        "range": "random sets, 95% of them",
        "share": "share with as large a change",
        "one": "one candidate, mean [all]",
        "single": f"{singles} random neurons, mean",
        "single_range": "random neurons, 95% of them",
    }
    return [Row(label, tuple(cells[key])) for key, label in labels.items()], tidy


def _range(values: np.ndarray, ends: tuple[float, float] = (0.025, 0.975)) -> Cell:
    low, high = np.quantile(values, ends)
    return Cell(f"[{number(float(low), DIGITS)}, {number(float(high), DIGITS)}]")


def _caption(text: OnText, norms: Neurons | None) -> str:
    documents = ", ".join(f"{stage} {int(text.documents(stage).sum())}" for stage in text.stages)
    said = (
        f"{text.planned} documents"
        if text.complete
        else f"INCOMPLETE, of {text.planned} documents only {documents}"
    )
    tokens = (
        int(text.n_tokens[0][text.documents(text.stages[0])].sum())
        if text.documents(text.stages[0]).any()
        else 0
    )
    sets, singles = (int((text.kind == kind).sum()) for kind in ("random_set", "random_neuron"))
    like = ""
    if norms is not None:
        like = " Mean |w_out| of candidates and random neurons: " + ", ".join(
            f"{stage} {_mean_norm(text, norms, stage, 'candidates'):.3f} and "
            f"{_mean_norm(text, norms, stage, 'random_neuron'):.3f}"
            for stage in text.finished
            if stage in norms.finished
        )
        like += "."
    return (
        f"{text.family}, layer {text.layer}, on {text.text}: change of the next token's entropy and of the loss "
        f"(-log P of the next token), nats, mean over documents of the mean over their tokens, when neurons are "
        f"held at their mean activation; norm frozen: the final norm keeps the scale of the unablated run (direct "
        f"effect). Random: {sets} sets as large as that of the candidates, and {singles} single neurons, from the "
        f"candidates' range of norms.{like} {said}, {tokens} scored tokens ({text.stages[0]}). In brackets: "
        f"{CONFIDENCE:.0%} percentile bootstrap intervals over documents ({RESAMPLES} resamples, seed {SEED}), or what "
        f"is said."
    )


def _mean_norm(text: OnText, norms: Neurons, stage: str, kind: str) -> float:
    members = text.ablated[text.stages.index(stage)][text.kind == kind]
    return float(norms.of(stage)[0][members[members >= 0]].mean())


def _draw(text: OnText) -> Figure:
    stages = text.finished
    colours = theme.stage_colours(text.stages)
    with theme.look():
        figure = theme.new_figure(0.6 + 1.55 * len(METRICS), 0.75 + 1.25 * len(stages))
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
        axes = figure.subplots(len(stages), len(METRICS), sharex=True, sharey="col", squeeze=False)
        for row, stage in zip(axes, stages, strict=True):
            for ax, (what, how, _) in zip(row, METRICS, strict=True):
                _panel(ax, text, stage, what, how, colours[stage])
            row[0].set_ylabel(f"{stage}\nchange, nats")
        for ax, (_, _, words) in zip(axes[0], METRICS, strict=True):
            ax.set_title(words, pad=4)
        count = int((text.kind == "candidate").sum())
        for ax in axes[-1]:
            ax.set_xticks([0, 1], [f"{count} neurons", "one neuron"])
        n = text.planned
        done = f"n = {n} documents" if text.complete else f"INCOMPLETE ({n} documents planned)"
        figure.suptitle(
            f"{text.family}  ·  neurons of layer {text.layer} at their mean  ·  {done}",
            x=0.008,
            ha="left",
            fontsize=8,
        )
        _legend(figure)
    return figure


def _panel(ax: Axes, text: OnText, stage: str, what: str, how: str, colour: str) -> None:
    ax.axhline(0, color="#c3c8cf", linewidth=0.7, zorder=0)
    for place, (kind, other, _) in enumerate(KINDS):
        random = text.change(stage, what, how, other).mean(axis=1)
        # Spread evenly in order of value, so that the same store gives the same dots.
        aside = 0.3 * ((np.arange(len(random)) * 0.618034) % 1 - 0.5)
        ax.scatter(place - 0.18 + aside, random, s=5, color="#9aa1ab", linewidths=0, alpha=0.8)
        mine = text.change(stage, what, how, kind)
        if len(mine) == 1:
            value, low, high, _ = mean_with_interval(mine[0])
            ax.vlines(place + 0.25, low, high, color=colour, linewidth=1.0)
            ax.scatter([place + 0.25], [value], s=26, marker="D", color=colour, linewidths=0, zorder=3)
        else:
            means = mine.mean(axis=1)
            aside = 0.2 * ((np.arange(len(means)) * 0.618034) % 1 - 0.5)
            ax.scatter(place + 0.25 + aside, means, s=9, marker="D", color=colour, linewidths=0, zorder=3)
    ax.set_xlim(-0.6, 1.6)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    empty = dict(linestyle="none")
    figure.legend(
        handles=[
            Line2D([], [], color="#9aa1ab", marker="o", markersize=2.5, label="random, like norm", **empty),
            Line2D([], [], color=theme.INK, marker="D", markersize=4.5, label="candidates together", **empty),
            Line2D([], [], color=theme.INK, marker="D", markersize=2.8, label="one candidate", **empty),
        ],
        loc="outside lower center",
        ncols=3,
    )
