"""Tables of the candidate entropy neurons: how many two stages share, against chance, thresholds and behaviour.

Source: Du et al. 2025 (arXiv 2504.02904), table on entropy neurons; chance, sensitivity and intervals are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures import published
from posttrace.figures.confidence.calibration import differences, pooled
from posttrace.figures.confidence.results import Answers, Neurons, OnText
from posttrace.figures.confidence.selection import (
    BANDS,
    EXCHANGES,
    candidates,
    drawn,
    exchanged,
    mean_ratio_difference,
    overlap,
)
from posttrace.figures.statistics import CONFIDENCE, RESAMPLES, SEED, percentile_interval, resampled_means
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

SHARES = (0.10, 0.25, 0.50, 1.00)
COUNTS = (5, 10, 20, 50)
"""Thresholds of the sensitivity table: share of the neurons by norm, and candidates among them."""


def overlaps(groups: Sequence) -> Iterator[Table]:
    """Yield the tables `confidence_overlap` (as the paper's, with chance beside it) and `confidence_sensitivity`.

    Example
    -------
    >>> [table.name for table in overlaps([neurons])]
    ['confidence_overlap', 'confidence_sensitivity']
    """
    for neurons in (group for group in groups if isinstance(group, Neurons)):
        if neurons.pairs():
            yield _overlap(neurons)
            yield _sensitivity(neurons)


def chosen(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_candidates`: the neurons of every stage with their norm and LogitVar.

    Example
    -------
    >>> [table.name for table in chosen([neurons])]
    ['confidence_candidates']
    """
    import pandas as pd

    for neurons in (group for group in groups if isinstance(group, Neurons)):
        stages, tidy, rows = neurons.finished, [], []
        shared = set.intersection(*(set(map(int, neurons.of(stage)[2])) for stage in stages))
        for rank in range(neurons.chosen.shape[1]):
            cells = []
            for stage in stages:
                norm, logit_var, which = neurons.of(stage)
                neuron = int(which[rank])
                mark = "*" if neuron in shared and len(stages) > 1 else ""
                cells.append(Cell(f"{neuron}{mark}", f"({norm[neuron]:#.3g}; {logit_var[neuron]:#.3g})"))
                tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "stage": stage,
                             "rank": rank, "neuron": neuron, "weight_norm": norm[neuron],
                             "logit_var": logit_var[neuron]})  # fmt: skip
            rows.append(Row(str(rank + 1), tuple(cells)))
        caption = f"{_what(neurons)} In brackets |w_out| and LogitVar; * candidate of every stage."
        yield Table("confidence_candidates", "Candidates: which neurons?", caption, tuple(stages),
                    (Block("rank by LogitVar", tuple(rows)),), pd.DataFrame(tidy))  # fmt: skip


