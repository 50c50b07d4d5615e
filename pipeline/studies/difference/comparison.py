"""Compare the stages on a block of documents: distributions, streams and sums, for every pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from posttrace.pipeline.studies.difference.inputs import SLOTS
from posttrace.pipeline.studies.difference.measures import RANK, divergences, js, rounding_variance
from posttrace.tracers.models.unembedding import Unembedding

MAX_VALUES = 2**22
"""Log probabilities (stages x tokens x vocabulary) held at once: 16 MiB; temporaries take several times that."""

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
    kl = torch.zeros(len(pairs), n, dtype=torch.float64)
    both = torch.zeros(len(pairs), n, dtype=torch.float64)
    sums = torch.zeros(len(pairs), 2, vocabulary, dtype=torch.float64)
    risen = torch.zeros(len(pairs), len(samples), rank, dtype=torch.int32)
    rise = torch.zeros(len(pairs), len(samples), rank)
    entropies = [torch.zeros(n) for _ in finals]
    size = max(1, MAX_VALUES // (len(finals) * vocabulary))
    for begin in range(0, n, size):
        part = slice(begin, begin + size)
        log_p = [u.log_probabilities(f[part], vocabulary) for u, f in zip(unembeddings, finals, strict=True)]
        for entropy, lp in zip(entropies, log_p, strict=True):
            entropy[part] = -(lp.exp() * lp).sum(-1)
        which = (samples >= begin) & (samples < begin + len(log_p[0]))
        inside = samples[which] - begin
        known: dict[frozenset[int], torch.Tensor] = {}
        for i, (source, target) in enumerate(pairs):
            key = frozenset((source, target))
            if key not in known:
                known[key] = js(log_p[source], log_p[target])
            both[i, part] = known[key]
            found = divergences(log_p[source], log_p[target])
            kl[i, part] = found.kl
            sums[i, 0] += found.occurring
            sums[i, 1] += found.kl_by_token
            risen[i, which], rise[i, which] = found.risen[inside].int(), found.rise[inside]
    arrays = {"kl": kl, "js": both, "token_sum": sums}
    found_arrays = {name: values.float().numpy() for name, values in arrays.items()}
    found_arrays |= {"rise_token": risen.numpy(), "rise_logprob": rise.numpy()}
    return found_arrays, [entropy.numpy() for entropy in entropies]


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
    n_layers = streams[0].shape[1]

    def summed(values: torch.Tensor) -> np.ndarray:
        """Sum values of dims document x layer x token over each slot's tokens; dims layer x slot."""
        total = torch.zeros(len(SLOTS), n_layers, dtype=torch.float64)
        return total.index_add_(0, slot, values[document, :, place].double()).T.float().numpy()

    norms, cosines, squares = [], [], []
    for source, target in pairs:
        s, t = streams[source].float(), streams[target].float()
        length = (t - s).norm(dim=-1)
        norms.append(length.numpy())
        # Of unit vectors, as products of long ones overflow.
        unit = [v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) for v in (s, t)]
        cosines.append((unit[0] * unit[1]).sum(-1).numpy())
        squares.append(summed(length.square()))
    rounding = [summed(rounding_variance(s.float(), s.dtype).sum(-1)) for s in streams]
    return {
        "norm_difference": np.stack(norms).astype("float16"),
        "cosine": np.stack(cosines).astype("float16"),
        "squared_difference_sum": np.stack(squares),
        "rounding_sum": np.stack(rounding),
        "slot_count": torch.bincount(slot, minlength=len(SLOTS)).numpy(),
    }
