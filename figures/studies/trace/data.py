"""Groups of the trace study as its tables need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class TraceGroup:
    """One group of a `trace` store."""

    data: xr.Dataset

    @property
    def name(self) -> str:
        """Which group: `output`, `completion`, or `activation` of a read or of source prompts."""
        known = {"logprob": "output", "completion": "completion"}
        return next((name for array, name in known.items() if array in self.data), "activation")

    @property
    def any_finished(self) -> bool:
        """Whether it has something to draw; activations are not drawn."""
        return self._n_finished > 0

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        return f"{self._n_finished} runs done"

    @property
    def _n_finished(self) -> int:
        if self.name == "activation":
            return 0
        done = self.data.entropy.notnull() if self.name == "output" else self.data.completion != ""
        return int(done.sum())
