"""Tables of the truthfulness study: whether probes and directions work in other stages as well as in their own.

Source of the two main tables: Du et al. 2025 (arXiv 2504.02904), probe transfer accuracy and truthful intervention
effects; intervals, random directions and the other ordered pairs of stages are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from posttrace.figures import published
from posttrace.figures.measures import interventions
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED, Bootstrap, mean_of, middle_range
from posttrace.figures.studies.truthfulness.data import (
    StatementSet,
    Summary,
    accuracy,
    effect,
    parted,
    steered_sets,
    tested_sets,
)
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

PROBES = {"mass_mean": "mass-mean probe", "logistic": "logistic regression", "ttpd": "TTPD"}

KINDS = {"both": "mean of both", "false_to_true": "false to true", "true_to_false": "true to false"}

MEAN = "mean over sets"

PERCENT = 100.0


class Column(NamedTuple):
    """A column of the two main tables."""

    kind: str
    """own, transferred, delta or random"""
    source: str
    target: str


def accuracies(groups: Sequence[Summary | StatementSet]) -> Iterator[Table]:
    """Yield `truthfulness_accuracy`: own and base's probe on every stage, and the difference; and `truthfulness_pairs`.

    The second table has every ordered pair of stages, mean over sets.
    """
    summary, sets = parted(groups)
    names = tested_sets(summary, sets) if summary else []
    if summary is None or not names:
        return
    found = {name: accuracy(sets[name], summary.layer(name)) for name in names}
    found[MEAN] = mean_of([found[name] for name in names])
    columns = columns_of(summary.stages)
    blocks, pairs, tidy = [], [], list[dict]()
    for k, probe in enumerate(summary.probes):
        rows = []
        for name, drawn in found.items():
            one = Bootstrap(PERCENT * drawn.value[k], PERCENT * drawn.draws[:, k], drawn.n)
            rows.append(Row(_with_n(name, one.n), tuple(_cell(one, c, summary.stages, 1) for c in columns)))
            theirs = published.PROBE_TRANSFER.get(name) if probe == "mass_mean" else None
            rows += _published(summary, theirs, columns, 1)
            tidy += _tidy_accuracy(summary, name, probe, drawn, k)
        blocks.append(Block(PROBES.get(probe, probe), tuple(rows)))
        whole = Bootstrap(PERCENT * found[MEAN].value[k], PERCENT * found[MEAN].draws[:, k], found[MEAN].n)
        pairs.append(Block(f"{PROBES.get(probe, probe)}, trained on", _pair_rows(whole, summary.stages)))
    words = f"{_family(summary, names, len(summary.sets))}{_layers(summary, names)} {interval_words()}{_ttpd(summary)}"
    yield Table(
        name="truthfulness_accuracy",
        heading="Probe transfer: does another stage's probe do as well as one's own?",
        caption=(
            f"Accuracy in per cent on the held-out set, probe → stage whose activations it judges; "
            f"Δ: base's probe minus the stage's own, percentage points, on the same resamples. {words}"
        ),
        columns=tuple(_heading(c) for c in columns),
        blocks=tuple(blocks),
        records=tidy,
    )
    yield Table(
        name="truthfulness_pairs",
        heading="Probes between all stages: trained on one, tested on another",
        caption=(
            f"Accuracy in per cent, mean over {len(names)} sets held out in turn; rows: stage that the probe was "
            f"trained on, columns: stage that it judges. {words}"
        ),
        columns=tuple(f"on {stage}" for stage in summary.stages),
        blocks=tuple(pairs),
        records=[row for row in tidy if row["set"] == MEAN],
    )


def effects(groups: Sequence[Summary | StatementSet]) -> Iterator[Table]:
    """Yield the table `truthfulness_effects`: own and base's direction on every stage, and random directions."""
    summary, sets = parted(groups)
    names = steered_sets(summary, sets) if summary else []
    if summary is None or not names:
        return
    found = {name: effect(sets[name]) for name in names}
    found[MEAN] = mean_of([found[name] for name in names])
    columns = columns_of(summary.stages, random=True)
    blocks, tidy = [], list[dict]()
    controls = sets[names[0]].controls
    learned = [summary.directions.index(stage) for stage in summary.stages]
    for k, kind in enumerate(interventions.KINDS):
        rows = []
        for name, drawn in found.items():
            one = Bootstrap(drawn.value[k][learned], drawn.draws[:, k][:, learned], drawn.n)
            control = drawn.value[k][controls]
            rows.append(
                Row(_with_n(name, one.n), tuple(_cell(one, c, summary.stages, 2, control) for c in columns))
            )
            if kind == "both":
                rows += _published(summary, published.INTERVENTION.get(name), columns, 2)
            tidy += _tidy_effect(summary, name, kind, one, control)
        blocks.append(Block(KINDS[kind], tuple(rows)))
    yield Table(
        name="truthfulness_effects",
        heading="Interventions: does a direction turn the answer, and more than a random one does?",
        caption=(
            "Share of the distance to certainty of the opposite answer, (~P − P) / (±1 − P), with P the mean of "
            f"P(TRUE) − P(FALSE) before and ~P after the direction (times {summary.coefficient:g}) was added for "
            "false or subtracted for true statements, direction → stage; Δ: base's direction minus the stage's own. "
            f"Random: median and 95 % range of {len(controls)} random directions; an effect within it is not specific "
            "to the direction. They have the norm of the stage's own direction; a transferred one keeps its own norm. "
            f"{_family(summary, names, len(summary.sets))}{_layers(summary, names)} {interval_words()}"
        ),
        columns=tuple(_heading(c) for c in columns),
        blocks=tuple(blocks),
        records=tidy,
    )


