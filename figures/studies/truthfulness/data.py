"""Groups of the truthfulness study as its figures need them: one over all sets, and one per set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import StageGroup, first_of, kept, names_of, of_type, require
from posttrace.figures.measures.intervals import Bootstrap, mean_draws
from posttrace.figures.measures.interventions import bootstrap_effect

if TYPE_CHECKING:
    import xarray as xr

CONTROL = "random-"
"""Directions whose name begins so are random: the control."""


@dataclass(frozen=True)
class TruthGroup(StageGroup):
    """What both kinds of group have; NaN where a unit is not finished."""

    @property
    def probes(self) -> tuple[str, ...]:
        """Kinds of probe."""
        return names_of(self.data, "probe")

    @property
    def coefficient(self) -> float:
        """Factor by which directions are scaled."""
        return float(self.data.attrs.get("coefficient", 1.0))


@dataclass(frozen=True)
class Summary(TruthGroup):
    """The group `truthfulness`: accuracies, cosines and effects per held-out set."""

    name = "all sets"

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The sets, each held out in turn."""
        return names_of(self.data, "held_out")

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Block numbers."""
        return tuple(int(layer) for layer in self.array("layer"))

    @cached_property
    def directions(self) -> tuple[str, ...]:
        """Names on the direction axis: none, the stages, random-0 ..."""
        return names_of(self.data, "direction_name")

    @property
    def negated(self) -> tuple[str, ...]:
        """The sets of negated statements."""
        return tuple(map(str, self.data.attrs.get("negated_sets", ())))

    @property
    def chosen(self) -> str:
        """How the layers were chosen: "on the training sets" or "given"."""
        return str(self.data.attrs.get("layers_chosen", ""))

    @property
    def any_finished(self) -> bool:
        """Whether any set has its directions."""
        return bool(self.learned.any())

    @property
    def progress(self) -> str:
        """How many sets have been held out and tested."""
        return f"{int(self.tested.sum())} of {len(self.sets)} sets tested"

    @property
    def learned(self) -> np.ndarray:
        """Which sets have a direction learned without them; dims held_out."""
        return np.isfinite(self.array("cosine")).all(axis=(0, 1, 3))

    @property
    def tested(self) -> np.ndarray:
        """Which sets have been judged by probes; dims held_out."""
        return np.isfinite(self.array("accuracy")).all(axis=(0, 1, 2, 4))

    def layer(self, held_out: str) -> int:
        """Return the index, on the layer axis, of the layer whose direction is used for a held-out set."""
        return self.layers.index(int(self.array("probe_layer")[self.sets.index(held_out)]))

    def span(self, held_out: str) -> str:
        """Return the blocks where the direction is added: "3-5"."""
        h = self.sets.index(held_out)
        first, last = (int(self.array(n)[h]) for n in ("intervene_layer", "probe_layer"))
        return f"{first}-{last}" if first != last else str(last)


@dataclass(frozen=True)
class StatementSet(TruthGroup):
    """The group `truthfulness/<set>`: values per statement."""

    @property
    def name(self) -> str:
        """The statement set: "cities"."""
        return str(self.data.attrs["set"])

    @cached_property
    def directions(self) -> tuple[str, ...]:
        """Names on the direction axis: none, the stages, random-0 ..."""
        return names_of(self.data, "direction")

    @cached_property
    def truth(self) -> np.ndarray:
        """Which statements are true; dims statement."""
        return self.array("label") == 1

    @cached_property
    def used(self) -> np.ndarray:
        """Which statements get interventions: those that are not examples; dims statement."""
        return ~self.array("example").astype(bool)

    @property
    def answers(self) -> tuple[str, ...]:
        """The two answers: TRUE, FALSE."""
        return tuple(str(a).strip() for a in self.data.attrs.get("answer_tokens", ("TRUE", "FALSE")))

    @cached_property
    def read(self) -> np.ndarray:
        """Which statements every stage has read; dims statement."""
        return np.isfinite(self.data["activation"].isel(layer=0, hidden=0).values).all(axis=0)

    @property
    def any_finished(self) -> bool:
        """Whether any statement has been read."""
        return bool(self.read.any())

    @property
    def progress(self) -> str:
        """How many statements were read."""
        return f"{int(self.read.sum())} of {len(self.truth)} statements read"

    @property
    def steered(self) -> bool:
        """Whether all interventions are finished."""
        return bool(np.isfinite(self.array("p_diff")[..., self.used]).all())

    @property
    def controls(self) -> list[int]:
        """Indices of the random directions on the direction axis."""
        return [i for i, name in enumerate(self.directions) if name.startswith(CONTROL)]

    def activations(self, layer: int) -> np.ndarray:
        """Return activations at one index of the layer axis (model units); dims model x statement x hidden."""
        return self.data["activation"].isel(layer=layer).values.astype(np.float64)


def read(dataset: xr.Dataset) -> Summary | StatementSet:
    """Return a group of the study as its figures need it.

    Raises
    ------
    FigureError
        An array that every store of this study has is missing.

    Examples
    --------
    >>> read(open_group("runs/truthfulness", "truthfulness")).stages
    ('base', 'sft', 'instruct')
    """
    one_set = "set" in dataset.attrs
    needed = ["activation", "correct", "p_diff"] if one_set else ["direction", "accuracy", "effect"]
    if "sweep_effect" in dataset.variables:
        needed += ["sweep_effect_random", "sweep_effect_random_highest"]
    require(dataset, needed, place="truthfulness", study="truthfulness")
    return StatementSet(dataset) if one_set else Summary(dataset)


def parted(groups: Sequence[Summary | StatementSet]) -> tuple[Summary | None, dict[str, StatementSet]]:
    """Return the group over all sets, None if it is not among the groups, and the sets by name.

    Examples
    --------
    >>> summary, sets = parted([])
    >>> summary is None, sets
    (True, {})
    """
    return first_of(groups, Summary), {one.name: one for one in of_type(groups, StatementSet)}


def tested_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose probes are all tested, in the store's order."""
    return [name for name, done in zip(summary.sets, summary.tested, strict=True) if done and name in sets]


