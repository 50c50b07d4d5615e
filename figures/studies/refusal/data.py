"""The group of the refusal study as its figures need it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.group import StageGroup, names_of

if TYPE_CHECKING:
    import xarray as xr


KINDS = ("harmful", "harmless")

RANDOM = "random-"

SCORED = {"harmful": "ablation", "harmless": "addition"}
"""Kind of instruction -> the intervention that the main table shows for it."""


@dataclass(frozen=True)
class Refusal(StageGroup):
    """The group `refusal` of a store; NaN where a unit is not finished."""

    name = "refusal"

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Refusal:
        """Read everything; answers are small compared with activations.

        Examples
        --------
        >>> refusal = Refusal.from_dataset(open_group("runs/refusal", "refusal"))
        >>> refusal.scores("refused", "instruct", "instruct", "ablation", "harmful").dtype
        dtype('float64')
        """
        return cls(dataset.load())

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
        return [int(layer) for layer in self.array("layer")]

    @property
    def positions(self) -> list[int]:
        """Positions that directions were taken from, counted from the prompt's end."""
        return [int(position) for position in self.array("position")]

    def of_kind(self, kind: str) -> np.ndarray:
        """Tell which test prompts are of a kind; dims prompt."""
        return np.array([str(k) == kind for k in self.array("kind")])

    def scores(self, array: str, direction: str, target: str, intervention: str, kind: str) -> np.ndarray:
        """Return one score of the finished answers of one cell, dims prompt; `none` has no direction."""
        place = dict(
            direction=0 if intervention == "none" else self.directions.index(direction),
            target=self.stages.index(target),
            intervention=names_of(self.data, "intervention").index(intervention),
            prompt=self.of_kind(kind),
        )
        finished = np.isfinite(self.data["log_odds"].isel(place).values)
        found = self.data[array].isel(place).values[finished]
        return found if found.dtype == object else found.astype(np.float64)

    def direction(self, stage: str) -> np.ndarray:
        """Return the unit directions of a stage, dims layer x position x hidden; NaN where there is none."""
        return self.array("direction")[self.stages.index(stage)].astype(np.float64)

    def planned(self, kind: str) -> int:
        """Return the number of test prompts of a kind."""
        return int(self.of_kind(kind).sum())

    @property
    def complete(self) -> bool:
        """Whether every answer is finished."""
        return bool(np.isfinite(self.array("log_odds")).all())

    @property
    def any_finished(self) -> bool:
        """Whether there is something to draw."""
        return bool(np.isfinite(self.array("direction")).any())

    @property
    def progress(self) -> str:
        """How much is done, in words."""
        done = np.isfinite(self.array("log_odds"))
        return f"{int(done.sum())} of {done.size} answers"

    @property
    def incomplete(self) -> str:
        """Beginning of a caption if something is missing."""
        return "" if self.complete else f"INCOMPLETE ({self.progress}). "