def columns_of(stages: Sequence[str], random: bool = False) -> list[Column]:
    """Return the columns of the two main tables: own, base's and their difference for each stage.

    Examples
    --------
    >>> [column.kind for column in columns_of(["base", "instruct"])]
    ['own', 'own', 'transferred', 'delta']
    """
    base, columns = stages[0], []
    for stage in stages:
        columns.append(Column("own", source=stage, target=stage))
        if stage != base:
            columns += [Column(kind, source=base, target=stage) for kind in ("transferred", "delta")]
        if random:
            columns.append(Column("random", source="random", target=stage))
    return columns


def completions(groups: Sequence[Summary | StatementSet]) -> Iterator[Table]:
    """Yield the table `truthfulness_completions`: continuations of a few prompts without and with an intervention."""
    summary, sets = parted(groups)
    shown = [one for one in sets.values() if "completion" in one.data and one.steered]
    if summary is None or not shown:
        return
    names = tuple(map(str, shown[0].data["shown"].values))
    blocks, tidy = [], list[dict]()
    for one in shown:
        texts, numbers = one.array("completion"), one.data["sample_statement"].values
        for t, stage in enumerate(one.stages):
            rows = []
            for s, statement in enumerate(numbers):
                p = one.array("p_diff")[:, t, statement]
                label = "true" if one.truth[statement] else "false"
                cells = []
                for v, name in enumerate(names):
                    text, answer = str(texts[v, t, s]), float(p[one.directions.index(name)])
                    cells.append(Cell(_one_line(text), f"({answer:+.2f})"))
                    tidy.append(
                        {
                            "study": "truthfulness",
                            "set": one.name,
                            "family": one.family,
                            "target": stage,
                            "statement": str(one.data["text"].values[statement]),
                            "label": label,
                            "direction": name,
                            "completion": text,
                            "p_diff": answer,
                        }
                    )
                rows.append(Row(f"{one.data['text'].values[statement]} ({label})", tuple(cells)))
            blocks.append(Block(f"{one.name}, {stage}", tuple(rows)))
    yield Table(
        name="truthfulness_completions",
        heading="Sample completions before and after",
        caption=(
            "Greedy continuation of the prompt without intervention (none) and with its two tokens steered; / is a "
            f"line break. In brackets: P({shown[0].answers[0]}) − P({shown[0].answers[1]}) at the end of the prompt. "
            "False statements are steered towards true, true ones towards false. Samples are drawn with the job's seed."
        ),
        columns=names,
        blocks=tuple(blocks),
        records=tidy,
    )


def interval_words() -> str:
    """Return the sentence about intervals for captions."""
    return (
        f"Brackets: {CONFIDENCE:.0%} percentile bootstrap interval over statements, {RESAMPLES} resamples, "
        f"seed {SEED}; statements are drawn independently, even where a true and a false one are about the same "
        "entity. If all statements agree, the interval has no width, which does not mean certainty."
    )


def _heading(column: Column) -> str:
    kind, source, target = column
    return f"Δ {target}" if kind == "delta" else f"{source} → {target}"


def _cell(one: Bootstrap, column: Column, stages: Sequence[str], digits: int, control=None) -> Cell:
    kind, source, target = column
    t = stages.index(target)
    if kind == "random":
        random = middle_range(control[:, t])
        return cell(random.value, random.low, random.high, digits)
    s = stages.index(source)
    if kind == "delta":
        value, draws = one.value[s, t] - one.value[t, t], one.draws[:, s, t] - one.draws[:, t, t]
        sign = "+" if round(value, digits) > 0 else ""
        found = _within(value, Bootstrap(value, draws, one.n).interval, digits)
        return Cell(f"{sign}{found.text}", found.interval)
    return _within(one.value[s, t], one.interval[:, s, t], digits)


