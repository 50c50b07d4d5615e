"""The unembedding of a checkpoint, from its files alone: next-token distributions of final states, and lenses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from posttrace.tracers.models.mlp_neurons import Head, find_head
from posttrace.tracers.models.safetensors import Checkpoint, StoredTensor

BLOCK_VALUES = 2**22
"""Of a block of rows in float32: 16 MiB."""
BOUND = 0.95
"""Share of random directions whose most aligned token lies below the bound of a lens."""


@dataclass(frozen=True)
class Unembedding:
    """What turns the stream's final state into logits."""

    weight: torch.Tensor
    """In the file's dtype; dims token x hidden."""
    bias: torch.Tensor | None
    """Float32; dims token."""
    softcap: float | None
    """Logits are softcap * tanh(logits / softcap) (Gemma 2)."""
    scale: torch.Tensor
    """What the final norm multiplies by (float32); dims hidden."""
    centres: bool
    """Whether the final norm subtracts the mean over the hidden dimension."""

    def log_probabilities(self, final: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Log probabilities of the next token (float32) among the first `vocabulary` tokens.

        >>> unembedding.log_probabilities(torch.zeros(2, 160), 2048).exp().sum(-1)      # doctest: +SKIP
        tensor([1.0000, 1.0000])

        final: what enters the unembedding, dims token x hidden.
        """
        return self.logits(final, vocabulary).log_softmax(-1)

    def logits(self, final: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Return the logits of the first `vocabulary` tokens (float32); dims token x vocabulary.

        >>> unembedding.logits(torch.zeros(2, 160), 2048).shape                         # doctest: +SKIP
        torch.Size([2, 2048])

        final: what enters the unembedding, dims token x hidden.
        """
        logits = torch.empty(len(final), vocabulary)
        begin = 0
        for rows in self._blocks(vocabulary):
            logits[:, begin : begin + len(rows)] = final.float() @ rows.T
            begin += len(rows)
        if self.bias is not None:
            logits += self.bias[:vocabulary]
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def _blocks(self, vocabulary: int) -> Iterator[torch.Tensor]:
        size = max(1, BLOCK_VALUES // self.weight.shape[1])
        for begin in range(0, vocabulary, size):
            yield self.weight[begin : min(begin + size, vocabulary)].float()

    def _folded(self, vocabulary: int) -> Iterator[torch.Tensor]:
        """Rows times the final norm's scale."""
        for rows in self._blocks(vocabulary):
            rows = rows * self.scale
            yield rows - rows.mean(1, keepdim=True) if self.centres else rows

    def lens(self, vectors: torch.Tensor, vocabulary: int, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that directions of the stream point to: ids and z, largest first; dims direction x rank.

        >>> unembedding.lens(torch.randn(3, 160), 2048, top=10)[0].shape                # doctest: +SKIP
        torch.Size([3, 10])

        `z_v = cos(w_v, direction) sqrt(hidden)` with `w_v` the unembedding's row times the final norm's scale, its
        mean over the vocabulary taken out. vectors: dims direction x hidden, none of them zero.
        """
        mean = sum(rows.sum(0, dtype=torch.float64) for rows in self._folded(vocabulary)) / vocabulary
        assert isinstance(mean, torch.Tensor), "a vocabulary has tokens"
        units = vectors.float() / vectors.float().norm(dim=1, keepdim=True)
        best = torch.full((len(vectors), top), -torch.inf)
        which = torch.zeros((len(vectors), top), dtype=torch.long)
        begin = 0
        for rows in self._folded(vocabulary):
            rows = rows - mean.float()
            rows /= rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            z = torch.cat([best, units @ rows.T * rows.shape[1] ** 0.5], dim=1)
            ids = torch.cat([which, torch.arange(begin, begin + len(rows)).expand(len(units), -1)], dim=1)
            best, order = z.topk(top, dim=1)
            which = ids.gather(1, order)
            begin += len(rows)
        return which, best


def random_directions(hidden: int, seed: int, n: int = 200) -> np.ndarray:
    """Return directions of the stream whose most aligned tokens bound a lens (float32); dims direction x hidden.

    >>> random_directions(160, seed=0).shape
    (200, 160)
    """
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(seed)).numpy()


def read_unembedding(model: str, structure, revision: str | None = None) -> Unembedding:
    """Return the unembedding of a checkpoint, straight from its safetensors files.

    >>> read_unembedding(folder, empty_model(folder)).weight.shape                      # doctest: +SKIP
    torch.Size([2048, 160])

    structure: the modules without weights (`loading.empty_model`). Raises TracerError when the files lack a tensor or
    hold it in another shape, and for an architecture whose final norm is unknown.
    """
    head = find_head(structure)
    checkpoint = Checkpoint(model, revision)
    return Unembedding(
        weight=stored_unembedding(checkpoint, head, head.vocabulary).read(),
        bias=_bias(checkpoint, head) if head.biased else None,
        softcap=getattr(structure.config, "final_logit_softcapping", None),
        scale=final_scale(checkpoint, head).float(),
        centres=head.form.centres,
    )


def _bias(checkpoint: Checkpoint, head: Head) -> torch.Tensor:
    names = [name.removesuffix("weight") + "bias" for name in head.unembed]
    return checkpoint.tensor(*(s for name in names for s in head.spelled(name))).read().float()


def stored_unembedding(checkpoint: Checkpoint, head: Head, vocabulary: int | None = None) -> StoredTensor:
    """Return the unembedding's weight, not read yet; dims token x hidden. vocabulary: by default, the file's counts."""
    names = (spelled for name in head.unembed for spelled in head.spelled(name))
    return checkpoint.tensor(*names, shape=(vocabulary, head.hidden_size))


def final_scale(checkpoint: Checkpoint, head: Head) -> torch.Tensor:
    """Return what the final norm multiplies by (float64); dims hidden."""
    if head.norm_weight is None:
        return torch.ones(head.hidden_size, dtype=torch.float64)
    assert head.form.offset is not None, "a norm with a weight has an offset"
    stored = checkpoint.tensor(*head.spelled(head.norm_weight), shape=(head.hidden_size,))
    return stored.read().double() + head.form.offset