def steered_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose interventions are all done, in the store's order."""
    return [name for name in summary.sets if name in sets and sets[name].steered]


def accuracy(one: StatementSet, layer: int | None = None) -> Bootstrap:
    """Return the share of statements that each probe judges right; dims probe x source x target (x layer).

    Parameters
    ----------
    layer
        Index on the layer axis; by default every layer, all on the same resamples.

    Examples
    --------
    >>> accuracy(one, layer=3).value.shape         # 2 kinds of probe, 3 stages
    (2, 3, 3)
    """
    correct = one.array("correct")
    correct = np.moveaxis(correct if layer is None else correct[..., layer], 3, 0).astype(np.float64)
    draws = mean_draws(correct.reshape(len(correct), -1))
    return Bootstrap(correct.mean(axis=0), draws.reshape(len(draws), *correct.shape[1:]), len(correct))


@kept
def effect(one: StatementSet) -> Bootstrap:
    """Return effects of the interventions; dims kind (as `interventions.KINDS`) x direction x target.

    True and false statements are resampled separately.

    Examples
    --------
    >>> effect(one).value.shape                    # none, 3 stages' directions, 20 random ones
    (3, 24, 3)
    """
    return effect_of(one, one.array("p_diff"))


def effect_of(one: StatementSet, p_diff: np.ndarray) -> Bootstrap:
    """Return the effect of given P(TRUE) - P(FALSE), dims direction x target x statement, against those of `none`."""
    before = one.array("p_diff")[one.directions.index("none")]
    before, after = (values[..., one.used].astype(np.float64) for values in (before, p_diff))
    return bootstrap_effect(before, after, one.truth[one.used])
