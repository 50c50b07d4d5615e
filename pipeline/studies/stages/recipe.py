"""How the later stages of a family were trained, for jobs that train them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from posttrace.pipeline.embedded import STAGES, train
from posttrace.pipeline.embedded.replay import Trained, load_forward_mode
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.studies.stages.job import StagesJob
from posttrace.tracers.operations import canonical_hash


class Recipe:
    """The embedded family's.

    Raises JobError for any other family: nobody knows here how its later stages were trained.
    """

    def __init__(self, job: StagesJob):
        models = {stage: Path(job.family.stages[stage].model) for stage in job.stage_names}
        folder = next(iter(models.values())).parent
        self.trained = Trained(folder, STAGES[: len(models)])
        try:
            if list(models.items()) != [(stage, folder / stage) for stage in self.trained.stages]:
                raise ValueError(
                    f"its stages are not {', '.join(self.trained.stages)}, of one folder and in this order"
                )
            seed = self.trained.seed
        except ValueError as error:
            raise JobError(
                f"recipe: family {job.family.name} was not trained by posttrace.pipeline.embedded.train ({error}). "
                f"What it would be without {' or '.join(job.stage_names[1:-1])} is unknown, as only training the later "
                "stages again shows it: take recipe out, and show effects and removed updates"
            ) from None
        load_forward_mode()
        recipes = {stage: asdict(train.RECIPES[stage]) for stage in self.trained.stages[2:]}
        self.identity = canonical_hash({"seed": seed, "recipes": recipes})

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """Later stage -> tokens of every row that it is trained on."""
        return {
            stage: [len(row) for step in self.trained.batches(stage) for batch in step for row in batch.ids]
            for stage in self.trained.stages[2:]
        }

    def after(self, stage: str) -> tuple[str, ...]:
        """Return the stages that come after one."""
        return self.trained.stages[self.trained.stages.index(stage) + 1 :]


def flat(weights: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return all entries in the order of the parameters.

    >>> flat({"a": torch.ones(2, 1), "b": torch.zeros(1)})
    array([1., 1., 0.], dtype=float32)
    """
    return torch.cat([one.flatten() for one in weights.values()]).numpy()


def unflat(entries: np.ndarray, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `flat`, on the devices of the parameters."""
    parts = torch.from_numpy(entries).split([one.numel() for one in parameters.values()])
    pairs = zip(parameters.items(), parts, strict=True)
    return {name: part.view(one.shape).to(one.device) for (name, one), part in pairs}
