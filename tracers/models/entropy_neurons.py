"""Norm and LogitVar of every neuron of an MLP, from the checkpoint's files alone.

Nothing is loaded but what is needed, tensor by tensor and the unembedding in blocks of rows. In memory at once are a
hidden x hidden matrix in float64, the MLP's output projection and a few blocks: 0.4 of the unembedding's size for the
shapes of Llama 3.1 8B, more than it only where the hidden size is large compared with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from posttrace.tracers.models.mlp_neurons import Neurons
from posttrace.tracers.models.safetensors import Checkpoint, StoredTensor
from posttrace.tracers.models.unembedding import final_scale, stored_unembedding

BLOCK_BYTES = 16 * 2**20
"""Of a block of rows in float64."""


@dataclass(frozen=True)
class NeuronWeights:
    """What the weights alone say of the neurons (float64)."""

    norm: torch.Tensor
    """Length of the output vector, model units; dims neuron."""
    logit_var: torch.Tensor
    """Variance over the vocabulary of the cosine with the unembedding, no unit; dims neuron."""


def neuron_weights(model: str, neurons: Neurons, revision: str | None = None) -> NeuronWeights:
    """Norm and LogitVar of the neurons of one MLP, read straight from safetensors files.

    `LogitVar(i) = Var_v(cos(w_out[i], W_U[v]))`, unbiased, with the final norm's scale folded into `W_U` and the mean
    over the vocabulary taken out of it; where the final norm centres (LayerNorm), the mean over the hidden dimension
    is taken out of `W_U` and `w_out` too. A norm after the MLP (Gemma 2, OLMo 2) is not folded into `w_out`. These
    are TransformerLens's processed weights.

    The variance of `u_v . w` over unit vectors `u_v` is `w' C w` with their covariance `C`: the vocabulary is gone
    through twice in blocks of rows (mean, covariance), and there is no matrix of vocabulary x neurons. In float64, as
    the candidates lie where C is smallest. Source: Gurnee et al. 2024; Stolfo et al. 2024; Du et al. 2025.

    Raises
    ------
    TracerError
        If the files lack a tensor or hold it in another shape.

    Examples
    --------
    >>> neuron_weights(folder, find_neurons(empty_model(folder))).norm.shape      # doctest: +SKIP
    torch.Size([432])
    """
    checkpoint = Checkpoint(model, revision)
    unembed, scale = stored_unembedding(checkpoint, neurons), final_scale(checkpoint, neurons)
    shape = (neurons.n_neurons, neurons.hidden_size)
    shape = shape if neurons.rows else shape[::-1]
    down = checkpoint.tensor(*neurons.spelled(neurons.down_weight), shape=shape)
    covariance = _covariance(unembed, scale, neurons.form.centres)
    norms, variances = [], []
    for vectors in _output_vectors(down, neurons):
        if neurons.form.centres:
            vectors = vectors - vectors.mean(1, keepdim=True)
        norm = vectors.norm(dim=1)
        along = torch.einsum("nd,nd->n", vectors @ covariance, vectors)
        norms.append(norm)
        variances.append(along.clamp(min=0) / norm.square().clamp(min=torch.finfo(torch.float64).tiny))
    return NeuronWeights(norm=torch.cat(norms), logit_var=torch.cat(variances))


def _covariance(unembed: StoredTensor, scale: torch.Tensor, centres: bool) -> torch.Tensor:
    """Covariance over the vocabulary of the processed unembedding's unit vectors; dims hidden x hidden."""
    size = max(1, BLOCK_BYTES // (8 * unembed.shape[1]))
    count = unembed.shape[0]
    mean = torch.zeros(unembed.shape[1], dtype=torch.float64)
    for rows in _folded(unembed, scale, centres, size):
        mean += rows.sum(0) / count
    total = torch.zeros_like(mean)
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in _folded(unembed, scale, centres, size):
        rows -= mean
        # A row without length has no direction: its cosine counts as 0.
        rows /= rows.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float64).tiny)
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
    products.addr_(total, total, alpha=-1 / count)
    return products.div_(count - 1)


def _folded(unembed: StoredTensor, scale: torch.Tensor, centres: bool, size: int) -> Iterator[torch.Tensor]:
    """Blocks of rows of the unembedding with the final norm's scale in them, float64."""
    for stored in unembed.row_blocks(size):
        rows = stored.double()
        rows *= scale
        if centres:
            rows -= rows.mean(1, keepdim=True)
        yield rows


def _output_vectors(down: StoredTensor, neurons: Neurons) -> Iterator[torch.Tensor]:
    """Blocks of output vectors, dims neuron x hidden, float64."""
    size = max(1, BLOCK_BYTES // (8 * neurons.hidden_size))
    if neurons.rows:
        for rows in down.row_blocks(size):
            yield rows.double()
        return
    whole = down.read()
    for begin in range(0, neurons.n_neurons, size):
        yield whole[:, begin : begin + size].T.double()
