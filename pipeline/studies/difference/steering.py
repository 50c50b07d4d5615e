"""Vectors to steer by, and how near a steered source gets to the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from posttrace.pipeline.studies.difference.analysis import mean_difference
from posttrace.pipeline.studies.difference.inputs import TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.studies.difference.measures import js


@dataclass(frozen=True)
class Steered:
    """The target's and the source's distributions at the tokens of some documents."""

    log_q: torch.Tensor
    """Of the target; dims token x vocabulary."""
    log_p: torch.Tensor
    """Of the unsteered source."""
    document: torch.Tensor
    """Document of each token."""
    n_documents: int

    def js(self, log_p: torch.Tensor) -> torch.Tensor:
        """JS of the target's distributions and others, mean over each document's tokens; dims document."""
        total = torch.zeros(self.n_documents, dtype=torch.float64)
        total.index_add_(0, self.document, js(log_p, self.log_q))
        return total / torch.bincount(self.document, minlength=self.n_documents)


def steering_vectors(job: DifferenceJob, one: TextSet, store, pair: int, layer: int) -> torch.Tensor:
    """Return what is added to the source's stream, in the order of `arrays.directions`; dims direction x hidden.

    >>> steering_vectors(job, one, store, pair=0, layer=3).shape       # doctest: +SKIP
    torch.Size([23, 160])

    The mean difference over the documents that are not held out; another pair's, the control pair's and random
    directions, of its length. NaN where there is no such pair, or the difference is zero.
    """
    assert job.steering is not None, "the job steers"
    train = (0, one.n_train)

    def mean(source: str, target: str) -> torch.Tensor:
        number = job.stage_names.index
        return mean_difference(store, one.path, number(source), number(target), train, layer)[0]

    source, target = job.pairs[pair]
    own = mean(source, target)
    apart = [p for p in job.pairs if set(p) != {source, target}]
    control = job.control if job.control and set(job.control) != {source, target} else None
    others = [mean(*one_pair) if one_pair else None for one_pair in (apart[0] if apart else None, control)]
    generator = torch.Generator().manual_seed(job.seed)
    drawn = torch.randn(job.steering.random, len(own), generator=generator)
    none = torch.full_like(own, torch.nan)
    vectors = [own, *(none if v is None else v / v.norm() * own.norm() for v in others)]
    return torch.stack([*vectors, *(drawn / drawn.norm(dim=1, keepdim=True) * own.norm())])


def recovered(js_steered: np.ndarray, js_unsteered: np.ndarray) -> np.ndarray:
    """1 - JS(target, steered source) / JS(target, source); NaN where source and target do not differ.

    >>> recovered(np.array([0.1, 0.2]), np.array([0.4, 0.0])).tolist()
    [0.75, nan]
    """
    whole = np.where(js_unsteered > 0, js_unsteered, np.nan)
    return (1 - js_steered / whole).astype("float32")
