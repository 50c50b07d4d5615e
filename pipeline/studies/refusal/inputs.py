"""A refusal job made ready: instructions split, templated and tokenised for every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrace.pipeline.chat import THINK, reasoning_of
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.studies.refusal.instructions import PUBLISHED, Splits, read_splits
from posttrace.pipeline.studies.refusal.job import RefusalJob
from posttrace.pipeline.studies.refusal.scores import read_phrases
from posttrace.pipeline.studies.refusal.templates import (
    PROBES,
    encoder,
    openings_after,
    tail_length,
    template_of,
    written,
)
from posttrace.tracers.engines.generation import Openings
from posttrace.tracers.engines.reasoning import BLANKS, Reasoning

KINDS = tuple(PUBLISHED)
"""harmful, harmless."""
SPLIT_NAMES = ("direction", "validation", "test")


@dataclass(frozen=True)
class StagePrompts:
    """The prompts of one stage."""

    template: str
    """`chat`, or a text with `{instruction}`."""
    ids: dict[tuple[str, str], list[tuple[int, ...]]]
    """(kind, split) -> token ids of each prompt."""
    tail: int
    """Tokens of the template after the instruction."""
    ending: tuple[str, ...]
    """Texts of the last tokens of a prompt, as many as the position axis has."""
    openings: Openings
    stop: tuple[int, ...]
    reasoning: Reasoning | None
    """How the stage may reason before it answers; None where it cannot."""


@dataclass(frozen=True)
class RefusalInputs:
    """What a `refusal` job runs."""

    splits: dict[str, Splits]
    """Kind (harmful, harmless) -> its instructions."""
    prompts: dict[str, StagePrompts]
    """Per stage."""
    probes: dict[str, str]
    """Per stage: a whole prompt, since a chat template may write the date into it."""
    positions: tuple[int, ...]
    """The position axis: tokens counted from the end of a prompt."""
    phrases: tuple[str, ...]
    """What refusals begin with."""

    @property
    def may_reason(self) -> bool:
        """Whether any stage may reason before it answers."""
        return any(prompts.reasoning is not None for prompts in self.prompts.values())


def read_inputs(job: RefusalJob, stages: Stages) -> RefusalInputs:
    """Read and split the instructions of a job, and tokenise their prompts for every stage.

    >>> read_inputs(job, stages).positions                             # doctest: +SKIP
    (-4, -3, -2, -1)

    Raises JobError for instructions, templates or choices that do not fit the models.
    """
    phrases = read_phrases(job.phrases)
    sizes = {split: getattr(job, f"{split}_prompts") for split in SPLIT_NAMES}
    splits = {kind: read_splits(kind, getattr(job, kind), sizes, job.seed) for kind in KINDS}
    everything = [text for s in splits.values() for name in SPLIT_NAMES for text in getattr(s, name)]
    texts = {name: written(job, name, t, everything) for name, t in stages.tokenizers.items()}

    def tokenised(n_positions: int) -> dict[str, StagePrompts]:
        return {
            name: prepare_stage(job, name, tokenizer, splits, texts[name], stages, n_positions)
            for name, tokenizer in stages.tokenizers.items()
        }

    tails = tokenised(0)
    check_choices(job, stages, tails)
    fixed = [-choice.position for stage, choice in job.choices.items() if stage in stages.names]
    n_positions = max([*fixed, *(p.tail for p in tails.values())])
    prompts = tokenised(n_positions)
    shortest = min(len(p) for s in prompts.values() for some in s.ids.values() for p in some)
    if shortest < n_positions:
        raise JobError(
            f"selected: a prompt has {shortest} tokens, fewer than the {n_positions} that directions are taken from; "
            "edit selected, or take short instructions out"
        )
    probes = {name: some[PROBES[0]] for name, some in texts.items()}
    return RefusalInputs(splits, prompts, probes, tuple(range(-n_positions, 0)), phrases)


def prepare_stage(
    job: RefusalJob,
    stage: str,
    tokenizer,
    splits: Mapping[str, Splits],
    texts: dict[str, str],
    stages: Stages,
    n_positions: int = 0,
) -> StagePrompts:
    """Tokenise the prompts of one stage.

    >>> prepare_stage(job, "base", tokenizer, splits, texts, stages).tail         # doctest: +SKIP
    3

    texts: instruction -> prompt, as `written` gives them. n_positions: length of the position axis, the template's tail
    if 0. Raises JobError for a prompt that the model has no room for.
    """
    template, room = template_of(job, stage, tokenizer), stages.rooms[stage]
    encode = encoder(template, tokenizer)
    ids = {
        (kind, split): [encode(texts[text]) for text in getattr(splits[kind], split)]
        for kind in KINDS
        for split in SPLIT_NAMES
    }
    everything = [p for some in ids.values() for p in some]
    longest, reasoning = max(map(len, everything)), None
    if template == "chat" or THINK[0] in template:
        reasoning = reasoning_of(tokenizer, everything[0], job.reasoning_tokens)
    new = job.new_tokens
    if reasoning is not None:
        new += 1 + job.reasoning_tokens + max(BLANKS, len(reasoning.close))
    if room is not None and longest + new > room:
        keys = "new_tokens or reasoning_tokens" if reasoning else "new_tokens"
        raise JobError(
            f"stage {stage}: a prompt of {longest} tokens and {new} new ones are more than the {room} that the model "
            f"takes; lower {keys}, or take long instructions out"
        )
    tail = tail_length([*everything, *(encode(texts[text]) for text in PROBES)])
    if tail == 0:
        raise JobError(
            f"stage {stage}: its template {template!r} leaves no token of its own after the instruction; give "
            "templates with a text after {instruction}"
        )
    shown = n_positions or tail
    return StagePrompts(
        template=template,
        ids=ids,
        tail=tail,
        ending=tuple(tokenizer.decode([token]) for token in ids["harmful", "test"][0][-shown:]),
        openings=openings_after(encode, texts[PROBES[0]], job.openings, stage),
        stop=stages.end_tokens[stage],
        reasoning=reasoning,
    )


def check_choices(job: RefusalJob, stages: Stages, prompts: Mapping[str, StagePrompts]) -> None:
    """Whether every fixed layer and position is there; raises JobError for one that is not.

    >>> check_choices(job, stages, prompts)                             # doctest: +SKIP
    """
    for stage, choice in job.choices.items():
        if stage not in prompts:
            continue
        shortest = min(len(p) for some in prompts[stage].ids.values() for p in some)
        stages.check_layer(choice.layer, f"selected.{stage}.layer")
        if -choice.position > shortest:
            raise JobError(
                f"selected.{stage}.position: {choice.position} is not in -{shortest} to -1 (the shortest prompt "
                f"has {shortest} tokens, {prompts[stage].tail} of them the template's after the instruction); "
                "edit selected"
            )
