"""The groups of the confidence study as its figures need them, with NaN (or -1) where a unit is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import xarray as xr

METRICS = (
    ("entropy", "total", "entropy"),
    ("entropy", "direct", "entropy, norm frozen"),
    ("loss", "total", "loss"),
    ("loss", "direct", "loss, norm frozen"),
)
"""What is measured, how, and in words."""

GUIDE = (
    (
        "Entropy neurons",
        "Neurons of the last MLP with a long output vector that favours no token: its cosine with the unembedding "
        "hardly varies over the vocabulary (LogitVar). They could change how sure the model is, through the final "
        "norm, without changing what it says. The scatter shows every neuron and the ten candidates; lines link "
        "those that two stages share.",
    ),
    (
        "Overlap",
        "How many candidates two stages share, and how many they would share if nothing but their norms tied them "
        "together. The sensitivity table repeats the count for other thresholds: a result that hangs on one of "
        "them means little.",
    ),
    (
        "Ablation",
        "The candidates are held at their mean activation, together and one by one, beside random neurons of like "
        "norm. “Norm frozen” keeps the final norm's scale of the unablated run: an entropy neuron proper would "
        "change the entropy as it is and hardly with the norm frozen. Where candidates lie among the random dots, "
        "they do nothing particular, whatever their weights look like.",
    ),
    (
        "Calibration",
        "Confidence is the larger of P(TRUE) and P(FALSE), of the two together. On the diagonal a stage is right "
        "as often as it is sure; below it, it is overconfident. ECE is never below 0 and grows when statements are "
        "few: compare it between stages on the same statements.",
    ),
)
"""How to read each kind of figure: heading and text."""


@dataclass(frozen=True)
class Neurons:
    """Norm and LogitVar of the neurons of one MLP, for every stage."""

    family: str
    layer: int
    top_share: float
    stages: tuple[str, ...]
    norm: np.ndarray
    """Length of the output vector, model units, dims stage x neuron."""
    logit_var: np.ndarray
    """Variance over the vocabulary of a cosine, no unit, dims stage x neuron."""
    chosen: np.ndarray
    """Candidates, dims stage x rank; -1 where a stage is not finished."""
    name: str = "neurons"

    @property
    def finished(self) -> list[str]:
        """Stages whose weights were read."""
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

    def of(self, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Norm, LogitVar and candidates of one stage."""
        at = self.stages.index(stage)
        return self.norm[at], self.logit_var[at], self.chosen[at]

    def pairs(self) -> list[tuple[str, str]]:
        """Every pair of finished stages, in the store's order."""
        done = self.finished
        return [(one, two) for i, one in enumerate(done) for two in done[i + 1 :]]


@dataclass(frozen=True)
class OnText:
    """Entropy and loss on text, unablated and with neurons held at their mean."""

    family: str
    layer: int
    text: str
    """Where the text comes from."""
    stages: tuple[str, ...]
    kind: np.ndarray
    """candidates, candidate, random_set or random_neuron, dims ablation."""
    ablated: np.ndarray
    """Neurons, -1 for none, dims stage x ablation x member."""
    plain: dict[str, np.ndarray]
    """entropy and loss, nats, dims stage x document."""
    held: dict[str, np.ndarray]
    """entropy_total, loss_direct ..., nats, dims stage x ablation x document."""
    n_tokens: np.ndarray
    """Scored tokens, dims stage x document."""
    name: str = "text"

    def documents(self, stage: str) -> np.ndarray:
        """Which documents are finished in a stage."""
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

    def change(self, stage: str, what: str, how: str, kind: str) -> np.ndarray:
        """Ablated minus unablated, nats, dims ablation (of that kind) x finished document."""
        at, done = self.stages.index(stage), self.documents(stage)
        held = self.held[f"{what}_{how}"][at][self.kind == kind][:, done].astype(np.float64)
        return held - self.plain[what][at][done]


@dataclass(frozen=True)
class Answers:
    """How sure each stage is of the statements of one set."""

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
        """Which statements are finished in every stage, so that stages are compared on the same ones."""
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

    def judged(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Confidence (0.5 to 1) and whether the answer is right, of finished statements, dims statement each."""
        diff = self.logit_diff[self.stages.index(stage)][self.statements].astype(np.float64)
        # The larger of P and 1 - P, with P the sigmoid of the difference.
        confidence = 1 / (1 + np.exp(-np.abs(diff)))
        return confidence, (diff > 0) == self.label[self.statements]


def read(dataset: xr.Dataset) -> Neurons | OnText | Answers:
    """Read one group of the study.

    Example
    -------
    >>> from posttrace import stores
    >>> read(stores.open_group("runs/confidence", "confidence")).stages            # doctest: +SKIP
    ('base', 'sft', 'instruct')

    Raises
    ------
    FigureError: a part or a variable of the study that is not there.
    """
    part = str(dataset.attrs.get("part", "?"))
    common = {"family": str(dataset.attrs.get("family", ""))}
    try:
        common["stages"] = tuple(map(str, dataset["model"].values))
        if part == "neurons":
            return Neurons(
                layer=int(dataset.attrs["layer"]),
                top_share=float(dataset.attrs["top_share"]),
                norm=dataset["weight_norm"].transpose("model", "neuron").values,
                logit_var=dataset["logit_var"].transpose("model", "neuron").values,
                chosen=dataset["candidate"].transpose("model", "rank").values,
                **common,
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
                    f"{what}_{how}": dataset[f"{what}_{how}"].transpose(*dims).values
                    for what, how, _ in METRICS
                },
                n_tokens=dataset["n_tokens"].transpose("model", "document").values,
                **common,
            )
        if part == "answers":
            return Answers(
                name=str(dataset.attrs["set"]),
                label=dataset["label"].values.astype(bool),
                logit_diff=dataset["logit_diff"].transpose("model", "statement").values,
                answer_mass=dataset["answer_mass"].transpose("model", "statement").values,
                **common,
            )
    except KeyError as missing:
        raise FigureError(
            f"confidence: no {missing} in a group of part {part!r}; is this a store of the confidence study?"
        ) from None
    raise FigureError(f"confidence: part {part!r} of a group is none of neurons, text, answers; draw it with the "
                      "version of posttrace that wrote it")  # fmt: skip
