"""Statement sets, tokenised for every stage: bare for reading, after examples for interventions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.few_shot import FewShot, check_prompt, draw_examples
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import Statement, check_number, read_set
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.tracers.prompts import Prompt, answer_ids, encode


@dataclass(frozen=True)
class Asked:
    """A statement after its examples, followed by the question."""

    prompt: Prompt
    tokens: tuple[int, int]
    """The token before the statement's final one, and the final one (its period), counted from the prompt's end."""


@dataclass(frozen=True)
class StatementInputs:
    """One statement set, tokenised."""

    spec: StatementSet
    statements: tuple[Statement, ...]
    available: int
    """Statements that the set has; `statements` may be a sample of them."""
    examples: tuple[str, ...]
    bare: dict[str, list[Prompt]]
    """Per stage: every statement, nothing around it."""
    asked: dict[str, list[Asked | None]]
    """Per stage: every statement after the examples; None for the examples themselves."""
    answers: dict[str, tuple[int, int]]
    """Per stage: token ids of the two answers."""

    @property
    def path(self) -> str:
        return f"truthfulness/{self.spec.name}"

    @property
    def labels(self) -> list[bool]:
        return [s.label for s in self.statements]

    def usable(self, begin: int, end: int) -> list[int]:
        """Numbers of the statements from `begin` to `end` that are no example."""
        asked = next(iter(self.asked.values()))
        return [i for i in range(begin, end) if asked[i] is not None]

    def sample(self, n: int, seed: str) -> list[int]:
        """Numbers of at most n usable statements, half of them true, drawn with the seed."""
        usable = self.usable(0, len(self.statements))
        return _balanced(usable, self.labels, n, seed)


def read_statement_set(
    job: TruthfulnessJob, spec: StatementSet, tokenizers: dict, room: int | None
) -> StatementInputs:
    """Read a set, draw its examples and tokenise its statements for every stage.

    Parameters
    ----------
    room
        Tokens that the models have positions for.

    Raises
    ------
    JobError
        A set without true or without false statements, and for a statement that is too long or too short, or has
        words that a tokenizer does not know.
    TracerError
        Answers that are no single tokens.

    Examples
    --------
    >>> len(read_statement_set(job, job.sets[0], {"base": tokenizer}, 512).bare["base"])      # doctest: +SKIP
    260
    """
    rows = read_set(spec)
    labels = [row.label for row in rows]
    for label, word in ((True, "true"), (False, "false")):
        if label not in labels:
            raise JobError(
                f"set {spec.name}: {spec.csv}: all {len(rows)} statements are {'false' if label else 'true'}; a "
                f"direction is the difference between the two: add {word} ones (label {int(label)})"
            )
    kept: Sequence[int] = range(len(rows))
    if job.max_statements is not None:
        kept = _balanced(kept, labels, job.max_statements, f"{job.seed}/{spec.name}/statements")
    statements = [rows[i] for i in kept]
    check_number(spec, statements, "max_statements")
    few_shot, _ = draw_examples(spec, statements, job.few_shot, job.suffix, job.answers, job.seed)
    bare: dict[str, list[Prompt]] = {}
    asked: dict[str, list[Asked | None]] = {}
    for stage, tokenizer in tokenizers.items():
        bare[stage] = [encode(tokenizer, "", s.text) for s in statements]
        asked[stage] = [
            None if s.text + job.suffix in few_shot.statements else _asked(few_shot, s.text, stage, tokenizer)
            for s in statements
        ]
        for s, one, other in zip(statements, bare[stage], asked[stage], strict=True):
            for prompt in (one, other.prompt) if other else (one,):
                check_prompt(f"set {spec.name}: stage {stage}", s.text, prompt, tokenizer, room)
    first = next(iter(tokenizers))
    left = {s.label for s, a in zip(statements, asked[first], strict=True) if a is not None}
    if len(left) < 2:
        raise JobError(f"set {spec.name}: all statements of one label are examples; lower few_shot")
    some = {stage: next(one for one in asked[stage] if one is not None) for stage in tokenizers}
    answers = {stage: answer_ids(t, some[stage].prompt.text, job.answers) for stage, t in tokenizers.items()}
    return StatementInputs(spec, tuple(statements), len(rows), few_shot.lines, bare, asked, answers)


def _balanced(numbers, labels, n: int, seed: str) -> list[int]:
    """At most n of the numbers, as many true as false as there are, drawn with the seed and left in their order."""
    rng = random.Random(seed)
    groups = [[i for i in numbers if labels[i] is label] for label in (True, False)]
    wanted = [min(len(groups[0]), (n + 1) // 2), min(len(groups[1]), n // 2)]
    wanted = [min(len(groups[0]), n - wanted[1]), min(len(groups[1]), n - wanted[0])]
    return sorted(i for group, k in zip(groups, wanted, strict=True) for i in rng.sample(group, k))


def _asked(few_shot: FewShot, text: str, stage: str, tokenizer) -> Asked:
    """Return the prompt of a statement, after the examples."""
    prompt = few_shot.prompt(tokenizer, text)
    final = next(i for i, (_, end) in enumerate(prompt.spans) if end >= len(text))
    if final == 0:
        raise JobError(
            f"set {few_shot.spec.name}: stage {stage}: {text!r} is a single token; two are steered: take it out"
        )
    end = len(prompt.statement)
    return Asked(prompt, (final - 1 - end, final - end))


@dataclass(frozen=True)
class TruthfulnessInputs:
    """What a `truthfulness` job runs."""

    sets: dict[str, StatementInputs]
    shown: dict[str, list[int]]
    """Set -> numbers of the statements whose completions are kept."""


def read_inputs(job: TruthfulnessJob, tokenizers: dict, room: int | None) -> TruthfulnessInputs:
    """Read every set of a job (see `read_statement_set`).

    Examples
    --------
    >>> list(read_inputs(job, tokenizers, room=512).sets)              # doctest: +SKIP
    ['cities', 'neg_cities', 'facts']
    """
    sets = {spec.name: read_statement_set(job, spec, tokenizers, room) for spec in job.sets}
    shown = {name: one.sample(job.samples, f"{job.seed}/{name}/samples") for name, one in sets.items()}
    return TruthfulnessInputs(sets, shown)
