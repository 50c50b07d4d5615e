"""Groups of the confidence study as its figures need them; NaN (or -1) where a unit is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from posttrace.figures.errors import FigureError
from posttrace.figures.group import names_of
from posttrace.figures.measures.calibration import Judged

if TYPE_CHECKING:
    import xarray as xr


class Metric(NamedTuple):
    """A quantity that an ablation changes."""

    quantity: str
    """entropy or loss"""
    effect: str
    """total, or direct (with the scale of the final norm frozen)"""
    words: str


METRICS = (
    Metric(quantity="entropy", effect="total", words="entropy"),
    Metric(quantity="entropy", effect="direct", words="entropy, norm frozen"),
    Metric(quantity="loss", effect="total", words="loss"),
    Metric(quantity="loss", effect="direct", words="loss, norm frozen"),
)


class StageNeurons(NamedTuple):
    """The neurons of one stage; dims neuron, or rank for the candidates."""

    norm: np.ndarray
    logit_var: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True)
class Neurons:
    """Norm and LogitVar of the neurons of one MLP, for every stage."""

    family: str
    layer: int
    top_share: float
    stages: tuple[str, ...]
    norm: np.ndarray
    """Norm of the output vector, model units, dims stage x neuron."""
    logit_var: np.ndarray
    """Variance, over the vocabulary, of the cosine with the unembedding; dims stage x neuron."""
    chosen: np.ndarray
    """Candidates, dims stage x rank; -1 where a stage is not finished."""
    name: str = "neurons"

    @property
    def finished(self) -> list[str]:
        """Stages whose weights have been read."""
        return [s for s, norm in zip(self.stages, self.norm, strict=True) if np.isfinite(norm).all()]

    @property
    def complete(self) -> bool:
        return len(self.finished) == len(self.stages)

    @property
    def any_finished(self) -> bool:
        return bool(self.finished)

    @property
    def progress(self) -> str:
        return f"{len(self.finished)} of {len(self.stages)} stages"

    def of(self, stage: str) -> StageNeurons:
        """Return norm, LogitVar and candidates of one stage."""
        at = self.stages.index(stage)
        return StageNeurons(norm=self.norm[at], logit_var=self.logit_var[at], chosen=self.chosen[at])

    def pairs(self) -> list[tuple[str, str]]:
        """Return every pair of finished stages, in the store's order."""
        return list(combinations(self.finished, 2))

    def shared(self, *stages: str) -> np.ndarray:
        """Return the candidates that all given stages have in common, in ascending order."""
        return reduce(np.intersect1d, (self.of(stage).chosen for stage in stages))


@dataclass(frozen=True)
class OnText:
    """Entropy and loss on text, unablated and with neurons held at their mean."""

    family: str
    layer: int
    text: str
    """Source of the text."""
    stages: tuple[str, ...]
    kind: np.ndarray
    """candidates, candidate, random_set or random_neuron, dims ablation."""
    ablated: np.ndarray
    """Ablated neurons, padded with -1, dims stage x ablation x member."""
    plain: dict[str, np.ndarray]
    """Unablated entropy and loss, nats, dims stage x document."""
    held: dict[str, np.ndarray]
    """entropy_total, loss_direct ..., nats, dims stage x ablation x document."""
    n_tokens: np.ndarray
    """Scored tokens, dims stage x document."""
    name: str = "text"

    def documents(self, stage: str) -> np.ndarray:
        """Tell which documents are finished in a stage."""
        at = self.stages.index(stage)
        done = [np.isfinite(values[at]).all(axis=0) for values in self.held.values()]
        return np.logical_and.reduce([*done, np.isfinite(self.plain["entropy"][at])])

    @property
    def finished(self) -> list[str]:
        """Stages with a finished document."""
        return [stage for stage in self.stages if self.documents(stage).any()]

    @property
    def planned(self) -> int:
        return self.n_tokens.shape[1]

    @property
    def complete(self) -> bool:
        return all(self.documents(stage).all() for stage in self.stages)

    @property
    def any_finished(self) -> bool:
        return bool(self.finished)

    @property
    def progress(self) -> str:
        return f"{min(int(self.documents(s).sum()) for s in self.stages)} of {self.planned} documents"

    def change(self, stage: str, metric: Metric, kind: str) -> np.ndarray:
        """Return ablated minus unablated, nats, dims ablation (of that kind) x finished document."""
        at, done = self.stages.index(stage), self.documents(stage)
        held = self.held[f"{metric.quantity}_{metric.effect}"][at][self.kind == kind][:, done]
        return held.astype(np.float64) - self.plain[metric.quantity][at][done]


