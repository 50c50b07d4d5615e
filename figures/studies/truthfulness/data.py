"""Groups of the truthfulness study as its figures need them: one over all sets, and one per set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import names_of, require
from posttrace.figures.measures.intervals import SEED, Bootstrap, resampled_means
from posttrace.figures.measures.interventions import bootstrap_effect

if TYPE_CHECKING:
    import xarray as xr

CONTROL = "random-"
"""Directions whose name begins so are random: the control."""


@dataclass(frozen=True)
class Summary:
    """The group `truthfulness`: accuracies, cosines and effects per set that was left out; NaN where unfinished."""

    family: str
    stages: tuple[str, ...]
    probes: tuple[str, ...]
    sets: tuple[str, ...]
    """The sets that are left out in turn."""
    layers: tuple[int, ...]
    directions: tuple[str, ...]
    """none, the stages, random-0 ..."""
    negated: tuple[str, ...]
    """Those of the sets that are negations."""
    coefficient: float
    chosen: str
    """How the layers came about: "on the training sets" or "given"."""
    data: xr.Dataset
    name: str = "all sets"

    @property
    def any_finished(self) -> bool:
        """Whether any set has its directions."""
        return bool(self.learned.any())

    @property
    def progress(self) -> str:
        """How many sets have been left out and tested."""
        return f"{int(self.tested.sum())} of {len(self.sets)} sets tested"

    @property
    def learned(self) -> np.ndarray:
        """Which sets have a direction learned without them; dims held_out."""
        return np.isfinite(self.values("cosine")).all(axis=(0, 1, 3))

    @property
    def tested(self) -> np.ndarray:
        """Which sets have been judged by probes; dims held_out."""
        return np.isfinite(self.values("accuracy")).all(axis=(0, 1, 2, 4))

    def values(self, name: str) -> np.ndarray:
        """An array of the group, dims as stored."""
        return self.data[name].values

    def layer(self, held_out: str) -> int:
        """Place (on the layer axis) of the layer whose direction is used when a set is left out."""
        return self.layers.index(int(self.values("probe_layer")[self.sets.index(held_out)]))

    def span(self, held_out: str) -> str:
        """The blocks where the direction is added: "3-5"."""
        h = self.sets.index(held_out)
        first, last = (int(self.values(n)[h]) for n in ("intervene_layer", "probe_layer"))
        return f"{first}-{last}" if first != last else str(last)


@dataclass(frozen=True)
class StatementSet:
    """The group `truthfulness/<set>`: values per statement."""

    name: str
    family: str
    stages: tuple[str, ...]
    probes: tuple[str, ...]
    directions: tuple[str, ...]
    truth: np.ndarray
    """Which statements are true; dims statement."""
    used: np.ndarray
    """Which statements get interventions: those that are not examples; dims statement."""
    coefficient: float
    answers: tuple[str, ...]
    data: xr.Dataset

    @property
    def read(self) -> np.ndarray:
        """Which statements every stage has read; dims statement."""
        some = self.data["activation"].isel(layer=0, hidden=0).values
        return np.isfinite(some).all(axis=0)

    @property
    def any_finished(self) -> bool:
        """Whether any statement has been read."""
        return bool(self.read.any())

    @property
    def progress(self) -> str:
        """How many statements were read."""
        return f"{int(self.read.sum())} of {len(self.truth)} statements read"

    @property
    def pushed(self) -> bool:
        """Whether all interventions are there."""
        return bool(np.isfinite(self.values("p_diff")[..., self.used]).all())

    @property
    def complete(self) -> bool:
        """Whether everything that was planned is there."""
        return bool(self.read.all()) and self.pushed

    @property
    def controls(self) -> list[int]:
        """Places of the random directions on the direction axis."""
        return [i for i, name in enumerate(self.directions) if name.startswith(CONTROL)]

    def values(self, name: str) -> np.ndarray:
        """An array of the group, dims as stored."""
        return self.data[name].values

    def activations(self, layer: int) -> np.ndarray:
        """Activations at one place of the layer axis (model units); dims model x statement x hidden."""
        return self.data["activation"].isel(layer=layer).values.astype(np.float64)


def read(dataset: xr.Dataset) -> Summary | StatementSet:
    """Return a group of the study as its figures need it.

    Example
    -------
    >>> from posttrace import stores
    >>> read(stores.open_group("runs/truthfulness", "truthfulness")).stages        # doctest: +SKIP
    ('base', 'sft', 'instruct')

    Raises
    ------
    FigureError: an array that every store of this study has is absent.
    """
    attrs = dataset.attrs
    needed: tuple[str, ...] = (
        ("activation", "correct", "p_diff") if "set" in attrs else ("direction", "accuracy", "effect")
    )
    if "sweep_effect" in dataset.variables:
        needed += ("sweep_effect_random", "sweep_effect_random_highest")
    require(dataset, needed, place="truthfulness", study="truthfulness")
    if "set" in attrs:
        return StatementSet(
            name=str(attrs["set"]),
            family=str(attrs.get("family", "")),
            stages=names_of(dataset, "model"),
            probes=names_of(dataset, "probe"),
            directions=names_of(dataset, "direction"),
            truth=dataset["label"].values == 1,
            used=~dataset["example"].values.astype(bool),
            coefficient=float(attrs.get("coefficient", 1.0)),
            answers=tuple(str(a).strip() for a in attrs.get("answer_tokens", ("TRUE", "FALSE"))),
            data=dataset,
        )
    return Summary(
        family=str(attrs.get("family", "")),
        stages=names_of(dataset, "model"),
        probes=names_of(dataset, "probe"),
        sets=names_of(dataset, "held_out"),
        layers=tuple(int(layer) for layer in dataset["layer"].values),
        directions=names_of(dataset, "direction_name"),
        negated=tuple(map(str, attrs.get("negated_sets", ()))),
        coefficient=float(attrs.get("coefficient", 1.0)),
        chosen=str(attrs.get("layers_chosen", "")),
        data=dataset,
    )


def parted(groups: Sequence[Summary | StatementSet]) -> tuple[Summary | None, dict[str, StatementSet]]:
    """Return the group over all sets, if there is anything in it, and the sets by name.

    Example
    -------
    >>> summary, sets = parted([])
    >>> summary is None, sets
    (True, {})
    """
    summary = next((group for group in groups if isinstance(group, Summary)), None)
    return summary, {group.name: group for group in groups if isinstance(group, StatementSet)}


def tested_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose probes are all tested, in the store's order."""
    return [name for name, done in zip(summary.sets, summary.tested, strict=True) if done and name in sets]


