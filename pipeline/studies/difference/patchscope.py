"""Read mean differences by a prompt that repeats tokens, at blocks where known tokens can be read so.

Source: Ghandeharioun et al. 2024 (Patchscopes), the prompt for token identity.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.studies.difference.inputs import TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob, Patchscope
from posttrace.tracers.prompts import encode, has_unknown

WITHIN = 10
"""A known token is read back where it is among so many most probable ones."""
READABLE = 0.5
"""Share of the known tokens that must be read back, or nothing is read at a block."""
DRAWN = 20
"""Random directions whose most probable tokens are no finding."""


def identity_prompt(how: Patchscope, stage: str, tokenizer) -> tuple[tuple[int, ...], int]:
    """Return the prompt's token ids, and which of them has its stream replaced.

    >>> identity_prompt(Patchscope(), "sft", tokenizer)[1]             # doctest: +SKIP
    16

    Raises JobError for a prompt with words that the tokenizer does not know.
    """
    prompt = encode(tokenizer, "", how.prompt)
    if has_unknown(tokenizer, prompt.ids):
        raise JobError(
            f"patchscope.prompt: {shown(repr(how.prompt))} has words that the tokenizer of stage {stage} does not "
            "know; give another prompt and slot, or set patchscope=null"
        )
    at = how.prompt.rindex(how.slot)
    column = next(i for i, (_, end) in enumerate(prompt.spans, prompt.start) if end > at)
    return prompt.ids, column


def known_samples(job: DifferenceJob, one: TextSet, tokenizer) -> list[int]:
    """Return the numbers of samples with different, visible tokens, at most as many as the job wants, at least one.

    >>> len(known_samples(job, one, tokenizer))                        # doctest: +SKIP
    30

    tokenizer: of the first stage. Tokens of templates are taken only where there are no others.
    """
    assert job.patchscope is not None, "the job has a patchscope"
    stage = job.stage_names[0]
    numbers = list(range(len(one.samples)))
    random.Random(f"{job.seed}/{one.spec.name}/known").shuffle(numbers)
    found: dict[str, int] = {}
    for number in numbers:
        document, place = (one.documents[one.samples[number][0]], one.samples[number][1])
        text = tokenizer.decode([document.ids[stage][document.places[stage][place]]]).strip()
        if text and document.roles[place] not in ("begin", "template"):
            found.setdefault(text, number)
    return sorted(list(found.values())[: job.patchscope.known] or numbers[:1])


def places_of(texts: Sequence[str], likely: Sequence[Sequence[str]]) -> list[int]:
    """Place of each text among its most probable tokens, 1 the first; 0 where it is not one of them.

    Spaces around a token do not count.

    >>> places_of([" cat", "dog"], [["the", "cat"], ["the", "cat"]])
    [2, 0]
    """
    found = []
    for text, some in zip(texts, likely, strict=True):
        stripped = [one.strip() for one in some]
        found.append(stripped.index(text.strip()) + 1 if text.strip() in stripped else 0)
    return found
