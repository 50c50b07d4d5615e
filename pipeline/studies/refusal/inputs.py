"""A refusal job made ready: instructions split, templated and tokenised for every stage."""

from __future__ import annotations

from dataclasses import dataclass

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.studies.refusal.instructions import PUBLISHED, Splits
from posttrace.pipeline.studies.refusal.job import RefusalJob
from posttrace.pipeline.studies.refusal.templates import (
    PROBES,
    encoder,
    openings_after,
    stop_tokens,
    tail_length,
    template_of,
)
from posttrace.tracers.engines.generation import Openings

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
    """Tokens of the template behind the instruction."""
    ending: tuple[str, ...]
    """Texts of the last tokens of a prompt, as many as the position axis has."""
    openings: Openings
    stop: tuple[int, ...]


def prepare_stage(
    job: RefusalJob,
    stage: str,
    tokenizer,
    splits: dict[str, Splits],
    texts: dict[str, str],
    room: int | None,
    n_positions: int = 0,
) -> StagePrompts:
    """Tokenise the prompts of one stage.

    >>> prepare_stage(job, "base", tokenizer, splits, texts, room=512).tail       # doctest: +SKIP
    3

    texts: instruction -> prompt, as `written` gives them. room: positions that the model has. n_positions: length of
    the position axis, the template's tail if 0. Raises JobError for a prompt that the model has no room for.
    """
    template = template_of(job, stage, tokenizer)
    encode = encoder(template, tokenizer)
    ids = {
        (kind, split): [encode(texts[text]) for text in getattr(splits[kind], split)]
        for kind in KINDS
        for split in SPLIT_NAMES
    }
    everything = [p for some in ids.values() for p in some]
    longest = max(map(len, everything))
    if room is not None and longest + job.new_tokens > room:
        raise JobError(
            f"stage {stage}: a prompt of {longest} tokens and {job.new_tokens} new ones are more than the {room} that "
            "the model takes; lower new_tokens or take long instructions out"
        )
    tail = tail_length([*everything, *(encode(texts[text]) for text in PROBES)])
    if tail == 0:
        raise JobError(
            f"stage {stage}: its template {template!r} leaves no token of its own behind the instruction; give "
            "templates with a text behind {instruction}"
        )
    shown = n_positions or tail
    return StagePrompts(
        template=template,
        ids=ids,
        tail=tail,
        ending=tuple(tokenizer.decode([token]) for token in ids["harmful", "test"][0][-shown:]),
        openings=openings_after(encode, texts[PROBES[0]], job.openings, stage),
        stop=stop_tokens(job.family.stages[stage].model, job.family.stages[stage].revision, tokenizer),
    )


def check_choices(job: RefusalJob, n_layers: int, prompts: dict[str, StagePrompts]) -> None:
    """Whether every fixed layer and position is there; raises JobError for one that is not.

    >>> check_choices(job, 8, prompts)                                # doctest: +SKIP
    """
    for stage, choice in job.choices.items():
        if stage not in prompts:
            continue
        shortest = min(len(p) for some in prompts[stage].ids.values() for p in some)
        if choice.layer >= n_layers:
            raise JobError(
                f"selected.{stage}.layer: {choice.layer} is not in 0-{n_layers - 1} ({job.family.name} has {n_layers} "
                "blocks); edit selected"
            )
        if -choice.position > shortest:
            raise JobError(
                f"selected.{stage}.position: {choice.position} is not in -{shortest} to -1 (the shortest prompt "
                f"has {shortest} tokens, {prompts[stage].tail} of them the template's behind the instruction); "
                "edit selected"
            )