@dataclass(frozen=True)
class Answers:
    """Answers of every stage to the statements of one set."""

    name: str
    family: str
    stages: tuple[str, ...]
    label: np.ndarray
    """Whether the statement is true, dims statement."""
    logit_diff: np.ndarray
    """logit(TRUE) - logit(FALSE), nats, dims stage x statement."""
    answer_mass: np.ndarray
    """P(TRUE) + P(FALSE), dims stage x statement."""

    @property
    def statements(self) -> np.ndarray:
        """Which statements are finished in every stage; stages are compared on these."""
        return np.isfinite(self.logit_diff).all(axis=0)

    @property
    def complete(self) -> bool:
        return bool(self.statements.all())

    @property
    def any_finished(self) -> bool:
        return bool(self.statements.any())

    @property
    def progress(self) -> str:
        return f"{int(self.statements.sum())} of {len(self.label)} statements"

    def judged(self, stage: str) -> Judged:
        """Return confidence (0.5 to 1) and whether the answer is right, for finished statements."""
        diff = self.logit_diff[self.stages.index(stage)][self.statements].astype(np.float64)
        # The larger of P and 1 - P, with P the sigmoid of the difference.
        confidence = 1 / (1 + np.exp(-np.abs(diff)))
        return Judged(confidence=confidence, right=(diff > 0) == self.label[self.statements])


def read(dataset: xr.Dataset) -> Neurons | OnText | Answers:
    """Read one group of the study.

    Raises
    ------
    FigureError
        The part is unknown, or a variable of the study is missing.

    Examples
    --------
    >>> read(open_group("runs/confidence", "confidence")).progress
    '2 of 2 stages'
    """
    part = str(dataset.attrs.get("part", "?"))
    family = str(dataset.attrs.get("family", ""))
    try:
        stages = names_of(dataset, "model")
        if part == "neurons":
            return Neurons(
                layer=int(dataset.attrs["layer"]),
                top_share=float(dataset.attrs["top_share"]),
                norm=dataset["weight_norm"].transpose("model", "neuron").values,
                logit_var=dataset["logit_var"].transpose("model", "neuron").values,
                chosen=dataset["candidate"].transpose("model", "rank").values,
                family=family,
                stages=stages,
            )
        if part == "text":
            dims = ("model", "ablation", "document")
            return OnText(
                layer=int(dataset.attrs["layer"]),
                text=str(dataset.attrs["text"]),
                kind=np.array([str(kind) for kind in dataset["kind"].values], dtype=object),
                ablated=dataset["ablated"].transpose("model", "ablation", "member").values,
                plain={
                    what: dataset[what].transpose("model", "document").values for what in ("entropy", "loss")
                },
                held={
                    f"{m.quantity}_{m.effect}": dataset[f"{m.quantity}_{m.effect}"].transpose(*dims).values
                    for m in METRICS
                },
                n_tokens=dataset["n_tokens"].transpose("model", "document").values,
                family=family,
                stages=stages,
            )
        if part == "answers":
            return Answers(
                name=str(dataset.attrs["set"]),
                label=dataset["label"].values.astype(bool),
                logit_diff=dataset["logit_diff"].transpose("model", "statement").values,
                answer_mass=dataset["answer_mass"].transpose("model", "statement").values,
                family=family,
                stages=stages,
            )
    except KeyError as missing:
        raise FigureError(
            f"confidence: no {missing} in a group of part {part!r}; is this a store of the confidence study?"
        ) from None
    raise FigureError(f"confidence: part {part!r} of a group is none of neurons, text, answers; draw it with the "
                      "version of posttrace that wrote it")  # fmt: skip
