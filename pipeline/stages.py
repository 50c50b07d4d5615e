"""The stages of a job, as far as they are known without their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch

from posttrace.pipeline.chat import end_tokens
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.tracers.cost import Shape, shape_of
from posttrace.tracers.models.architecture import Architecture, recognise
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import (
    check_weights,
    empty_model,
    load_config,
    load_tokenizer,
    resolve_dtype,
)

SIZES = ("num_hidden_layers", "hidden_size")
"""Sizes that stages must share, for activations and directions of one to fit the other."""


class Stages:
    """Configurations, tokenizers and empty modules of a job's stages, each read when it is first asked for.

    >>> stages = Stages(load_job("knowledge"))
    >>> stages.names, stages.n_layers, stages.hidden_size, stages.room
    (('base', 'sft', 'instruct'), 8, 160, 512)
    """

    def __init__(self, job: Job):
        self._job = job
        self.names = job.stages_read
        self.checkpoints = {name: job.family.stages[name] for name in self.names}

    def _each(self, read) -> dict[str, Any]:
        return {name: read(one.model, one.revision) for name, one in self.checkpoints.items()}

    @cached_property
    def configs(self) -> dict[str, Any]:
        """Stage -> its transformers configuration."""
        return self._each(load_config)

    @cached_property
    def tokenizers(self) -> dict[str, Any]:
        """Stage -> its own tokenizer."""
        return self._each(load_tokenizer)

    @cached_property
    def end_tokens(self) -> dict[str, tuple[int, ...]]:
        """Stage -> token ids that end an answer."""
        return {
            name: end_tokens(one.model, one.revision, self.tokenizers[name])
            for name, one in self.checkpoints.items()
        }

    @cached_property
    def structures(self) -> dict[str, Any]:
        """Stage -> its modules without weights."""
        return self._each(empty_model)

    @cached_property
    def identities(self) -> dict[str, Any]:
        """Stage -> what tells its checkpoint from every other."""
        return self._each(model_identity)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that models run in."""
        first = self.checkpoints[self.names[0]]
        return resolve_dtype(self._job.dtype, self._job.execution.device, first.model, first.revision)

    @cached_property
    def architectures(self) -> dict[str, Architecture]:
        """Stage -> where its parts are."""
        return {name: recognise(one) for name, one in self.structures.items()}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Stage -> what costs are counted from."""
        return {name: shape_of(one) for name, one in self.structures.items()}

    @property
    def shape(self) -> Shape:
        """The first stage's, for studies of stages of one size."""
        return self.shapes[self.names[0]]

    def check_weights(self) -> None:
        """Raise TracerError for a stage whose weights are missing, damaged or cannot be opened; reads headers only."""
        for one in self.checkpoints.values():
            check_weights(one.model, one.revision, self._job.execution.device)

    @property
    def n_layers(self) -> int:
        return self.configs[self.names[0]].num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.configs[self.names[0]].hidden_size

    @property
    def rooms(self) -> dict[str, int | None]:
        """Stage -> tokens that it has positions for; None where positions have no end."""
        return {
            name: getattr(config, "max_position_embeddings", None) for name, config in self.configs.items()
        }

    @property
    def room(self) -> int | None:
        """Tokens that every stage has positions for."""
        return min((room for room in self.rooms.values() if room), default=None)

    def sites(self, stage: str, *, patchable: bool = False) -> tuple[str, ...]:
        """Sites of a stage's architecture; with `patchable` only those that the patch grid takes."""
        architecture = self.architectures[stage]
        return architecture.patchable if patchable else architecture.sites

    def check_site(self, site: str, where: str, *, patchable: bool = False) -> None:
        """Raise JobError if some stage lacks a site; where: the key of the job that names it."""
        for name, checkpoint in self.checkpoints.items():
            available = self.sites(name, patchable=patchable)
            if site not in available:
                raise JobError(
                    f"{where}: {site} is no site of {checkpoint.model} ({type(self.structures[name]).__name__} has "
                    f"{', '.join(available)}); edit site"
                )

    def check_one_size(
        self, keys: Iterable[str] = SIZES, fix: str = "choose stages of one size", of: Mapping | None = None
    ) -> None:
        """Raise JobError unless all stages agree in every key of their configurations (or of `of`: stage -> object)."""
        for key in keys:
            sizes = {name: getattr(one, key) for name, one in (of or self.configs).items()}
            if len(set(sizes.values())) > 1:
                raise JobError(f"family {self._job.family.name}: the stages differ in {key} ({sizes}); {fix}")

    def check_layer(self, layer: int | None, key: str) -> None:
        """Raise JobError if a block that the job names is not there; key: where it stands in the job."""
        if layer is not None and layer >= self.n_layers:
            raise JobError(
                f"{key}: {layer} is not in 0-{self.n_layers - 1} ({self._job.family.name} has {self.n_layers} blocks); "
                f"edit {key.split('.')[0]}"
            )


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype as a job names it.

    >>> name_of(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")
