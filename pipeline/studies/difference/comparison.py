"""Compare the stages on a block of documents: distributions, streams and sums, for every pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from posttrace.pipeline.studies.difference.inputs import SLOTS
from posttrace.pipeline.studies.difference.measures import RANK, divergences, js_of, rounding_variance
from posttrace.tracers.models.unembedding import Unembedding

MAX_VALUES = 2**25
"""Logits (stages x tokens x vocabulary) held at once: 128 MiB in float32."""
CACHED_VALUES = 2**17
"""Logits of a stage that are compared at once, so that intermediate values stay in a processor's caches."""

Pairs = Sequence[tuple[int, int]]
"""Numbers of source and target."""


def compare_distributions(
    finals: Sequence[torch.Tensor],
    unembeddings: Sequence[Unembedding],
    pairs: Pairs,
    vocabulary: int,
    samples: torch.Tensor,
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Compare the stages' next-token distributions at some tokens.

    >>> compare_distributions([states, states], [unembedding] * 2, [(0, 1)], 300, torch.tensor([3]))   # doctest: +SKIP

    finals: per stage, dims token x hidden; samples: numbers of the tokens whose rises are kept, in increasing order.
    Returns kl, js (dims pair x token), token_sum (pair x measure x vocabulary), rise_token, rise_logprob (pair x
    sample x rank), and for each stage the entropies of its distributions. Log probabilities of a few tokens at a
    time are held, whatever the number of documents.
    """
    n, rank = len(finals[0]), min(RANK, vocabulary)
    kl, both = torch.zeros(2, len(pairs), n, dtype=torch.float64)
    kl_by_token = torch.zeros(len(pairs), vocabulary, dtype=torch.float64)
    risen = torch.zeros(len(pairs), n, rank, dtype=torch.int32)
    rise = torch.zeros(len(pairs), n, rank)
    entropies = [torch.zeros(n) for _ in finals]
    numbers = by_ends(pairs)
    size, cached = max(1, MAX_VALUES // (len(finals) * vocabulary)), max(1, CACHED_VALUES // vocabulary)
    for begin in range(0, n, size):
        logits = [
            u.logits(f[begin : begin + size], vocabulary) for u, f in zip(unembeddings, finals, strict=True)
        ]
        for low in range(0, len(logits[0]), cached):
            part = slice(begin + low, min(begin + low + cached, begin + size))
            log_p = [some[low : low + cached].log_softmax(-1) for some in logits]
            p = [lp.exp() for lp in log_p]
            for entropy, lp, probability in zip(entropies, log_p, p, strict=True):
                entropy[part] = -(probability * lp).sum(-1)
            for (one, other), some in numbers.items():
                x = log_p[other] - log_p[one]
                both[some, part] = js_of(x, p[one], p[other])
                for i in some:
                    found = divergences(x if pairs[i] == (one, other) else -x, p[pairs[i][1]])
                    kl[i, part], risen[i, part], rise[i, part] = found.kl, found.risen.int(), found.rise
                    kl_by_token[i] += found.kl_by_token
    occurring = torch.stack([torch.bincount(some.flatten(), minlength=vocabulary) for some in risen])
    arrays = {"kl": kl, "js": both, "token_sum": torch.stack([occurring, kl_by_token], dim=1)}
    found_arrays = {name: values.float().numpy() for name, values in arrays.items()}
    found_arrays |= {"rise_token": risen[:, samples].numpy(), "rise_logprob": rise[:, samples].numpy()}
    return found_arrays, [entropy.numpy() for entropy in entropies]


def by_ends(pairs: Pairs) -> dict[tuple[int, int], list[int]]:
    """Numbers of the pairs between the same two stages, whatever their order.

    >>> by_ends([(0, 1), (1, 0), (1, 2)])
    {(0, 1): [0, 1], (1, 2): [2]}
    """
    found: dict[tuple[int, int], list[int]] = {}
    for i, (source, target) in enumerate(pairs):
        found.setdefault((min(source, target), max(source, target)), []).append(i)
    return found


def compare_streams(
    streams: Sequence[torch.Tensor], pairs: Pairs, slots: Sequence[tuple[int, int, int]]
) -> dict[str, np.ndarray]:
    """Compare the stages' streams at every token and layer.

    >>> compare_streams([stream, stream], [(0, 1)], [(0, 1, 0)])["cosine"].shape               # doctest: +SKIP
    (1, 4, 3, 20)

    streams: per stage, dims document x layer x token x kept, NaN where there is no token. slots: (document, place,
    slot). Returns norm_difference, cosine (pair x document x layer x token), squared_difference_sum (pair x layer x
    slot), rounding_sum (stage x layer x slot) and slot_count.
    """
    document, place, slot = torch.tensor(list(slots), dtype=torch.long).reshape(-1, 3).T
    n, n_layers = streams[0].shape[:2]
    numbers = by_ends(pairs)
    length, cosine = torch.empty(2, len(pairs), *streams[0].shape[:3])
    rounding = torch.empty(len(streams), *streams[0].shape[:3])

    def summed(values: torch.Tensor) -> np.ndarray:
        """Sum values of dims document x layer x token over each slot's tokens; dims layer x slot."""
        total = torch.zeros(len(SLOTS), n_layers, dtype=torch.float64)
        return total.index_add_(0, slot, values[document, :, place].double()).T.float().numpy()

    for d in range(n):  # a few values at a time, which stay in a processor's caches
        for layer in range(n_layers):
            here = [stream[d, layer].float() for stream in streams]
            # Cosines of unit vectors, as products of long ones overflow.
            tiny = torch.finfo(torch.float32).tiny
            units = [v / v.norm(dim=-1, keepdim=True).clamp(min=tiny) for v in here]
            for m, (values, stream) in enumerate(zip(here, streams, strict=True)):
                rounding[m, d, layer] = rounding_variance(values, stream.dtype).sum(-1)
            for (one, other), some in numbers.items():
                length[some, d, layer] = (here[other] - here[one]).norm(dim=-1)
                cosine[some, d, layer] = (units[one] * units[other]).sum(-1)
    return {
        "norm_difference": length.numpy().astype("float16"),
        "cosine": cosine.numpy().astype("float16"),
        "squared_difference_sum": np.stack([summed(one.square()) for one in length]),
        "rounding_sum": np.stack([summed(one) for one in rounding]),
        "slot_count": torch.bincount(slot, minlength=len(SLOTS)).numpy(),
    }