def beside(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_stages`: what stages share of the neurons beside how their confidence differs.

    Example
    -------
    >>> [table.name for table in beside([neurons, on_text, answers])]
    ['confidence_stages']
    """
    import pandas as pd

    neurons = next((group for group in groups if isinstance(group, Neurons)), None)
    text = next((group for group in groups if isinstance(group, OnText)), None)
    sets = [group for group in groups if isinstance(group, Answers)]
    if neurons is None or not neurons.pairs() or (text is None and not sets):
        return
    columns = ["candidates shared"]
    columns += ["entropy on text, nats", "loss on text, nats"] if text else []
    columns += ["mean confidence", "confidence − accuracy", "ECE"] if sets else []
    rows, tidy = [], []
    for one, two in neurons.pairs():
        shared, count = _shared(neurons, one, two), neurons.chosen.shape[1]
        cells = [Cell(f"{len(shared)} of {count}")]
        found = {}
        if text:
            found |= _on_text(text, one, two)
        if sets:
            each = differences(pooled(sets, one), pooled(sets, two))
            found |= {key: each[key] for key in ("confidence", "overconfidence", "ece")}
        for key, e in found.items():
            low, high = (e.low, e.high) if hasattr(e, "low") else e[1:3]
            value, n = (e.value, e.n) if hasattr(e, "low") else (e[0], e[3])
            cells.append(cell(value, low, high, 4))
            tidy.append({"study": "confidence", "family": neurons.family, "first": one, "second": two,
                         "overlap": len(shared), "statistic": key, "difference": value, "low": low, "high": high,
                         "n": n, "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED})  # fmt: skip
        rows.append(Row(f"{two} − {one}", tuple(cells)))
    caption = (
        f"{neurons.family}: candidate entropy neurons that two stages share, beside how their confidence differs: the "
        f"second stage minus the first, unablated, on the same documents and the same statements of all sets together. "
        f"In brackets: {CONFIDENCE:.0%} percentile bootstrap intervals over documents or statements ({RESAMPLES} "
        f"resamples, seed {SEED}). What the neurons themselves do is in the table on ablation."
    )
    yield Table("confidence_stages", "Side by side: do stages that share candidates share their confidence?", caption,
                tuple(columns), (Block("second − first", tuple(rows)),), pd.DataFrame(tidy))  # fmt: skip


def _overlap(neurons: Neurons) -> Table:
    import pandas as pd

    count, rows, tidy = neurons.chosen.shape[1], [], []
    for one, two in neurons.pairs():
        norms, variances = zip(*(neurons.of(s)[:2] for s in (one, two)), strict=True)
        shared = _shared(neurons, one, two)
        ratio = mean_ratio_difference(norms, variances, shared)
        plain = drawn(norms, len(shared), neurons.top_share, count)
        like = exchanged(norms, variances, len(shared), neurons.top_share, count)
        tied = [_rank_correlation(*values) for values in (norms, variances)]
        rows.append(Row(f"{one} and {two}", (
            Cell(str(len(shared))), Cell(number(ratio, 6)), Cell(number(plain.expected, 1), f"(p {_p(plain.p)})"),
            Cell(number(like.expected, 1), f"(p {_p(like.p)})"), *(Cell(number(r, 3)) for r in tied),
        )))  # fmt: skip
        tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "first": one,
                     "second": two, "candidates": count, "top_share": neurons.top_share, "overlap": len(shared),
                     "mean_ratio_difference": ratio, "expected_drawn": plain.expected, "p_drawn": plain.p,
                     "expected_exchanged": like.expected, "p_exchanged": like.p,
                     "spearman_weight_norm": tied[0], "spearman_logit_var": tied[1], "exchanges": EXCHANGES,
                     "seed": SEED})  # fmt: skip
    rows += [
        Row(
            f"{name} (Du et al. 2025)",
            (Cell(str(shared)), Cell(number(ratio, 6)), *[Cell("–")] * 4),
            published=True,
        )
        for name, (shared, ratio) in published.ENTROPY_NEURONS.items()
    ]
    caption = (
        f"{_what(neurons)} Ratio: |w_out| / log(LogitVar); mean over the overlapping neurons of the absolute "
        f"difference between the stages. Expected by chance: drawn, when each stage takes {count} at random from its "
        f"own top {neurons.top_share:.0%} by norm (exact, hypergeometric); exchanged, when LogitVar is exchanged at "
        f"random within {BANDS} bands of norm in each stage by itself ({EXCHANGES} exchanges, seed {SEED}). p: "
        f"probability of at least the overlap found. Spearman r over all neurons. Stages start from each other's "
        f"weights, so neither null says more than that the overlap is not luck."
    )
    return Table("confidence_overlap", "Overlap: do stages have the same candidate entropy neurons?", caption, (
        f"overlapping of {count}", "average ratio difference", "expected, drawn", "expected, exchanged",
        "Spearman r, norm", "Spearman r, LogitVar",
    ), (Block(f"{neurons.family}, layer {neurons.layer}", tuple(rows)),), pd.DataFrame(tidy))  # fmt: skip


def _sensitivity(neurons: Neurons) -> Table:
    import pandas as pd

    n, blocks, tidy = neurons.norm.shape[1], [], []
    counts = [count for count in COUNTS if count <= n]
    for one, two in neurons.pairs():
        norms, variances = zip(*(neurons.of(s)[:2] for s in (one, two)), strict=True)
        rows = []
        for share in SHARES:
            cells = []
            for count in counts:
                if count > int(n * share):
                    cells.append(Cell("–"))
                    continue
                found = overlap(
                    *(candidates(a, v, share, count) for a, v in zip(norms, variances, strict=True))
                )
                null = drawn(norms, found, share, count)
                cells.append(Cell(str(found), f"({number(null.expected, 1)})"))
                tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "first": one,
                             "second": two, "top_share": share, "candidates": count, "overlap": found,
                             "expected_drawn": null.expected, "p_drawn": null.p})  # fmt: skip
            rows.append(Row(f"top {share:.0%} by norm", tuple(cells)))
        blocks.append(Block(f"{one} and {two}", tuple(rows)))
    caption = (
        f"{neurons.family}, layer {neurons.layer}, {n} neurons: overlapping candidates for other thresholds; the "
        f"paper's are the top 25% by norm and 10 of them. In brackets what is expected by chance (drawn, as in the "
        f"table on overlap)."
    )
    return Table("confidence_sensitivity", "Thresholds: does the overlap hang on them?", caption,
                 tuple(f"{count} candidates" for count in counts), tuple(blocks), pd.DataFrame(tidy))  # fmt: skip


def _on_text(text: OnText, one: str, two: str) -> dict[str, tuple]:
    """Difference of the unablated stages: value, low, high, documents."""
    both = text.documents(one) & text.documents(two)
    if not both.any():
        return {what: (np.nan, np.nan, np.nan, 0) for what in ("entropy", "loss")}
    found = {}
    for what in ("entropy", "loss"):
        first, second = (text.plain[what][text.stages.index(s)][both].astype(np.float64) for s in (one, two))
        found[what] = mean_with_interval(second - first)
    return found


def mean_with_interval(values: np.ndarray) -> tuple[float, float, float, int]:
    """Return the mean over documents, the ends of its percentile interval (NaN for one document), and their number.

    Example
    -------
    >>> mean_with_interval(np.ones(5))
    (1.0, 1.0, 1.0, 5)
    """
    n = len(values)
    if n < 2:
        return float(values.mean()), np.nan, np.nan, n
    draws = np.concatenate(list(resampled_means(values, np.random.default_rng(SEED))))
    low, high = percentile_interval(draws)
    return float(values.mean()), float(low), float(high), n


def _shared(neurons: Neurons, one: str, two: str) -> np.ndarray:
    return np.intersect1d(neurons.of(one)[2], neurons.of(two)[2])


def _rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, two).statistic)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _what(neurons: Neurons) -> str:
    lacking = "" if neurons.complete else f" INCOMPLETE: {neurons.progress}."
    return (
        f"{neurons.family}, layer {neurons.layer}, {neurons.norm.shape[1]} neurons: candidate entropy neurons are the "
        f"{neurons.chosen.shape[1]} with the smallest LogitVar among the top {neurons.top_share:.0%} by |w_out|; from "
        f"the weights alone, with the final norm folded into the unembedding and the unembedding centred.{lacking}"
    )
