"""How far attribution patching is from exact patching, on the pairs of a group that have both.

Sources: of the estimate, Nanda 2023, "Attribution patching", and Syed et al. 2023 (arXiv 2310.10348); of its failures,
Kramár et al. 2024, "AtP*" (arXiv 2403.00745).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import names_of
from posttrace.figures.measures.intervals import Estimate
from posttrace.figures.measures.patching import pooled_agreement
from posttrace.figures.studies.knowledge.places import by_place, layers_and_heads

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Cells:
    """Estimated and exact values of every cell of one (source, target), for pairs that have both everywhere."""

    estimate: np.ndarray
    """Logit difference by attribution patching, nats, dims pair x layer x token."""
    exact: np.ndarray
    """The same by exact patching; both are NaN after the end of a shorter statement."""
    corrupt: np.ndarray
    """Unpatched logit difference, nats, dims pair x 1 x 1."""
    rows: np.ndarray
    """Indices of these pairs in the sample, dims pair."""


@dataclass(frozen=True)
class Miss:
    """The cell where estimate and exact value differ most."""

    nats: float
    """|estimate - exact|."""
    layer: int
    head: int | None
    """With site `z`: the head."""
    token: str
    """Label of the token."""
    pair: int
    """Number of the pair within the set."""
    clean: str
    """The true statement."""
    corrupt: str
    """The false statement."""

    @property
    def place(self) -> str:
        """Layer, and head where there is one."""
        return f"{self.layer}" if self.head is None else f"{self.layer} head {self.head}"


@dataclass(frozen=True)
class Agreement:
    """Estimate against exact values of one (source, target)."""

    n_pairs: int
    n_cells: int
    effect: Estimate
    """Pearson r, over the cells of all pairs, of the change that the patch makes (patched - unpatched)."""
    logit_diff: Estimate
    """Pearson r of the patched logit difference itself, which is higher because pairs differ."""
    mean_miss: Estimate
    """Mean |estimate - exact| over cells, nats."""
    largest: Miss


@dataclass(frozen=True)
class ExactSample:
    """The pairs of an attribution group that were also patched exactly.

    Examples
    --------
    >>> sample.agreement("base", "instruct").n_pairs
    4
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    """Layer of every place."""
    pairs: tuple[int, ...]
    """Their numbers within the set, as marked by the coordinate `exact`."""
    labels: np.ndarray
    """Text of each token, dims pair x token."""
    inside: np.ndarray
    """Whether a token belongs to the statement, dims pair x token."""
    clean: tuple[str, ...]
    """The true statement of each pair; empty if the store has none."""
    corrupt: tuple[str, ...]
    """The false statement of each pair."""
    estimate: np.ndarray
    """Logit difference by attribution patching, nats, dims source x target x pair x layer x token."""
    exact: np.ndarray
    """The same by exact patching; NaN where a unit is not finished."""
    unpatched: np.ndarray
    """Logit difference of the corrupt run, nats, dims target x pair."""
    heads: tuple[int, ...] = ()
    """With site `z`: numbers of the heads; places are (layer, head), heads within layers."""

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> ExactSample:
        """Read the marked pairs of a group that `PatchGrid.from_dataset` has checked."""
        rows = np.flatnonzero(dataset["exact"].values)
        some = dataset.isel(pair=rows)
        exact = by_place(some["logit_diff"]).astype(np.float64)
        n_pairs, _, width = exact.shape[2:]
        own = "token_label_of_pair" if "token_label_of_pair" in some.variables else "token_label"
        lengths = some["n_tokens"].values if "n_tokens" in some.variables else np.full(n_pairs, width)
        statements = (
            names_of(some, name) if name in some.variables else ("",) * n_pairs
            for name in ("clean_statement", "corrupt_statement")
        )
        layers, heads = layers_and_heads(some)
        numbers = some["pair"].values if "pair" in some.variables else rows
        return cls(
            sources=names_of(some, "source"),
            targets=names_of(some, "target"),
            layers=layers,
            heads=heads,
            pairs=tuple(int(number) for number in numbers),
            labels=np.broadcast_to(some[own].values.astype(object), (n_pairs, width)),
            inside=np.arange(width) < np.asarray(lengths)[:, None],
            **dict(zip(("clean", "corrupt"), statements, strict=True)),
            estimate=by_place(some["logit_diff_attribution"]).astype(np.float64),
            exact=exact,
            unpatched=some["logit_diff_corrupt"].transpose("target", "pair").values.astype(np.float64),
        )

    @property
    def complete(self) -> bool:
        """Whether every marked pair has both values in every (source, target)."""
        return all(len(self.cells(s, t).rows) == len(self.pairs) for s in self.sources for t in self.targets)

    def cells(self, source: str, target: str) -> Cells:
        """Return the cells of the pairs that have both values everywhere, and the unpatched value."""
        s, t = self.sources.index(source), self.targets.index(target)
        inside = np.broadcast_to(self.inside[:, None, :], self.exact.shape[2:])
        both = np.isfinite(self.estimate[s, t]) & np.isfinite(self.exact[s, t])
        rows = np.flatnonzero((both | ~inside).all(axis=(1, 2)) & np.isfinite(self.unpatched[t]))
        estimate, exact = (np.where(inside, v[s, t], np.nan)[rows] for v in (self.estimate, self.exact))
        return Cells(estimate, exact, self.unpatched[t][rows, None, None], rows)

    def agreement(self, source: str, target: str) -> Agreement | None:
        """Compare estimates and exact values of one (source, target); None if no pair has both.

        All cells of the statements count, including those that no patch can change. Intervals are percentile bootstrap
        intervals over pairs; the largest miss has none, because resampling can only lower a maximum.
        """
        cells = self.cells(source, target)
        if not len(cells.rows):
            return None
        miss = np.abs(cells.estimate - cells.exact)
        row, place, token = np.unravel_index(np.nanargmax(miss), miss.shape)
        pair = cells.rows[row]
        head = self.heads[place % len(self.heads)] if self.heads else None
        where = (self.layers[place], head, str(self.labels[pair, token]), self.pairs[pair])
        change = pooled_agreement(cells.estimate - cells.corrupt, cells.exact - cells.corrupt)
        logit_diff = pooled_agreement(cells.estimate, cells.exact).correlation
        return Agreement(
            n_pairs=len(cells.rows),
            n_cells=int(np.isfinite(miss).sum()),
            effect=change.correlation,
            logit_diff=logit_diff,
            mean_miss=change.mean_miss,
            largest=Miss(float(miss[row, place, token]), *where, self.clean[pair], self.corrupt[pair]),
        )
