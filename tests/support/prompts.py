"""Random prompts for the engines that read and patch statements."""

import torch

from posttrace.tracers.prompts import Prompt

ANSWERS = (5, 6)


def prompts(rng, shapes):
    """Random prompts; shapes: (prefix length, statement length) each, a prefix of equal length shared."""
    prefixes, made = {}, []
    for n_prefix, n_statement in shapes:
        prefix = prefixes.setdefault(n_prefix, torch.randint(3, 300, (n_prefix,), generator=rng).tolist())
        ids = (*prefix, *torch.randint(3, 300, (n_statement,), generator=rng).tolist())
        made.append(Prompt(text="", ids=ids, start=n_prefix, spans=((0, 0),) * n_statement))
    return made