def _within(value: float, interval: np.ndarray, digits: int) -> Cell:
    low, high = interval
    return cell(value, low, high, digits)


def _pair_rows(one: Bootstrap, stages: Sequence[str]) -> tuple[Row, ...]:
    return tuple(
        Row(source, tuple(_within(one.value[s, t], one.interval[:, s, t], 1) for t in range(len(stages))))
        for s, source in enumerate(stages)
    )


def _published(summary: Summary, theirs, columns: Sequence[Column], digits: int) -> list[Row]:
    if theirs is None or not published.is_about(summary.family):
        return []
    cells = []
    for kind, source, target in columns:
        value = theirs.get((source, target), np.nan)
        if kind == "delta":
            value -= theirs.get((target, target), np.nan)
        cells.append(Cell(number(value, digits)))
    shown = any(c.text != number(np.nan, digits) for c in cells)
    return [Row(published.PAPER, tuple(cells), published=True)] if shown else []


def _tidy_accuracy(summary: Summary, name: str, probe: str, drawn: Bootstrap, k: int) -> Iterator[dict]:
    intervals = drawn.interval[:, k]
    for s, source in enumerate(summary.stages):
        for t, target in enumerate(summary.stages):
            for statistic in ("accuracy", "difference to own") if s != t else ("accuracy",):
                value, ends = drawn.value[k, s, t], intervals[:, s, t]
                if statistic != "accuracy":
                    value = value - drawn.value[k, t, t]
                    ends = Bootstrap(
                        value, drawn.draws[:, k, s, t] - drawn.draws[:, k, t, t], drawn.n
                    ).interval
                yield {
                    **_common(summary, name),
                    "probe": probe,
                    "source": source,
                    "target": target,
                    "layer": "" if name == MEAN else summary.layers[summary.layer(name)],
                    "statistic": statistic,
                    **_numbers(value, ends, drawn.n),
                    "unit": "share of statements",
                }


def _tidy_effect(
    summary: Summary, name: str, kind: str, one: Bootstrap, control: np.ndarray
) -> Iterator[dict]:
    intervals = one.interval
    for t, target in enumerate(summary.stages):
        random = middle_range(control[:, t])
        for s, source in enumerate(summary.stages):
            for statistic in ("effect", "difference to own") if s != t else ("effect",):
                value, ends = one.value[s, t], intervals[:, s, t]
                if statistic != "effect":
                    value = value - one.value[t, t]
                    ends = Bootstrap(value, one.draws[:, s, t] - one.draws[:, t, t], one.n).interval
                yield {
                    **_common(summary, name),
                    "kind": kind,
                    "source": source,
                    "target": target,
                    "layers": "" if name == MEAN else summary.span(name),
                    "coefficient": summary.coefficient,
                    "statistic": statistic,
                    **_numbers(value, ends, one.n),
                    "random_median": random.value,
                    "random_low": random.low,
                    "random_high": random.high,
                    "n_random": len(control),
                    "unit": "share of the way to certainty",
                }


def _common(summary: Summary, name: str) -> dict:
    return {"study": "truthfulness", "set": name, "family": summary.family}


def _numbers(value: float, ends, n: int) -> dict:
    return {
        "estimate": float(value),
        "low": float(ends[0]),
        "high": float(ends[1]),
        "n_statements": n,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


def _with_n(name: str, n: int) -> str:
    return f"{name} (n = {n})"


def _family(summary: Summary, names: Sequence[str], planned: int) -> str:
    unfinished = f"INCOMPLETE: {len(names)} of {planned} sets. " if len(names) < planned else ""
    return f"{unfinished}Family: {summary.family}. " if summary.family else unfinished


def _layers(summary: Summary, names: Sequence[str]) -> str:
    layers = ", ".join(f"{name} {summary.span(name)}" for name in names)
    return f"Blocks steered (with the direction of the last one), {summary.chosen}: {layers}."


def _ttpd(summary: Summary) -> str:
    if "ttpd" in summary.probes and not summary.negated:
        return " TTPD has no negated set to learn polarity from: here it is the least-squares truth direction alone."
    return ""


def _one_line(text: str) -> str:
    return text.strip("\n").replace("\n", " / ").strip() or "(nothing)"
