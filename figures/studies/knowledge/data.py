"""A patching group as the figures need it: values per pair, layer and labelled column, and finished pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.errors import FigureError
from posttrace.figures.group import kept, names_of, require
from posttrace.figures.hover import Items
from posttrace.figures.measures.intervals import mean_over_items
from posttrace.figures.measures.patching import normalise
from posttrace.figures.studies.knowledge.exact_sample import ExactSample
from posttrace.figures.studies.knowledge.places import by_place, layers_and_heads

if TYPE_CHECKING:
    import xarray as xr

FREE_COLUMNS: tuple[str, ...] = ("knowledge", "last", "other")
"""Columns of a set with free-form pairs: per pair the mean over the tokens of each role."""
ROLES = ("subject", "object", "knowledge", "last", "other")
"""Token roles, in the order of the panels."""
KEY_ROLES = frozenset({"subject", "object", "knowledge"})
"""Roles whose columns count for K."""
ESTIMATE = "attribution patching (first-order estimate)"
"""How titles, captions and tables name values that were not measured by patching."""
METHODS = {"exact": "logit_diff", "attribution": "logit_diff_attribution"}
"""Attribute `method` of a group (exact by default) -> the variable that is drawn."""


@dataclass(frozen=True)
class PatchGrid:
    """Values of `knowledge/<set>` after patching, per pair; NaN where a unit is not finished.

    Examples
    --------
    >>> grid = PatchGrid.from_dataset(open_group("runs/knowledge", "knowledge/cities"))
    >>> grid.mean("base", "instruct").shape        # layer x column
    (8, 14)
    """

    name: str
    """The statement set: "cities"."""
    family: str
    site: str
    """Patched site: "resid_post"."""
    free: bool
    """Free-form pairs: columns are token roles instead of tokens."""
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    """Layer of every row of a matrix; with single heads, each layer is repeated for every head."""
    labels: tuple[str, ...]
    """Column labels: "The" "city" "of" "[s1]" ..."""
    roles: tuple[str, ...]
    """Column roles: subject, object, last, other; knowledge, last, other in free-form sets."""
    values: np.ndarray
    """Logit difference after patching, nats, dims source x target x pair x layer (or layer and head) x column."""
    clean: np.ndarray
    """Logit difference of the unpatched clean run, nats, dims source x pair."""
    corrupt: np.ndarray
    """Logit difference of the unpatched corrupt run, nats, dims target x pair."""
    heads: tuple[int, ...] = ()
    """With site `z`: numbers of the heads; rows are (layer, head), heads within layers."""
    statements: tuple[tuple[str, str], ...] = ()
    """The true and the false statement of every pair; empty where a store lacks them."""
    sample: ExactSample | None = None
    """The pairs that were also patched exactly, if `values` are estimates (attribution patching)."""

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> PatchGrid:
        """Read a group; free-form sets are reduced to means over the knowledge, last and other tokens of each pair.

        Raises
        ------
        FigureError
            A variable or coordinate of the knowledge study is missing, or the method is unknown.
        """
        name = str(dataset.attrs.get("set", "?"))
        method = str(dataset.attrs.get("method", "exact"))
        if method not in METHODS:
            raise FigureError(
                f"knowledge/{name}: method {method!r} is not one of {', '.join(METHODS)}; "
                "draw it with the version of posttrace that wrote it"
            )
        estimated = method == "attribution"
        free = dataset.attrs.get("alignment", "template") == "free"
        roles_name = "token_role_of_pair" if free else "token_role"
        needed = ["logit_diff", "logit_diff_clean", "logit_diff_corrupt", "source", "target", roles_name]
        needed += [METHODS[method], "exact"] if estimated else []
        require(dataset, needed, place=f"knowledge/{name}", study="knowledge")
        grid = by_place(dataset[METHODS[method]])
        if free:
            roles = _text(dataset[roles_name].transpose("pair", "token"))
            grid, labels, columns = _means_by_role(grid, roles), FREE_COLUMNS, FREE_COLUMNS
        else:
            # Columns beyond the longest statement have no values.
            width = (
                int(np.max(dataset["n_tokens"].values)) if "n_tokens" in dataset.variables else grid.shape[-1]
            )
            grid = grid[..., :width]
            columns = tuple(map(str, _text(dataset[roles_name])[:width]))
            labels = tuple(map(str, _text(dataset["token_label"])[:width]))
        layers, heads = layers_and_heads(dataset)
        return cls(
            name=name,
            family=str(dataset.attrs.get("family", "")),
            site=str(dataset.attrs.get("site", "")),
            free=free,
            sources=names_of(dataset, "source"),
            targets=names_of(dataset, "target"),
            layers=layers,
            heads=heads,
            labels=labels,
            roles=columns,
            values=grid,
            clean=dataset["logit_diff_clean"].transpose("source", "pair").values,
            corrupt=dataset["logit_diff_corrupt"].transpose("target", "pair").values,
            statements=_statements(dataset),
            sample=ExactSample.from_dataset(dataset) if estimated else None,
        )

    @property
    def estimate(self) -> str:
        """`ESTIMATE` if the values are estimates, for titles and captions; otherwise empty."""
        return ESTIMATE if self.sample is not None else ""

    @property
    def planned(self) -> int:
        """Pairs that the job asked for."""
        return self.values.shape[2]

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that are both source and target, in the store's order."""
        return tuple(stage for stage in self.sources if stage in self.targets)

    @property
    def reference(self) -> str:
        """The stage that others are compared with: `base`, or the first one."""
        return "base" if "base" in self.stages else self.stages[0] if self.stages else self.sources[0]

    @property
    def key_columns(self) -> list[int]:
        """Columns that count for K."""
        return [i for i, role in enumerate(self.roles) if role in KEY_ROLES]

    @cached_property
    def finished(self) -> np.ndarray:
        """Whether every cell of a pair is finished, dims source x target x pair."""
        return np.isfinite(self.values).all(axis=(-2, -1))

    @property
    def complete(self) -> bool:
        """Whether every pair of every (source, target) is finished."""
        return bool(self.finished.all())

    @property
    def any_finished(self) -> bool:
        """Whether there is a pair to draw."""
        return bool(self.finished.any())

    @property
    def progress(self) -> str:
        """How many pairs are finished for every (source, target)."""
        return f"{int(self.finished.all(axis=(0, 1)).sum())} of {self.planned} pairs"

    def pairs(self, *cells: tuple[str, str]) -> np.ndarray:
        """Return which pairs are finished in all of the given (source, target), dims pair."""
        used = [self.finished[self.sources.index(s), self.targets.index(t)] for s, t in cells]
        return np.logical_and.reduce(used)

    def patched(self, source: str, target: str, pairs: np.ndarray | None = None) -> np.ndarray:
        """Return the logit difference after patching of finished (or given) pairs, nats, dims pair x layer x column."""
        pairs = self.pairs((source, target)) if pairs is None else pairs
        return self.values[self.sources.index(source), self.targets.index(target)][pairs]

    def mean(self, source: str, target: str) -> np.ndarray | None:
        """Return M, the mean over finished pairs, nats, dims layer x column; None if no pair is finished."""
        values = self.patched(source, target)
        return mean_over_items(values) if len(values) else None

    def normalised(self, source: str, target: str) -> np.ndarray | None:
        """Return normalised M, dims layer x column; None if no pair is finished."""
        mean = self.mean(source, target)
        return None if mean is None else normalise(mean)

    def unpatched(self, source: str, target: str, pairs: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the unpatched logit differences, clean (source) and corrupt (target), nats, dims pair each."""
        return self.clean[self.sources.index(source)][pairs], self.corrupt[self.targets.index(target)][pairs]


def _statements(dataset: xr.Dataset) -> tuple[tuple[str, str], ...]:
    names = ("clean_statement", "corrupt_statement")
    if not all(name in dataset.coords for name in names):
        return ()
    clean, corrupt = (map(str, dataset[name].values) for name in names)
    return tuple(zip(clean, corrupt, strict=True))


@kept
def pairs_of(grid: PatchGrid) -> Items:
    """Return every pair's own map of every (source, target), NaN where the pair is not finished."""
    values = {
        f"{source} → {target}": _finished(grid.values[s, t], grid.finished[s, t])
        for s, source in enumerate(grid.sources)
        for t, target in enumerate(grid.targets)
    }
    return pair_items(grid, values, "logit difference after patching, nats")


def pair_items(grid: PatchGrid, values: Mapping[str, np.ndarray], unit: str) -> Items:
    """Return maps of single pairs with the statements of the pairs."""
    headings = ("true statement", "false statement") if grid.statements else ()
    return Items("pair", headings, grid.statements or [()] * grid.planned, values, unit)


def _finished(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return values if pairs.all() else np.where(pairs[:, None, None], values, np.nan)


def by_token(sets: Sequence[PatchGrid]) -> list[PatchGrid]:
    """Return the sets drawn as layer x token maps: those of whole sites, not of single heads."""
    return [grid for grid in sets if not grid.heads]


def usable(grid: PatchGrid, cell: tuple[str, str]) -> np.ndarray:
    """Return which pairs are finished in one (source, target), its unpatched values included; dims pair."""
    pairs = grid.pairs(cell)
    clean, corrupt = grid.unpatched(*cell, slice(None))
    return pairs & np.isfinite(clean) & np.isfinite(corrupt)


def _means_by_role(grid: np.ndarray, roles: np.ndarray) -> np.ndarray:
    columns = []
    for role in FREE_COLUMNS:
        chosen = (roles == role)[:, None, :]
        # Only padding and other roles are masked out, so an unfinished token of the role makes the mean NaN.
        total = np.where(chosen, grid, 0).sum(axis=-1, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.append(total / chosen.sum(axis=-1))
    return np.stack(columns, axis=-1)


def _text(variable: xr.DataArray) -> np.ndarray:
    return np.vectorize(lambda value: "" if value is None else str(value), otypes=[object])(variable.values)
