"""What is learned from a whole set: linear maps and components of the samples, means and what they point to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from posttrace.pipeline.studies.difference.arrays import ANALYSED, EXTREME, blank
from posttrace.pipeline.studies.difference.inputs import TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.studies.difference.measures import (
    Components,
    Ridge,
    cka,
    components,
    predicted,
    topics,
)
from posttrace.pipeline.tensors import from_stored
from posttrace.stores import Group, Store
from posttrace.tracers.models.unembedding import BOUND, Unembedding, random_directions


def mean_difference(
    store: Store, path: str, source: int, target: int, units: tuple[int, int] | Sequence[int], layer: int
) -> torch.Tensor:
    """Mean of target - source over the tokens of each slot, of some units (float32); dims slot x hidden.

    >>> mean_difference(store, "difference/plain", 0, 1, (0, 24), layer=3).shape      # doctest: +SKIP
    torch.Size([14, 160])

    source, target: numbers of stages. units: a range. NaN for a slot without tokens.
    """
    whole = {"unit": (units[0], units[1]), "layer": (layer, layer + 1)}
    sums = [
        store.read(path, "hidden_sum", {**whole, "model": (m, m + 1)})[0, :, 0].astype(np.float64)
        for m in (source, target)
    ]
    count = store.read(path, "slot_count", {"unit": (units[0], units[1])}).sum(0)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(((sums[1] - sums[0]).sum(0) / count[:, None]).astype("float32"))


def sum_by_half(store: Store, path: str, n: int) -> np.ndarray:
    """Sum `hidden_sum` over the even and the odd ones of n units; dims half x model x layer x slot x hidden (float64).

    >>> sum_by_half(store, "difference/plain", 32).shape              # doctest: +SKIP
    (2, 3, 8, 14, 160)

    Read unit by unit, as a chunk holds all layers of a unit.
    """
    sums = None
    for u in range(n):
        some = store.read(path, "hidden_sum", {"unit": (u, u + 1)})[:, 0]
        if sums is None:
            sums = np.zeros((2, *some.shape))
        sums[u % 2] += some
    assert sums is not None, "a set has units"
    return sums


@dataclass(frozen=True)
class Analysis:
    """The analysis of one set."""

    job: DifferenceJob
    texts: TextSet
    store: Store
    unembedding: Callable[[int], Unembedding]
    """Of a stage, by its number."""
    pairs: Sequence[tuple[int, int]]
    vocabulary: int

    def arrays(self, group: Group) -> dict[str, np.ndarray]:
        """Everything that `arrays.ANALYSED` names.

        >>> analysis.arrays(group)["cka"].shape                        # doctest: +SKIP
        (6, 8)
        """
        found = blank(group, ANALYSED)
        axes: dict[tuple[int, int], np.ndarray] = {}
        # Many small decompositions: a thread does those of one layer, as threads that share each one mostly wait.
        layers, threads = group.sizes["sampled_layer"], torch.get_num_threads()
        workers = min(layers, threads)
        with ThreadPoolExecutor(workers) as pool, threadpool_limits(threads // workers, user_api="blas"):
            for k, some in enumerate(pool.map(partial(self._samples, found), range(layers))):
                axes |= {(i, k): axis for i, axis in some.items()}
        self._lenses(found, axes)
        self._topics(found)
        return found

    def _topics(self, found: dict[str, np.ndarray]) -> None:
        """Find tokens that rise together at the samples."""
        risen, rise = (self.store.read(self.texts.path, name) for name in ("rise_token", "rise_logprob"))
        _, n, tokens = found["topic_token"].shape
        samples = min(found["topic_sample"].shape[-1], rise.shape[1])
        for i in range(len(self.pairs)):
            if not (rise[i] > 0).any():
                continue
            here = topics(risen[i], rise[i], self.vocabulary, n=n, tokens=tokens, samples=samples)
            found["topic_share"][i] = here.share
            width = here.token.shape[1]
            found["topic_token"][i, :, :width], found["topic_weight"][i, :, :width] = here.token, here.weight
            found["topic_sample"][i, :, :samples] = here.sample

    def _lenses(self, found: dict[str, np.ndarray], axes: Mapping[tuple[int, int], np.ndarray]) -> None:
        """Find the tokens that mean differences and components point to, a target at a time, and the bound.

        axes: (pair, sampled layer) -> components, dims component x hidden.
        """
        path, n = self.texts.path, len(self.texts.units)
        sums = sum_by_half(self.store, path, n)
        count = self.store.read(path, "slot_count")
        counts = np.stack([count[half::2].sum(0) for half in (0, 1)])
        squared = self.store.read(path, "squared_difference_sum").sum(axis=1, dtype=np.float64)
        for target in {target for _, target in self.pairs}:
            pairs = [i for i, pair in enumerate(self.pairs) if pair[1] == target]
            drawn = random_directions(sums.shape[-1], self.job.seed)
            wanted: dict[tuple, np.ndarray] = {}
            for i in pairs:
                d = sums[:, target] - sums[:, self.pairs[i][0]]
                with np.errstate(invalid="ignore", divide="ignore"):
                    even, odd = d / counts[:, None, :, None]
                    shared = (even * odd).sum(-1) / (squared[i] / counts.sum(0))
                    mean = d.sum(0) / counts.sum(0)[:, None]
                found["shared"][i] = np.where(np.isfinite(shared), shared, np.nan)
                able = np.isfinite(mean).all(-1) & mean.any(-1)
                wanted |= {("lens", i, *place): mean[tuple(place)] for place in np.argwhere(able)}
                for k in range(found["component_z"].shape[1]):
                    for c, axis in enumerate(axes.get((i, k), ())):
                        if axis.any():
                            wanted |= {
                                ("component", i, k, c, e): sign * axis for e, sign in enumerate((-1, 1))
                            }
            vectors = torch.from_numpy(np.stack([*drawn, *wanted.values()]).astype("float32"))
            tokens, z = self.unembedding(target).lens(vectors, self.vocabulary, found["lens_z"].shape[-1])
            found["lens_bound"][pairs] = z[: len(drawn), 0].quantile(BOUND)
            for row, (name, *place) in enumerate(wanted, len(drawn)):
                found[f"{name}_token"][tuple(place)] = tokens[row].numpy()
                found[f"{name}_z"][tuple(place)] = z[row].numpy()

    def _samples(self, found: dict[str, np.ndarray], k: int) -> dict[int, np.ndarray]:
        """Compute what the samples at one sampled layer say of every pair; returns shown components by pair.

        What two orders of a pair share is computed once: CKA, and the components, whose scores change sign.
        """
        streams = [self._activation(m, k) for m in range(len(self.job.stage_names))]
        held = self.texts.held_out[0]
        train = np.array([d < held for d, _ in self.texts.samples])
        rng = np.random.default_rng(_seed(f"{self.job.seed}/{self.texts.spec.name}/{k}/shuffles"))
        ridges = [Ridge.of(stream, train) for stream in streams]
        known: dict[tuple[int, int], tuple[float, Components | None]] = {}
        axes = {}
        for i, (source, target) in enumerate(self.pairs):
            s, t = streams[source], streams[target]
            found["r2"][i, :, k] = predicted(s, t, train, ridges[source])
            if (target, source) in known:
                found["cka"][i, k], parts = known[target, source]
                parts = None if parts is None else replace(parts, scores=-parts.scores)
            else:
                d = t - s
                parts = components(d, found["variance_share"].shape[-1], rng) if d.any() else None
                found["cka"][i, k] = cka(s, t)
                known[source, target] = float(found["cka"][i, k]), parts
            if parts is None:
                continue
            found["variance_share"][i, k], found["variance_null"][i, k] = parts.share, parts.null
            found["participation"][i, k], found["n_above_null"][i, k] = parts.participation, parts.above
            found["mean_share"][i, k] = parts.mean_share
            shown = found["component_token"].shape[2]
            axes[i] = parts.axes[:shown]
            order = np.argsort(parts.scores[:, :shown], axis=0, kind="stable")
            most = min(EXTREME, len(order))
            found["extreme_sample"][i, k, :, 0, :most] = order[:most].T
            found["extreme_sample"][i, k, :, 1, :most] = order[::-1][:most].T
        return axes

    def _activation(self, model: int, k: int) -> np.ndarray:
        """Return the samples' streams of one stage; dims sample x hidden, float64."""
        region = {"model": (model, model + 1), "sampled_layer": (k, k + 1)}
        stored = self.store.read(self.texts.path, "sampled_activation", region)[0, :, 0]
        return from_stored(stored, self.job.dtype).double().numpy()


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
