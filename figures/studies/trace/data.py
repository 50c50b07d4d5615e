"""Groups of the trace study as its tables need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrace.figures.errors import FigureError
from posttrace.figures.group import StageGroup, require

if TYPE_CHECKING:
    import xarray as xr

NEEDED = {
    "output": ("entropy", "logprob", "next_token", "next_token_id"),
    "completion": ("completion", "completion_id"),
    "lens": ("lens_logprob", "lens_token", "layer", "token_text"),
    "activation": ("activation", "layer", "token", "token_text"),
}
"""Kind of group -> what figures read of it; the first tells what is finished."""


@dataclass(frozen=True)
class TraceGroup(StageGroup):
    """One group of a `trace` store."""

    @property
    def name(self) -> str:
        """Which group: `output`, `completion`, `lens`, or `activation` (of a read or of source prompts)."""
        known = {"logprob": "output", "completion": "completion", "lens_logprob": "lens"}
        return next((name for array, name in known.items() if array in self.data), "activation")

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> TraceGroup:
        """Read a group.

        Raises
        ------
        FigureError
            An array or label that every group of its kind has is missing: another version wrote the store.
        """
        group = cls(dataset)
        needed = ["model", "intervention", "prompt_text", *NEEDED[group.name]]
        try:
            require(dataset, needed, place=f"trace/{group.name}", study="trace")
        except FigureError as fault:
            written = "draw it with the version of posttrace that wrote it, or run the job into a new store"
            raise FigureError(f"{fault} {written}") from None
        return group

    @property
    def any_finished(self) -> bool:
        """Whether there is something to draw."""
        return self._n_finished > 0

    @property
    def progress(self) -> str:
        """How much is done, in words."""
        return f"{self._n_finished} runs done"

    @property
    def _n_finished(self) -> int:
        if self.name == "completion":
            return int((self.data.completion_id[..., 0] >= 0).sum())
        first = NEEDED[self.name][0]
        cell = {dim: 0 for dim in self.data[first].dims if dim not in ("model", "intervention", "prompt")}
        return int(self.data[first].isel(cell).notnull().sum())
