"""The group of the refusal study as its figures need it, NaN where a unit is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import names_of

if TYPE_CHECKING:
    import xarray as xr


KINDS = ("harmful", "harmless")

RANDOM = "random-"

SCORED = {"harmful": "ablation", "harmless": "addition"}
"""Kind of instruction -> the intervention that the main table shows for it."""


@dataclass(frozen=True)
class Refusal:
    """The group `refusal` of a store."""

    data: xr.Dataset

    name = "refusal"

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Refusal:
        """Read everything; answers are small compared with activations.

        Example
        -------
        >>> Refusal.from_dataset(dataset).stages
        ('base', 'instruct')
        """
        return cls(dataset.load())

    @property
    def family(self) -> str:
        """Name of the family."""
        return str(self.data.attrs.get("family", ""))

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages, in the store's order."""
        return names_of(self.data, "model")

    @cached_property
    def directions(self) -> tuple[str, ...]:
        """Names on the direction axis: stages, then random ones."""
        return names_of(self.data, "direction_name")

    @property
    def random(self) -> tuple[str, ...]:
        """Names of the random directions."""
        return tuple(name for name in self.directions if name.startswith(RANDOM))

    @property
    def layers(self) -> list[int]:
        """Block numbers."""
        return [int(layer) for layer in self.data["layer"].values]

    @property
    def positions(self) -> list[int]:
        """Positions that directions were taken from, counted from the prompt's end."""
        return [int(position) for position in self.data["position"].values]

    def of_kind(self, kind: str) -> np.ndarray:
        """Which test prompts are of a kind, dims prompt."""
        return np.array([str(k) == kind for k in self.data["kind"].values])

    def values(self, array: str, direction: str, target: str, intervention: str, kind: str) -> np.ndarray:
        """Return one score of the finished answers of one cell, dims prompt; `none` takes any direction.

        Example
        -------
        >>> refusal.values("refused", "instruct", "instruct", "ablation", "harmful").dtype
        dtype('float64')
        """
        place = dict(
            direction=0 if intervention == "none" else self.directions.index(direction),
            target=self.stages.index(target),
            intervention=[str(i) for i in self.data["intervention"].values].index(intervention),
            prompt=self.of_kind(kind),
        )
        finished = np.isfinite(self.data["log_odds"].isel(place).values)
        found = self.data[array].isel(place).values[finished]
        return found if found.dtype == object else found.astype(np.float64)

    def direction(self, stage: str) -> np.ndarray:
        """Return unit directions of a stage, dims layer x position x hidden; NaN where there is none."""
        return self.data["direction"].values[self.stages.index(stage)].astype(np.float64)

    def planned(self, kind: str) -> int:
        """Test prompts of a kind."""
        return int(self.of_kind(kind).sum())

    @property
    def complete(self) -> bool:
        """Whether every answer of every cell that is computed is there."""
        odds = self.data["log_odds"].values
        return bool(np.isfinite(odds).all())

    @property
    def any_finished(self) -> bool:
        """Whether there is something to draw."""
        return bool(np.isfinite(self.data["direction"].values).any())

    @property
    def progress(self) -> str:
        """How much is done, in words."""
        done = np.isfinite(self.data["log_odds"].values)
        return f"{int(done.sum())} of {done.size} answers"

    @property
    def incomplete(self) -> str:
        """Words that begin a caption where something is missing."""
        return "" if self.complete else f"INCOMPLETE ({self.progress}). "
