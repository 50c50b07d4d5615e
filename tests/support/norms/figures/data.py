"""Groups of the study `norms` as its figures need them."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from posttrace.figures.group import names_of, require


@dataclass(frozen=True)
class NormsData:
    """One set."""

    name: str
    stages: tuple[str, ...]
    norm: np.ndarray
    gap: np.ndarray
    """Dims model x layer; `norm` has model x statement x layer, NaN where nothing was read yet."""

    @classmethod
    def from_dataset(cls, data: xr.Dataset) -> "NormsData":
        require(data, ["norm", "gap"], place=str(data.attrs.get("set")), study="norms")
        return cls(data.attrs["set"], names_of(data, "model"), data.norm.values, data.gap.values)

    @property
    def any_finished(self) -> bool:
        return bool(np.isfinite(self.norm).any())

    @property
    def progress(self) -> str:
        return f"{int(np.isfinite(self.norm).any(axis=2).sum())} of {self.norm[..., 0].size} statements read"
