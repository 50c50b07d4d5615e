"""A free-form job in a few sentences: whose most probable next tokens are the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.figures.group import names_of
from posttrace.figures.measures.intervals import wilson_estimate
from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.figures.verdict import Verdict, in_words

PLAIN = "none"
"""The run without operations."""


def verdict(groups: Sequence[TraceGroup]) -> Verdict:
    """Say for how many prompts the most probable next token is the same: last and first stage, with and without.

    Numbers count the rows of the table `trace_next_tokens`; intervals are 95 % Wilson intervals over prompts.
    """
    group = next((one for one in groups if one.name == "output"), None)
    if group is None:
        return Verdict(sentence="Only continuations were stored: read them side by side.", weak=True)
    tokens = group.array("next_token")[..., 0]
    done = np.isfinite(group.array("entropy"))
    runs = names_of(group.data, "intervention")
    base, stage = 0, len(group.stages) - 1
    words = []
    if PLAIN in runs:
        plain = runs.index(PLAIN)
        if base != stage:
            both = done[base, plain] & done[stage, plain]
            same = wilson_estimate((tokens[base, plain] == tokens[stage, plain])[both])
            words.append(
                f"{group.stages[base]} and {group.stages[stage]} agree on the most probable next token for "
                f"{in_words(same, 2)} of {_prompts(same.n)}."
            )
        for other, name in enumerate(runs):
            both = done[stage, plain] & done[stage, other]
            if other != plain and both.any():
                changed = wilson_estimate((tokens[stage, plain] != tokens[stage, other])[both])
                words.append(
                    f"With the job's operations ({name}) it changes in {group.stages[stage]} for "
                    f"{in_words(changed, 2)} of {_prompts(changed.n)}."
                )
    caveat = (
        "" if len(runs) == 1 else "No control: a job of your own has no random direction to compare with."
    )
    return Verdict(
        sentence=" ".join(words) or "One stage, one run of each prompt: nothing to compare.", caveat=caveat
    )


def _prompts(n: int) -> str:
    return "1 prompt" if n == 1 else f"{n} prompts"
