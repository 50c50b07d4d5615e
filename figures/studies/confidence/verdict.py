"""The confidence study in one sentence: shared candidates, what ablating them does, and the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from posttrace.figures.group import first_of, of_type
from posttrace.figures.measures.calibration import estimates
from posttrace.figures.measures.entropy_neurons import hypergeometric_overlap
from posttrace.figures.measures.intervals import Estimate, bootstrap_mean, percentile_interval
from posttrace.figures.studies.confidence.data import METRICS, Answers, Metric, Neurons, OnText
from posttrace.figures.studies.confidence.tables import DIGITS, p_in_words, pooled
from posttrace.figures.tables import number
from posttrace.figures.verdict import Verdict, in_words, listed

CHANCE = 0.5
"""Accuracy of guessing TRUE or FALSE."""


def verdict(groups: Sequence[Neurons | OnText | Answers]) -> Verdict:
    """Compare the last stage with the first: candidates, their effect on the entropy, expected calibration error.

    Numbers are those of the tables `confidence_overlap`, `confidence_ablation` and `confidence_calibration`.
    """
    neurons, text, sets = first_of(groups, Neurons), first_of(groups, OnText), of_type(groups, Answers)
    words, caveats = [], []
    weak = False
    if neurons is not None and neurons.pairs():
        words.append(_overlap(neurons))
    if text is not None and text.finished:
        stage = text.finished[-1]
        effects = {
            metric.words: _ablation(text, stage, metric) for metric in METRICS if metric.quantity == "entropy"
        }
        n = next(iter(effects.values()))[0].n
        each = [f"{name} {_against_random(change, random)}" for name, (change, random) in effects.items()]
        words.append(
            f"Ablating {stage}'s candidates changes, in nats: {'; '.join(each)} (n = {n} documents)."
        )
        if any(random is None for _, random in effects.values()):
            weak = True
            caveats.append("No control: no random set was ablated, so any neurons might do the same.")
        within = [
            name
            for name, (change, random) in effects.items()
            if random is not None and random.low <= change.value <= random.high
        ]
        if within:
            caveats.append(
                "Within the range of random sets of similar norm, so not particular to the candidates: "
                f"{'; '.join(within)}."
            )
    doubtful: dict[str, str] = {}
    if sets and all(answers.any_finished for answers in sets):
        words.append(_calibration(sets))
        doubtful = {answers.name: why for answers in sets if (why := _guessed(answers))}
    if doubtful:
        caveats.append(
            f"In {len(doubtful)} of {len(sets)} sets ({listed(list(doubtful))}) a stage's accuracy is near that of "
            f"guessing ({CHANCE:g}), so its calibration says little: faded below."
        )
    return Verdict(
        sentence=" ".join(words) or "No stage can be compared with another yet.",
        caveat=" ".join(caveats),
        doubtful=doubtful,
        weak=weak or not words,
    )


def _overlap(neurons: Neurons) -> str:
    one, two = neurons.finished[0], neurons.finished[-1]
    count, shared = neurons.chosen.shape[1], neurons.shared(one, two)
    norms = [neurons.of(stage).norm for stage in (one, two)]
    chance = hypergeometric_overlap(norms, len(shared), neurons.top_share, count)
    return (
        f"{one} and {two} share {len(shared)} of {count} candidate entropy neurons ({number(chance.expected, 1)} "
        f"expected of a random draw, p {p_in_words(chance.p)})."
    )


def _ablation(text: OnText, stage: str, metric: Metric) -> tuple[Estimate, Estimate | None]:
    """Return the change by ablating the candidates, and the mean and 95 % range of random sets."""
    change = bootstrap_mean(text.change(stage, metric, "candidates")[0])
    sets = text.change(stage, metric, "random_set")
    if not len(sets):
        return change, None
    low, high = percentile_interval(sets.mean(axis=1))
    return change, Estimate(float(sets.mean()), float(low), float(high), len(sets))


def _against_random(change: Estimate, random: Estimate | None) -> str:
    control = f", {random.n} random sets (mean, 95 % range) {in_words(random, DIGITS)}" if random else ""
    return f"{in_words(change, DIGITS)}{control}"


def _calibration(sets: Sequence[Answers]) -> str:
    stages = sets[0].stages
    found = {
        stage: estimates(*pooled(sets, stage))["ece"] for stage in dict.fromkeys([stages[0], stages[-1]])
    }
    each = ", ".join(f"{stage} {in_words(ece, 3)}" for stage, ece in found.items())
    where = sets[0].name if len(sets) == 1 else f"{len(sets)} sets"
    return f"Expected calibration error: {each} ({where}, n = {found[stages[0]].n} statements)."


def _guessed(answers: Answers) -> str:
    found = {stage: estimates(*answers.judged(stage))["accuracy"] for stage in answers.stages}
    poor = [f"{stage} {in_words(e, 2)} (n = {e.n})" for stage, e in found.items() if not e.low > CHANCE]
    return f"Accuracy not clearly above guessing ({CHANCE:g}): {listed(poor)}." if poor else ""
