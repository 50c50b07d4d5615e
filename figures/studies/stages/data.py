"""The groups of the stages study as its figures need them, with NaN where a unit is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.errors import FigureError
from posttrace.figures.group import StageGroup, names_of, require
from posttrace.figures.measures.intervals import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import xarray as xr

FLOOR = 0.01
"""Nats that a sum of attributions may miss, whatever the size of the effect."""
ALL = "all"
"""Prompts of every kind."""
TRAINED_WEIGHTS = ("replayed_weights", "propagated_update", "retrained_weights")
"""Arrays that no figure shows: as large as models."""


@dataclass(frozen=True)
class Weights(StageGroup):
    """How much each update changed each weight tensor."""

    name = "weights"

    @property
    def updates(self) -> tuple[str, ...]:
        """Updates whose files were read."""
        finished = np.isfinite(self.data["update_norm"].values).all(axis=1)
        return tuple(n for n, there in zip(names_of(self.data, "update"), finished, strict=True) if there)

    @property
    def any_finished(self) -> bool:
        return bool(self.updates)

    @property
    def complete(self) -> bool:
        return len(self.updates) == self.data.sizes["update"]

    @property
    def progress(self) -> str:
        return f"{len(self.updates)} of {self.data.sizes['update']} updates"


@dataclass(frozen=True)
class Effects(StageGroup):
    """One behaviour on one set of prompts."""

    @property
    def name(self) -> str:
        """Behaviour, and set if there is one."""
        return str(self.data.attrs["set"])

    @property
    def unit(self) -> str:
        """What the values are."""
        return str(self.data["behaviour"].attrs.get("units", "nats"))

    @property
    def updates(self) -> tuple[str, ...]:
        """Each named after the stage that it made."""
        return self.stages[1:]

    @property
    def effects_only(self) -> bool:
        """Whether only effects were measured, as on a server."""
        return "attribution" not in self.data

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self.data["layer"].values]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of prompts (harmful, true ...), `all` where there is one only."""
        found = {str(kind) for kind in self.data["kind"].values} - {""}
        return tuple(sorted(found, key=lambda kind: (kind != "true", kind))) or (ALL,)

    @property
    def parts(self) -> list[str]:
        """The parts of the model that are credited, in the order of a forward pass."""
        halves = [f"{m} {layer}" for layer in self.layers for m in names_of(self.data, "module")]
        return ["embed", *halves, "unembed"]

    def of_kind(self, kind: str) -> np.ndarray:
        """Which prompts are of a kind; dims prompt."""
        kinds = np.array([str(k) for k in self.data["kind"].values])
        return np.ones(len(kinds), bool) if kind == ALL else kinds == kind

    def effect(self, update: str) -> np.ndarray:
        """f(stage) - f(stage before), nats; dims prompt, NaN where a stage is not finished."""
        at = self.stages.index(update)
        f = self.values("behaviour")
        return f[at] - f[at - 1]

    def at(self, update: str) -> int:
        """Place on the axis of updates."""
        return self.updates.index(update)

    def credit(self, update: str) -> np.ndarray:
        """Attribution of every part, summed over tokens, nats; dims prompt x part. NaN where it is not finished."""
        at = self.at(update)
        halves = np.nansum(self.values("attribution")[at], axis=-1).reshape(len(self.prompts), -1)
        embed = np.nansum(self.values("attribution_embed")[at], axis=-1)
        unembed = self.values("attribution_unembed")[at]
        found = np.column_stack([embed, halves, unembed])
        found[~np.isfinite(unembed)] = np.nan
        return found

    def swapped(self, update: str, kind: str) -> np.ndarray | None:
        """Effect of swapping every part (`insert` or `remove`), nats; dims prompt x part. None: not in the job."""
        if kind not in self.data:
            return None
        at = self.at(update)
        halves, ends = self.values(kind)[at], self.values(f"{kind}_ends")[at]
        return np.column_stack([ends[:, 0], halves.reshape(len(halves), -1), ends[:, 1]])

    def converged(self, update: str) -> np.ndarray:
        """Prompts whose attributions sum to the effect within the tolerance; dims prompt."""
        residual = np.abs(self.values("residual")[self.at(update)])
        allowed = float(self.data.attrs["tolerance"]) * np.abs(self.effect(update)) + FLOOR
        with np.errstate(invalid="ignore"):
            return residual <= allowed

    def flagged(self, update: str) -> int:
        """Prompts that were attributed and did not converge."""
        attributed = np.isfinite(self.values("residual")[self.at(update)])
        return int((attributed & ~self.converged(update)).sum())

    @property
    def prompts(self) -> np.ndarray:
        """Numbers of the prompts."""
        return np.arange(self.data.sizes["prompt"])

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stages that training was repeated without."""
        return names_of(self.data, "without") if "retrained" in self.data else ()

    def retrained(self, without: str) -> np.ndarray:
        """F of the final stage trained without a stage, on the data as they came; dims prompt."""
        return self.values("retrained")[self.left_out.index(without), 0]

    def estimate(self, values: np.ndarray, kind: str = ALL) -> Estimate:
        """Mean over the finished prompts of a kind, with its interval; dims of values: prompt."""
        chosen = values[self.of_kind(kind)]
        return bootstrap_mean(chosen[np.isfinite(chosen)])

    @property
    def any_finished(self) -> bool:
        return bool(np.isfinite(self.values("behaviour")).all(axis=0).any())

    @property
    def complete(self) -> bool:
        """Whether every value that is always there is there."""
        names = [
            name for name in ("behaviour", "removed", "residual", "insert", "remove") if name in self.data
        ]
        others = ("control_removed", "cumulative", "retrained", "estimate", "replayed")
        names += [name for name in others if name in self.data]
        return all(bool(np.isfinite(self.values(name)).all()) for name in names)

    @property
    def progress(self) -> str:
        name = "behaviour" if self.effects_only else "residual"
        done = np.isfinite(self.values(name))
        return f"{int(done.sum())} of {done.size} {'values' if self.effects_only else 'attributions'}"

    @property
    def incomplete(self) -> str:
        """Words that begin a caption where something is missing."""
        return "" if self.complete else f"INCOMPLETE ({self.progress}). "

    @property
    def untrained_template(self) -> str:
        """A warning for captions where the first stage may not know the template."""
        if self.data.attrs["behaviour"] != "refusal" or self.data.attrs["template"] != "chat":
            return ""
        return (
            f"All stages read the final stage's chat template, whose tokens {self.stages[0]} may never have been "
            "trained on. "
        )


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Correlate the finished values; NaN where one does not vary.

    Example
    -------
    >>> round(correlation(np.array([1.0, 2, np.nan]), np.array([3.0, 5, 0])), 6)
    1.0
    """
    there = np.isfinite(one) & np.isfinite(two)
    if not there.any() or one[there].std() == 0 or two[there].std() == 0:
        return float("nan")
    return float(np.corrcoef(one[there], two[there])[0, 1])


def read(dataset: xr.Dataset) -> Weights | Effects:
    """Read one group of the study.

    Raises
    ------
    FigureError: a part or a variable of the study that is not there.
    """
    part = str(dataset.attrs.get("part", "?"))
    if part == "weights":
        needed = ["update_norm", "weight_norm", "changed", "update_cosine", "entries"]
        require(dataset, needed, place="stages", study="stages")
        return Weights(dataset.drop_vars(TRAINED_WEIGHTS, errors="ignore").load())
    if part != "behaviour":
        raise FigureError(f"stages: part {part} is not known; is this a store of the stages study?")
    place = f"stages/{dataset.attrs.get('set', '?')}"
    arrays = ["behaviour"] if "attribution" not in dataset else ["behaviour", "removed", "residual"]
    require(dataset, [*arrays, "prompt_text"], place=place, study="stages")
    return Effects(dataset.load())
