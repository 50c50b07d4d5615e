"""What is learned from a whole set: linear maps and components of the samples, means and what they point to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posttrace.pipeline.studies.difference.arrays import ANALYSED, EXTREME
from posttrace.pipeline.studies.difference.inputs import TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.studies.difference.measures import cka, components, predicted, topics
from posttrace.pipeline.tensors import from_stored
from posttrace.stores import Group, Store
from posttrace.stores.schema import DTYPES
from posttrace.tracers.models.unembedding import Unembedding


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


@dataclass(frozen=True)
class Analysis:
    """The analysis of one set."""

    job: DifferenceJob
    texts: TextSet
    store: Store
    unembeddings: Sequence[Unembedding]
    pairs: Sequence[tuple[int, int]]
    vocabulary: int

    def arrays(self, group: Group) -> dict[str, np.ndarray]:
        """Everything that `arrays.ANALYSED` names.

        >>> analysis.arrays(group)["cka"].shape                        # doctest: +SKIP
        (6, 8)
        """
        found = {
            name: np.full(group.shape(name), DTYPES[group.array(name).dtype][1], group.array(name).dtype)
            for name in ANALYSED
        }
        bound_of = {
            target: self.unembeddings[target].lens_bound(self.vocabulary, seed=self.job.seed)
            for target in {target for _, target in self.pairs}
        }
        found["lens_bound"][:] = [bound_of[target] for _, target in self.pairs]
        for layer in range(group.sizes["layer"]):
            self._means(found, layer)
        for k in range(group.sizes["sampled_layer"]):
            self._samples(found, k)
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

    def _means(self, found: dict[str, np.ndarray], layer: int) -> None:
        """Mean differences at one layer: how far halves of the documents share them, and what they point to."""
        path, n = self.texts.path, len(self.texts.units)
        at = {"layer": (layer, layer + 1)}
        sums = self.store.read(path, "hidden_sum", at)[:, :, 0]
        count = self.store.read(path, "slot_count")
        squared = self.store.read(path, "squared_difference_sum", at)[:, :, 0].astype(np.float64)
        halves = [np.arange(n) % 2 == half for half in (0, 1)]
        for i, (source, target) in enumerate(self.pairs):
            d = sums[target].astype(np.float64) - sums[source]
            with np.errstate(invalid="ignore", divide="ignore"):
                even, odd = (d[half].sum(0) / count[half].sum(0)[:, None] for half in halves)
                shared = (even * odd).sum(-1) / (squared[i].sum(0) / count.sum(0))
                mean = d.sum(0) / count.sum(0)[:, None]
            found["shared"][i, layer] = np.where(np.isfinite(shared), shared, np.nan)
            able = np.isfinite(mean).all(-1) & mean.any(-1)
            if able.any():
                tokens, z = self._lens(target, mean[able], found["lens_token"].shape[-1])
                found["lens_token"][i, layer, able], found["lens_z"][i, layer, able] = tokens, z

    def _lens(self, target: int, vectors: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, z = self.unembeddings[target].lens(
            torch.from_numpy(np.ascontiguousarray(vectors)).float(), self.vocabulary, top
        )
        return tokens.int().numpy(), z.numpy()

    def _samples(self, found: dict[str, np.ndarray], k: int) -> None:
        """Compute what the samples at one sampled layer say of every pair."""
        streams = [self._activation(m, k) for m in range(len(self.job.stage_names))]
        held = self.texts.held_out[0]
        train = np.array([d < held for d, _ in self.texts.samples])
        rng = np.random.default_rng(_seed(f"{self.job.seed}/{self.texts.spec.name}/{k}/shuffles"))
        for i, (source, target) in enumerate(self.pairs):
            s, t = streams[source], streams[target]
            found["cka"][i, k] = cka(s, t)
            found["r2"][i, :, k] = predicted(s, t, train)
            d = t - s
            if not d.any():
                continue
            parts = components(d, found["variance_share"].shape[-1], rng)
            found["variance_share"][i, k], found["variance_null"][i, k] = parts.share, parts.null
            found["participation"][i, k], found["n_above_null"][i, k] = parts.participation, parts.above
            found["mean_share"][i, k] = parts.mean_share
            shown = found["component_token"].shape[2]
            axes = np.stack([-parts.axes[:shown], parts.axes[:shown]], axis=1)
            tokens, z = self._lens(
                target, axes.reshape(-1, axes.shape[-1]), found["component_token"].shape[-1]
            )
            place = (shown, 2, -1)
            found["component_token"][i, k] = tokens.reshape(place)
            found["component_z"][i, k] = z.reshape(place)
            order = np.argsort(parts.scores[:, :shown], axis=0, kind="stable")
            most = min(EXTREME, len(order))
            found["extreme_sample"][i, k, :, 0, :most] = order[:most].T
            found["extreme_sample"][i, k, :, 1, :most] = order[::-1][:most].T

    def _activation(self, model: int, k: int) -> np.ndarray:
        """Return the samples' streams of one stage; dims sample x hidden, float64."""
        region = {"model": (model, model + 1), "sampled_layer": (k, k + 1)}
        stored = self.store.read(self.texts.path, "sampled_activation", region)[0, :, 0]
        return from_stored(stored, self.job.dtype).double().numpy()


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
