"""A statement set made ready: statements drawn, examples put in front, tokenised for every stage."""

from __future__ import annotations

import random
from dataclasses import dataclass

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import Statement, check_number, draw_examples, read_set
from posttrace.pipeline.studies.confidence.job import ConfidenceJob
from posttrace.tracers.prompts import Prompt, answer_ids, encode


@dataclass(frozen=True)
class AskedSet:
    """One statement set, as each stage is asked about it."""

    spec: StatementSet
    statements: list[Statement]
    prompts: dict[str, list[Prompt]]
    """Per stage, one for each statement."""
    answers: dict[str, tuple[int, int]]
    """Per stage: token ids of the two answers."""

    @property
    def path(self) -> str:
        return f"confidence/{self.spec.name}"


def ask(job: ConfidenceJob, spec: StatementSet, tokenizers: dict, positions: int | None = None) -> AskedSet:
    """Read a set, draw its statements, and tokenise the prompts for every stage.

    >>> len(ask(job, job.sets[0], {"base": tokenizer}).statements)     # doctest: +SKIP
    60

    positions: tokens that the models have room for. Raises JobError for a set that is too small or has a prompt
    too long; TracerError for answers that are no single tokens.
    """
    examples, statements = draw_examples(
        spec, read_set(spec), job.few_shot, job.suffix, job.answers, job.seed
    )
    if job.max_statements is not None and len(statements) > job.max_statements:
        chosen = random.Random(f"{job.seed}/{spec.name}/statements").sample(
            range(len(statements)), job.max_statements
        )
        statements = [statements[i] for i in sorted(chosen)]
    check_number(spec, statements, "max_statements")
    prompts = {
        stage: [_prompt(job, spec, tokenizer, examples, statement.text) for statement in statements]
        for stage, tokenizer in tokenizers.items()
    }
    for stage, each in prompts.items():
        longest = max(len(prompt.ids) for prompt in each)
        if positions is not None and longest > positions:
            raise JobError(
                f"set {spec.name}: stage {stage}: a prompt has {longest} tokens, the model takes {positions}; "
                "lower few_shot"
            )
    return AskedSet(
        spec=spec,
        statements=statements,
        prompts=prompts,
        answers={s: answer_ids(t, prompts[s][0].text, job.answers) for s, t in tokenizers.items()},
    )


def _prompt(job, spec, tokenizer, examples, text: str) -> Prompt:
    """The prompt of a statement, behind the examples in an order of its own."""
    order = list(examples)
    random.Random(f"{job.seed}/{spec.name}/{text}").shuffle(order)
    return encode(tokenizer, "".join(f"{line}\n" for line in order), text + job.suffix)
