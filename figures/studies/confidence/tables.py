"""Tables of the confidence study: candidate entropy neurons, their ablation, and the calibration of the answers.

Sources: Du et al. 2025 (arXiv 2504.02904), table on entropy neurons; chance, sensitivity and intervals are ours.
Stolfo et al. 2024, "Confidence Regulation Neurons" (arXiv 2406.16254), total and direct effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures import published
from posttrace.figures.group import first_of, of_type
from posttrace.figures.measures.calibration import BINS, Judged, differences, estimates
from posttrace.figures.measures.entropy_neurons import (
    BANDS,
    PERMUTATIONS,
    candidates,
    hypergeometric_overlap,
    mean_ratio_difference,
    overlap,
    permutation_overlap,
)
from posttrace.figures.measures.intervals import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Estimate,
    bootstrap_mean,
    permutation_p,
)
from posttrace.figures.studies.confidence.data import METRICS, Answers, Neurons, OnText
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

SHARES = (0.10, 0.25, 0.50, 1.00)

COUNTS = (5, 10, 20, 50)
"""Thresholds of the sensitivity table: share of the neurons by norm, and candidates among them."""

STATISTICS = {
    "accuracy": "accuracy",
    "confidence": "mean confidence",
    "overconfidence": "mean confidence − accuracy",
    "ece": "ECE",
}
"""Name in the tidy table -> label."""

BINS_IN_WORDS = f"{BINS} bins of equal width over confidences of 0.5 to 1"

POOLED = "all sets"

DIGITS = 4


def overlaps(groups: Sequence) -> Iterator[Table]:
    """Yield the tables `confidence_overlap` (compared with chance) and `confidence_sensitivity`."""
    for neurons in of_type(groups, Neurons):
        if neurons.pairs():
            yield _overlap(neurons)
            yield _sensitivity(neurons)


def candidate_lists(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_candidates`: the neurons of every stage with their norm and LogitVar."""
    for neurons in of_type(groups, Neurons):
        stages, tidy, rows = neurons.finished, [], []
        shared = set.intersection(*(set(map(int, neurons.of(stage).chosen)) for stage in stages))
        for rank in range(neurons.chosen.shape[1]):
            cells = []
            for stage in stages:
                one = neurons.of(stage)
                neuron = int(one.chosen[rank])
                mark = "*" if neuron in shared and len(stages) > 1 else ""
                cells.append(
                    Cell(f"{neuron}{mark}", f"({one.norm[neuron]:#.3g}; {one.logit_var[neuron]:#.3g})")
                )
                tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "stage": stage,
                             "rank": rank, "neuron": neuron, "weight_norm": one.norm[neuron],
                             "logit_var": one.logit_var[neuron]})  # fmt: skip
            rows.append(Row(str(rank + 1), tuple(cells)))
        caption = f"{_what(neurons)} In brackets: |w_out| and LogitVar; *: candidate in every stage."
        yield Table(
            name="confidence_candidates",
            heading="Candidates: which neurons?",
            caption=caption,
            columns=tuple(stages),
            blocks=(Block("rank by LogitVar", tuple(rows)),),
            records=tidy,
        )


