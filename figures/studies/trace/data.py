"""Groups of the trace study as its tables need them."""

from __future__ import annotations

from dataclasses import dataclass

from posttrace.figures.group import StageGroup


@dataclass(frozen=True)
class TraceGroup(StageGroup):
    """One group of a `trace` store."""

    @property
    def name(self) -> str:
        """Which group: `output`, `completion`, or `activation` (of a read or of source prompts)."""
        known = {"logprob": "output", "completion": "completion"}
        return next((name for array, name in known.items() if array in self.data), "activation")

    @property
    def any_finished(self) -> bool:
        """Whether there is something to draw; activations are not drawn."""
        return self._n_finished > 0

    @property
    def progress(self) -> str:
        """How much is done, in words."""
        return f"{self._n_finished} runs done"

    @property
    def _n_finished(self) -> int:
        if self.name == "activation":
            return 0
        if self.name == "output":
            return int(self.data.entropy.notnull().sum())
        return int((self.data.completion_id[..., 0] >= 0).sum())