def pushed_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose interventions are all done, in the store's order."""
    return [name for name in summary.sets if name in sets and sets[name].pushed]


def accuracy(one: StatementSet, layer: int | None = None) -> Bootstrap:
    """Return the share of statements that each probe judges right; dims probe x source x target (x layer).

    Example
    -------
    >>> accuracy(one, layer=3).value.shape         # 2 kinds of probe, 3 stages
    (2, 3, 3)

    Arguments
    ---------
    layer: place on the layer axis; every layer when not given. All are of the same resamples.
    """
    correct = one.values("correct")
    correct = np.moveaxis(correct if layer is None else correct[..., layer], 3, 0).astype(np.float64)
    rng = np.random.default_rng(SEED)
    draws = np.concatenate(list(resampled_means(correct.reshape(len(correct), -1), rng)))
    return Bootstrap(correct.mean(axis=0), draws.reshape(len(draws), *correct.shape[1:]), len(correct))


def effect(one: StatementSet, p_diff: np.ndarray | None = None) -> Bootstrap:
    """Return effects of the interventions; dims kind (as `interventions.KINDS`) x direction x target.

    Example
    -------
    >>> effect(one).value.shape                    # none, 3 stages' directions, 20 random ones
    (3, 24, 3)

    Arguments
    ---------
    p_diff: P(TRUE) - P(FALSE) under each direction, dims direction x target x statement; the group's own when
        not given. Before is always the group's own direction `none`. True and false statements are resampled apart.
    """
    before = one.values("p_diff")[one.directions.index("none")]
    after = one.values("p_diff") if p_diff is None else p_diff
    before, after = (values[..., one.used].astype(np.float64) for values in (before, after))
    return bootstrap_effect(before, after, one.truth[one.used])