def stages_compared(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_stages`: shared candidates next to differences of confidence."""
    neurons, text = first_of(groups, Neurons), first_of(groups, OnText)
    sets = of_type(groups, Answers)
    if neurons is None or not neurons.pairs() or (text is None and not sets):
        return
    columns = ["candidates shared"]
    columns += ["entropy on text, nats", "loss on text, nats"] if text else []
    columns += ["mean confidence", "confidence − accuracy", "ECE"] if sets else []
    rows, tidy = [], []
    for one, two in neurons.pairs():
        shared, count = neurons.shared(one, two), neurons.chosen.shape[1]
        cells = [Cell(f"{len(shared)} of {count}")]
        found: dict[str, Estimate] = {}
        if text:
            found |= _on_text(text, one, two)
        if sets:
            each = differences(pooled(sets, one), pooled(sets, two))
            found |= {key: each[key] for key in ("confidence", "overconfidence", "ece")}
        for key, e in found.items():
            cells.append(cell(e.value, e.low, e.high, 4))
            tidy.append({"study": "confidence", "family": neurons.family, "first": one, "second": two,
                         "overlap": len(shared), "statistic": key, "difference": e.value, "low": e.low, "high": e.high,
                         "n": e.n, "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED})  # fmt: skip
        rows.append(Row(f"{two} − {one}", tuple(cells)))
    caption = (
        f"{neurons.family}: candidate entropy neurons that two stages share, and how their confidence differs: second "
        f"stage minus first, unablated, on the same documents and on the same statements of all sets together. "
        f"In brackets: {CONFIDENCE:.0%} percentile bootstrap intervals over documents or statements ({RESAMPLES} "
        f"resamples, seed {SEED}). The effect of the neurons themselves is in the ablation table."
    )
    yield Table(
        name="confidence_stages",
        heading="Side by side: do stages that share candidates share their confidence?",
        caption=caption,
        columns=tuple(columns),
        blocks=(Block("second − first", tuple(rows)),),
        records=tidy,
    )


def pooled(sets: Sequence[Answers], stage: str) -> Judged:
    """Return confidence and correctness over the statements of all sets."""
    judged = [answers.judged(stage) for answers in sets]
    return Judged(
        confidence=np.concatenate([one.confidence for one in judged]),
        right=np.concatenate([one.right for one in judged]),
    )


def calibration(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_calibration`: per stage and set, and later stages minus the first."""
    sets = of_type(groups, Answers)
    if not sets:
        return
    stages = sets[0].stages
    names = [*(answers.name for answers in sets), *([POOLED] if len(sets) > 1 else [])]
    judged = {
        (name, stage): pooled(sets, stage) if name == POOLED else sets[names.index(name)].judged(stage)
        for name in names
        for stage in stages
    }
    blocks, tidy = [], list[dict]()
    for stage in stages:
        found = {name: estimates(*judged[name, stage]) for name in names}
        counts = Row("statements", tuple(Cell(str(found[name]["ece"].n)) for name in names))
        blocks.append(Block(stage, (counts, *_calibration_rows(found, names))))
        tidy += _tidy_calibration(sets[0].family, stage, found)
    for stage in stages[1:]:
        found = {name: differences(judged[name, stages[0]], judged[name, stage]) for name in names}
        words = f"{stage} − {stages[0]}"
        blocks.append(Block(f"{words}, same statements", tuple(_calibration_rows(found, names))))
        tidy += _tidy_calibration(sets[0].family, words, found)
    mass = min(float(np.nanmin(answers.answer_mass)) for answers in sets)
    caption = (
        f"{sets[0].family}: calibration of the answers to few-shot prompts. Confidence: the larger of P(TRUE) and "
        f"P(FALSE), renormalised (their sum is at least {mass:.3f}). ECE: "
        f"{BINS_IN_WORDS}, weighted by statements; it is biased upward where statements are few. "
        f"{_calibration_intervals()}{lacking(sets)}"
    )
    yield Table(
        name="confidence_calibration",
        heading="Calibration: is a stage right as often as it is confident?",
        caption=caption,
        columns=tuple(names),
        blocks=tuple(blocks),
        records=tidy,
    )


def lacking(sets: Sequence[Answers]) -> str:
    lacking = [f"{answers.name} {answers.progress}" for answers in sets if not answers.complete]
    return f" INCOMPLETE: {', '.join(lacking)}." if lacking else ""


def ablation(groups: Sequence) -> Iterator[Table]:
    """Yield the table `confidence_ablation`: changes of entropy and loss, per stage."""
    norms = first_of(groups, Neurons)
    for text in of_type(groups, OnText):
        found = {stage: _ablation_of_stage(text, stage) for stage in text.finished}
        blocks = [Block(stage, tuple(rows)) for stage, (rows, _) in found.items()]
        tidy = [row for _, each in found.values() for row in each]
        yield Table(
            name="confidence_ablation",
            heading="Ablation: do the candidates have an effect?",
            caption=ablation_caption(text, norms),
            columns=tuple(metric.words for metric in METRICS),
            blocks=tuple(blocks),
            records=tidy,
        )


def ablation_caption(text: OnText, norms: Neurons | None) -> str:
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
        f"effect). Random: {sets} sets of the same size as the candidates, and {singles} single neurons, from the "
        f"candidates' range of norms.{like} {said}, {tokens} scored tokens ({text.stages[0]}). In brackets: "
        f"{CONFIDENCE:.0%} percentile bootstrap intervals over documents ({RESAMPLES} resamples, seed {SEED}), unless "
        f"the row says otherwise."
    )


def _overlap(neurons: Neurons) -> Table:
    count, rows, tidy = neurons.chosen.shape[1], [], []
    for one, two in neurons.pairs():
        both = [neurons.of(stage) for stage in (one, two)]
        norms, variances = [each.norm for each in both], [each.logit_var for each in both]
        shared = neurons.shared(one, two)
        ratio = mean_ratio_difference(norms, variances, shared)
        plain = hypergeometric_overlap(norms, len(shared), neurons.top_share, count)
        like = permutation_overlap(norms, variances, len(shared), neurons.top_share, count)
        tied = [_rank_correlation(*values) for values in (norms, variances)]
        rows.append(Row(f"{one} and {two}", (
            Cell(str(len(shared))), Cell(number(ratio, 6)),
            Cell(number(plain.expected, 1), f"(p {p_in_words(plain.p)})"),
            Cell(number(like.expected, 1), f"(p {p_in_words(like.p)})"), *(Cell(number(r, 3)) for r in tied),
        )))  # fmt: skip
        tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "first": one,
                     "second": two, "candidates": count, "top_share": neurons.top_share, "overlap": len(shared),
                     "mean_ratio_difference": ratio, "expected_hypergeometric": plain.expected,
                     "p_hypergeometric": plain.p, "expected_permutation": like.expected, "p_permutation": like.p,
                     "spearman_weight_norm": tied[0], "spearman_logit_var": tied[1], "permutations": PERMUTATIONS,
                     "seed": SEED})  # fmt: skip
    rows += [
        Row(
            f"{name} (Du et al. 2025)",
            (Cell(str(shared)), Cell(number(ratio, 6)), *[Cell("–")] * 4),
            published=True,
        )
        for name, (shared, ratio) in published.ENTROPY_NEURONS.items()
        if published.is_about(neurons.family, name)
    ]
    caption = (
        f"{_what(neurons)} Ratio: |w_out| / log(LogitVar); mean over the overlapping neurons of the absolute "
        f"difference between the stages. Expected by chance: random draw, if each stage took {count} at random from "
        f"its own top {neurons.top_share:.0%} by norm (exact, hypergeometric); permutation, if LogitVar were permuted "
        f"within {BANDS} bands of norm in each stage separately ({PERMUTATIONS} permutations, seed {SEED}). p: "
        f"probability of at least the observed overlap. Spearman r over all neurons. Stages are trained from each "
        f"other's weights, so either null only shows that the overlap is not luck."
    )
    return Table(
        name="confidence_overlap",
        heading="Overlap: do stages have the same candidate entropy neurons?",
        caption=caption,
        columns=(
            f"overlapping of {count}",
            "average ratio difference",
            "expected, random draw",
            "expected, permutation",
            "Spearman r, norm",
            "Spearman r, LogitVar",
        ),
        blocks=(Block(f"{neurons.family}, layer {neurons.layer}", tuple(rows)),),
        records=tidy,
    )


def _sensitivity(neurons: Neurons) -> Table:
    n, blocks, tidy = neurons.norm.shape[1], [], []
    counts = [count for count in COUNTS if count <= n]
    for one, two in neurons.pairs():
        both = [neurons.of(stage) for stage in (one, two)]
        norms, variances = [each.norm for each in both], [each.logit_var for each in both]
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
                null = hypergeometric_overlap(norms, found, share, count)
                cells.append(Cell(str(found), f"({number(null.expected, 1)})"))
                tidy.append({"study": "confidence", "family": neurons.family, "layer": neurons.layer, "first": one,
                             "second": two, "top_share": share, "candidates": count, "overlap": found,
                             "expected_hypergeometric": null.expected, "p_hypergeometric": null.p})  # fmt: skip
            rows.append(Row(f"top {share:.0%} by norm", tuple(cells)))
        blocks.append(Block(f"{one} and {two}", tuple(rows)))
    caption = (
        f"{neurons.family}, layer {neurons.layer}, {n} neurons: overlapping candidates for other thresholds; the "
        f"paper's are the top 25% by norm and 10 candidates. In brackets: expected by chance (random draw, as in the "
        f"overlap table)."
    )
    return Table(
        name="confidence_sensitivity",
        heading="Thresholds: does the overlap depend on them?",
        caption=caption,
        columns=tuple(f"{count} candidates" for count in counts),
        blocks=tuple(blocks),
        records=tidy,
    )


def _on_text(text: OnText, one: str, two: str) -> dict[str, Estimate]:
    """Return the difference of the unablated stages over the documents finished in both."""
    both = text.documents(one) & text.documents(two)
    found = {}
    for what in ("entropy", "loss"):
        first, second = (text.plain[what][text.stages.index(s)][both].astype(np.float64) for s in (one, two))
        found[what] = bootstrap_mean(second - first)
    return found


def _rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, two).statistic)


def p_in_words(value: float) -> str:
    """Return "= 0.012", or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _what(neurons: Neurons) -> str:
    lacking = "" if neurons.complete else f" INCOMPLETE: {neurons.progress}."
    return (
        f"{neurons.family}, layer {neurons.layer}, {neurons.norm.shape[1]} neurons: candidate entropy neurons are the "
        f"{neurons.chosen.shape[1]} with the smallest LogitVar among the top {neurons.top_share:.0%} by |w_out|; from "
        f"the weights alone, with the final norm folded into the unembedding and the unembedding centred.{lacking}"
    )


def _calibration_rows(found: dict[str, dict[str, Estimate]], names: Sequence[str]) -> Iterator[Row]:
    for key, label in STATISTICS.items():
        each = [found[name][key] for name in names]
        yield Row(label, tuple(cell(e.value, e.low, e.high, 3) for e in each))


def _tidy_calibration(family: str, stage: str, found: dict) -> Iterator[dict]:
    for name, values in found.items():
        for key, e in values.items():
            yield {"study": "confidence", "set": name, "family": family, "stage": stage, "statistic": key,
                   "estimate": e.value, "low": e.low, "high": e.high, "n_statements": e.n, "bins": BINS,
                   "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}  # fmt: skip


def _calibration_intervals() -> str:
    return (
        f"In brackets: {CONFIDENCE:.0%} percentile bootstrap intervals over statements ({RESAMPLES} resamples, seed "
        f"{SEED}); they have no width for a statistic that is the same for every statement."
    )


def _ablation_of_stage(text: OnText, stage: str) -> tuple[list[Row], list[dict]]:
    at, done = text.stages.index(stage), text.documents(stage)
    n = int(done.sum())
    common = {"study": "confidence", "family": text.family, "layer": text.layer, "stage": stage}
    tidy = []
    names = ("plain", "set", "random", "range", "share", "one", "single", "single_range")
    cells: dict[str, list[Cell]] = {key: [] for key in names}
    for metric in METRICS:
        plain = bootstrap_mean(text.plain[metric.quantity][at][done].astype(np.float64))
        cells["plain"].append(
            cell(plain.value, plain.low, plain.high, 3) if metric.effect == "total" else Cell("")
        )
        together, sets, ones, singles = (
            text.change(stage, metric, kind)
            for kind in ("candidates", "random_set", "candidate", "random_neuron")
        )
        change = bootstrap_mean(together[0])
        share = permutation_p(change.value, sets.mean(axis=1))
        cells["set"].append(cell(change.value, change.low, change.high, DIGITS))
        cells["random"].append(Cell(number(float(sets.mean()), DIGITS)))
        cells["range"].append(_range(sets.mean(axis=1)))
        cells["share"].append(Cell(number(share, 2)))
        cells["one"].append(Cell(number(float(ones.mean()), DIGITS), _range(ones.mean(axis=1), (0, 1)).text))
        cells["single"].append(Cell(number(float(singles.mean()), DIGITS)))
        cells["single_range"].append(_range(singles.mean(axis=1)))
        tidy.append({**common, "quantity": metric.quantity, "effect": metric.effect, "unablated": plain.value,
                     "change": change.value, "low": change.low, "high": change.high, "n_documents": n,
                     "n_random_sets": len(sets), "random_mean": float(sets.mean()),
                     "random_low": float(np.quantile(sets.mean(axis=1), 0.025)),
                     "random_high": float(np.quantile(sets.mean(axis=1), 0.975)), "share_as_large": share,
                     "one_candidate_mean": float(ones.mean()), "n_random_neurons": len(singles),
                     "one_random_mean": float(singles.mean()), "unit": "nats", "confidence": CONFIDENCE,
                     "resamples": RESAMPLES, "seed": SEED})  # fmt: skip
    count, n_sets, n_singles = (
        int((text.kind == kind).sum()) for kind in ("candidate", "random_set", "random_neuron")
    )
    labels = {
        "plain": f"unablated, {n} documents",
        "set": f"{count} candidates together",
        "random": f"{n_sets} random sets, mean",
        "range": "random sets, 95% of them",
        "share": "share with as large a change",
        "one": "one candidate, mean [all]",
        "single": f"{n_singles} random neurons, mean",
        "single_range": "random neurons, 95% of them",
    }
    return [Row(label, tuple(cells[key])) for key, label in labels.items()], tidy


def _range(values: np.ndarray, ends: tuple[float, float] = (0.025, 0.975)) -> Cell:
    low, high = np.quantile(values, ends)
    return Cell(f"[{number(float(low), DIGITS)}, {number(float(high), DIGITS)}]")


def _mean_norm(text: OnText, norms: Neurons, stage: str, kind: str) -> float:
    members = text.ablated[text.stages.index(stage)][text.kind == kind]
    return float(norms.of(stage).norm[members[members >= 0]].mean())
