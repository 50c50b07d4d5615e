"""The groups of the difference study as its figures need them, NaN where a unit is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import StageGroup, kept, names_of, require
from posttrace.figures.measures.intervals import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import xarray as xr

ROLES = ("begin", "template", "user", "answer", "text")
EXACT = "Of whole distributions in float32: exact, locally and on a server."
LARGEST = np.log(2)
"""Of a Jensen-Shannon divergence, nats."""


@dataclass(frozen=True)
class Pair:
    """One ordered pair of stages."""

    number: int
    source: str
    target: str

    @property
    def label(self) -> str:
        return f"{self.source} → {self.target}"


@dataclass(frozen=True)
class Difference(StageGroup):
    """One set of documents; arrays are read when they are used, and the streams never."""

    @classmethod
    def from_dataset(cls, data: xr.Dataset) -> Difference:
        """Read one group."""
        require(
            data,
            ["js", "kl", "entropy", "loss", "topic_share", "document_text"],
            place=str(data.attrs.get("set")),
            study="difference",
        )
        return cls(data)

    @property
    def name(self) -> str:
        return str(self.data.attrs["set"])

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every ordered pair."""
        ends = zip(names_of(self.data, "pair_source"), names_of(self.data, "pair_target"), strict=True)
        return [Pair(i, source, target) for i, (source, target) in enumerate(ends)]

    @cached_property
    def forward(self) -> list[Pair]:
        """Pairs whose source comes before their target, which the figures show; the CSV files have all."""
        place = self.stages.index
        return [p for p in self.pairs if place(p.source) <= place(p.target)]

    def control(self, pair: Pair) -> Pair | None:
        """Return the control pair, unless it is the pair itself or its reverse."""
        ends = list(self.data.attrs.get("control") or [])
        if not ends or set(ends) == {pair.source, pair.target}:
            return None
        return next(p for p in self.pairs if [p.source, p.target] == ends)

    @property
    def control_note(self) -> str:
        """What every caption says of the training control."""
        ends = list(self.data.attrs.get("control") or [])
        if not ends:
            return "No training control: intervals are over documents, and cover no change that retraining would make."
        return f"Training control: {ends[0]} → {ends[1]}."

    @property
    def projection_note(self) -> str:
        """What captions say of lengths, cosines and their like where streams were projected; empty elsewhere."""
        dims = int(self.data.attrs.get("projection", 0))
        if not dims:
            return ""
        return (
            f" Approximate: streams were projected to {dims} random dimensions, a length is within "
            f"{np.sqrt(0.5 / dims):.0%} of the true one (standard deviation)."
        )

    @cached_property
    def js(self) -> np.ndarray:
        """Nats, dims pair x document x token; NaN where there is no token or the unit is not finished."""
        return self.values("js")

    @cached_property
    def role(self) -> np.ndarray:
        """Dims document x token."""
        return strings(self.data["token_role"].values)

    @cached_property
    def roles(self) -> list[str]:
        """Roles that occur, in a fixed order."""
        return [role for role in ROLES if (self.role == role).any()]

    @cached_property
    def texts(self) -> np.ndarray:
        """Text of every token, dims document x token."""
        return strings(self.data["token_text"].values)

    @cached_property
    def vocabulary(self) -> np.ndarray:
        return strings(self.data["vocabulary_text"].values)

    @cached_property
    def finished(self) -> np.ndarray:
        """Documents whose stages were compared, dims document."""
        return np.isfinite(self.js).any(axis=(0, 2))

    @cached_property
    def finished_units(self) -> np.ndarray:
        """Blocks of documents that were compared, dims unit."""
        return self.finished[self.data["unit_end"].values - 1]

    @cached_property
    def unit_tokens(self) -> np.ndarray:
        """Tokens of every block, dims unit."""
        ends = self.data["unit_end"].values
        return np.diff(np.concatenate([[0], np.cumsum(self.data["n_tokens"].values)[ends - 1]]))

    @property
    def any_finished(self) -> bool:
        return bool(self.finished.any())

    @property
    def complete(self) -> bool:
        return bool(self.finished.all())

    @property
    def progress(self) -> str:
        return f"{int(self.finished.sum())} of {len(self.finished)} documents compared"

    @property
    def n(self) -> str:
        """Documents and tokens, for captions."""
        tokens = int(self.data["n_tokens"].values[self.finished].sum())
        missing = "" if self.complete else f" (INCOMPLETE: of {len(self.finished)} planned)"
        return f"n = {int(self.finished.sum())} documents{missing}, {tokens:,} tokens of {self.name}"

    def by_document(self, values: np.ndarray, role: str | None = None) -> np.ndarray:
        """Return means of values (dims document x token) over the tokens of a role, of every document that has one."""
        here = np.isfinite(values) & (True if role is None else self.role == role)
        count = here.sum(axis=1)
        return np.where(here, values, 0.0).sum(axis=1)[count > 0] / count[count > 0]


@kept
def mean_js(one: Difference, pair: Pair, role: str | None) -> Estimate:
    """Return the mean over documents of JS, nats, over the tokens of a role; over all tokens where it is None."""
    return bootstrap_mean(one.by_document(one.js[pair.number], role))


def strings(values: np.ndarray) -> np.ndarray:
    """Return texts as NumPy compares them fastest, whatever kind of string a store gave.

    Examples
    --------
    >>> strings(np.array(["a", "b"], dtype=object)).dtype
    dtype('<U1')
    """
    return np.array(values.tolist(), dtype=str)


def visible(text: str) -> str:
    r"""Return a token as tables show it: line breaks and outer spaces made visible.

    Examples
    --------
    >>> visible(" the"), visible("\n")
    ('␣the', '⏎')
    """
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    shown = "".join(c if c.isprintable() else "�" for c in text)
    begin = len(shown) - len(shown.lstrip(" "))
    end = len(shown) - len(shown.rstrip(" ")) if begin < len(shown) else 0
    return "␣" * begin + shown.strip(" ") + "␣" * end
