"""What a `confidence` job runs: documents, and statements asked about, tokenised for every stage."""

from __future__ import annotations

from dataclasses import dataclass

from posttrace.pipeline.few_shot import check_prompt, draw_examples
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.statements import Statement, check_number, read_set, sampled
from posttrace.pipeline.studies.confidence.job import ConfidenceJob
from posttrace.pipeline.studies.confidence.text import encode_documents, read_documents
from posttrace.tracers.prompts import Prompt, answer_ids


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


@dataclass(frozen=True)
class ConfidenceInputs:
    """Texts and statements of a job; empty where it looks at weights alone."""

    documents: list[str]
    rows: dict[str, list[tuple[int, ...]]]
    """Per stage: token ids of every document."""
    asked: dict[str, AskedSet]
    """Path of the set's group -> the set."""


def read_inputs(job: ConfidenceJob, stages: Stages) -> ConfidenceInputs:
    """Read the text and the sets of a job, and tokenise them for every stage.

    Examples
    --------
    >>> len(read_inputs(job, stages).documents)                        # doctest: +SKIP
    96
    """
    documents: list[str] = []
    rows: dict[str, list[tuple[int, ...]]] = {}
    if job.text is not None:
        documents = read_documents(job.text, job.seed)
        rows = encode_documents(documents, stages.tokenizers, job.text.tokens, stages.room)
    some = [ask(job, spec, stages.tokenizers, stages.room) for spec in job.sets]
    return ConfidenceInputs(documents, rows, {asked.path: asked for asked in some})


def ask(job: ConfidenceJob, spec: StatementSet, tokenizers: dict, room: int | None = None) -> AskedSet:
    """Read a set, draw its statements, and tokenise the prompts for every stage.

    Parameters
    ----------
    room
        Tokens that the models have positions for.

    Raises
    ------
    JobError
        A set that is too small, or has a prompt that is too long or has words that a tokenizer does not know.
    TracerError
        Answers that are no single tokens.

    Examples
    --------
    >>> len(ask(job, job.sets[0], {"base": tokenizer}).statements)     # doctest: +SKIP
    60
    """
    few_shot, statements = draw_examples(
        spec, read_set(spec), job.few_shot, job.suffix, job.answers, job.seed
    )
    statements = sampled(statements, job.max_statements, f"{job.seed}/{spec.name}/statements")
    check_number(spec, statements, "max_statements")
    prompts = {
        stage: [few_shot.prompt(tokenizer, s.text) for s in statements]
        for stage, tokenizer in tokenizers.items()
    }
    for stage, each in prompts.items():
        for s, prompt in zip(statements, each, strict=True):
            check_prompt(f"set {spec.name}: stage {stage}", s.text, prompt, tokenizers[stage], room)
    return AskedSet(
        spec=spec,
        statements=statements,
        prompts=prompts,
        answers={s: answer_ids(t, prompts[s][0].text, job.answers) for s, t in tokenizers.items()},
    )
