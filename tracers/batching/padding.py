"""Pad token ids of unequal length."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def right_padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences padded on the right with 0, and which entries are real; dims sequence x token.

    Examples
    --------
    >>> [part.tolist() for part in right_padded([[5, 6], [7]])]
    [[[5, 6], [7, 0]], [[True, True], [True, False]]]
    """
    width = max(map(len, sequences))
    # One tensor from one list: faster than filling rows.
    rows = [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]
    ids = torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
    return ids, torch.arange(width) < torch.tensor([len(sequence) for sequence in sequences])[:, None]


def prompt_inputs(model, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Prompts (token ids) as inputs whose last slots are their last tokens, on the model's device.

    Where blocks keep states, padding would enter them: there prompts must be of one length.

    Examples
    --------
    >>> prompt_inputs(model, [[5, 6], [7]]).keys()                     # doctest: +SKIP
    dict_keys(['input_ids', 'attention_mask', 'position_ids'])
    """
    if model.architecture.whole:
        return dict(input_ids=torch.tensor([list(prompt) for prompt in prompts], device=model.device))
    return {name: value.to(model.device) for name, value in left_padded(prompts).items()}


def left_padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Ids with padding (token 0) on the left, their mask and positions; dims prompt x token.

    Examples
    --------
    >>> left_padded([[5, 6], [7]])["position_ids"].tolist()
    [[0, 1], [0, 0]]
    """
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return dict(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
