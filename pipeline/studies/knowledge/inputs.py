"""A statement set made ready for a job: paired, with examples in front, tokenised for every stage."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.few_shot import check_prompt, draw_examples
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import check_number, drawn, read_set
from posttrace.pipeline.studies.knowledge.job import KnowledgeJob
from posttrace.pipeline.studies.knowledge.pairing import Aligned, free_pairs, sample, template_pairs
from posttrace.tracers.prompts import Prompt, answer_ids, encode


@dataclass(frozen=True)
class PairSet:
    """One statement set, paired and tokenised."""

    spec: StatementSet
    aligned: Aligned
    prompts: dict[str, list[tuple[Prompt, Prompt]]]
    """Per stage (its own tokenizer): (clean, corrupt) of every pair."""
    answers: dict[str, tuple[int, int]]
    """Per stage: token ids of the two answers."""
    exact: tuple[bool, ...]
    """Per pair: whether its exact grid is computed; always with `method: exact`, else for a share of the pairs."""

    @property
    def path(self) -> str:
        return f"knowledge/{self.spec.name}"

    @property
    def lengths(self) -> list[int]:
        """Statement tokens of each pair."""
        return [len(clean.statement) for clean, _ in next(iter(self.prompts.values()))]

    @property
    def width(self) -> int:
        """Token columns of the set's arrays."""
        return len(self.aligned.labels)


def read_pairs(job: KnowledgeJob, spec: StatementSet, tokenizers: dict, room: int | None = None) -> PairSet:
    """Read a set, pair its statements, and tokenise the prompts of every pair for every stage.

    >>> read_pairs(job, job.sets[0], {"base": tokenizer}).lengths      # doctest: +SKIP
    [14, 14, ...]

    Parameters
    ----------
    tokenizers: by stage, the first one decides on the pairs.
    room: tokens that the models have positions for.

    Raises
    ------
    JobError for a set that gives no pair, or a pair that a stage cannot tell apart, cuts into unequal lengths, does not
    know all the words of or has no room for; TracerError for answers that are no single tokens.
    """
    first = next(iter(tokenizers))
    statements = read_set(spec)
    if job.max_pairs is not None:
        statements = drawn(spec, statements, job.seed)
    check_number(spec, statements, "max_pairs")
    few_shot, statements = draw_examples(spec, statements, job.few_shot, job.suffix, job.answers, job.seed)
    bare = few_shot.context if job.pair_by == "prompt" else ""
    if spec.pairs == "free":
        aligned = free_pairs(spec.name, statements, tokenizers[first], few_shot.context, job.suffix, bare)
    else:
        aligned = template_pairs(
            spec.name, statements, tokenizers[first], few_shot.context, job.suffix, bare, spec.like
        )
    aligned = sample(aligned, job.max_pairs, f"{job.seed}/{spec.name}/pairs")
    if spec.pairs == "free":
        # The sample may lack the longest pair, and the columns are as many as its longest pair has.
        aligned = _cropped(aligned, tokenizers[first], few_shot.context, job.suffix)
    prompts: dict[str, list[tuple[Prompt, Prompt]]] = {}
    for stage, tokenizer in tokenizers.items():
        # Both prompts of a pair have the examples in the same order.
        made = [
            [few_shot.prompt(tokenizer, text, f"{true}/{false}") for text in (true, false)]
            for true, false in aligned.pairs
        ]
        prompts[stage] = [(clean, corrupt) for clean, corrupt in made]
    answers = {
        stage: answer_ids(tokenizer, prompts[stage][0][1].text, job.answers)
        for stage, tokenizer in tokenizers.items()
    }
    lengths = [len(clean.statement) for clean, _ in prompts[first]]
    width = len(aligned.labels)
    for stage, pairs in prompts.items():
        for (clean, corrupt), length, pair in zip(pairs, lengths, aligned.pairs, strict=True):
            where = f"set {spec.name}: stage {stage}"
            problem = _problem(clean, corrupt, width if spec.pairs == "template" else min(length, width))
            if problem:
                raise JobError(f"{where}: pair {pair}: {problem}")
            for text, prompt in zip(pair, (clean, corrupt), strict=True):
                check_prompt(where, text, prompt, tokenizers[stage], room)
    return PairSet(
        spec=spec, aligned=aligned, prompts=prompts, answers=answers, exact=_exact(job, spec, len(lengths))
    )


def _problem(clean: Prompt, corrupt: Prompt, expected: int) -> str | None:
    """Why a pair cannot be patched, or None; expected: statement tokens of both."""
    sizes = [len(clean.statement), len(corrupt.statement)]
    if sizes != [expected, expected]:
        return f"{sizes[0]} and {sizes[1]} statement tokens, not {expected}; take it out of the set"
    if clean.prefix != corrupt.prefix:
        return "its two prompts differ before the statement; choose other few_shot lines"
    if clean.ids == corrupt.ids:
        return "the true and the false statement have the same tokens; take it out of the set"
    return None


def _cropped(aligned: Aligned, tokenizer, context: str, suffix: str) -> Aligned:
    longest = max(len(encode(tokenizer, context, true + suffix).statement) for true, _ in aligned.pairs)
    return replace(aligned, labels=aligned.labels[:longest], roles=aligned.roles[-longest:])


def _exact(job, spec, n: int) -> tuple[bool, ...]:
    """Which of n pairs get the exact grid: all, or a share drawn with the seed, at least two for a correlation."""
    if job.method == "exact":
        return (True,) * n
    wanted = min(n, max(2, round(job.exact_share * n)))
    chosen = random.Random(f"{job.seed}/{spec.name}/exact").sample(range(n), wanted)
    return tuple(i in chosen for i in range(n))
