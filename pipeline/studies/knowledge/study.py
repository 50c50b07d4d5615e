"""The study `knowledge`: where is knowledge stored, and does one stage understand another's representation?

For every pair of a true and a false statement, the true one is run through the *source* (clean run), the false
one through the *target* (corrupt run), and each activation of the clean run in turn replaces its counterpart
in the corrupt run. Source of the method: Meng et al. 2022; Du et al. 2025, section 3.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.plan import Work
from posttrace.pipeline.stages import SIZES, check_one_size, positions
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.knowledge.arrays import grid_arrays, knowledge_group
from posttrace.pipeline.studies.knowledge.inputs import PreparedSet, prepare_set
from posttrace.pipeline.studies.knowledge.job import KnowledgeJob
from posttrace.pipeline.tensors import as_stored, from_stored
from posttrace.stores import Unit
from posttrace.tracers.batching.memory import MAX_TOKENS
from posttrace.tracers.checked import checked_grid, estimated_grid
from posttrace.tracers.cost import Cost, cells_cost, run_cost, shape_of
from posttrace.tracers.engines.activations import one_pass, read_statements
from posttrace.tracers.engines.patching import first_block, grid_plan
from posttrace.tracers.models.architecture import recognise, site_shape
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, load_config, load_tokenizer, resolve_dtype
from posttrace.tracers.oracles.patching import checked_cells
from posttrace.tracers.prompts import Prompt


class Knowledge:
    """A `knowledge` job, prepared (see pipeline.plan.Study)."""

    gaps = frozenset({"activation", "logit_diff", "logit_diff_attribution"})
    """Statements are of unequal length, and `attribution` leaves exact values of most pairs out."""

    def __init__(self, job: KnowledgeJob):
        stages = {name: job.family.stages[name] for name in job.stage_names}
        configs = {name: load_config(s.model, s.revision) for name, s in stages.items()}
        first = next(iter(stages))
        sizes = (*SIZES, "num_attention_heads") if job.site == "z" else SIZES
        check_one_size(job.family, configs, sizes, "; patch within one size")
        self.heads, self.width = site_shape(configs[first], job.site)
        for stage in stages.values():
            structure = empty_model(stage.model, stage.revision)
            available = recognise(structure).patchable
            if job.site not in available:
                raise JobError(
                    f"site: {job.site} is no site of {stage.model} ({type(structure).__name__} has "
                    f"{', '.join(available)}); edit site"
                )
        self.shape = shape_of(structure)
        try:
            self.layers = job.patch_from(first).layers_of(configs[first].num_hidden_layers)
        except ValueError as error:
            raise JobError(f"{job.family.name}: {error}") from None
        self.dtype = resolve_dtype(
            job.dtype, job.execution.device, stages[first].model, stages[first].revision
        )
        self.job = job.model_copy(update={"dtype": _name(self.dtype)})
        tokenizers = {name: load_tokenizer(s.model, s.revision) for name, s in stages.items()}
        self.sets = {
            spec.name: prepare_set(job, spec, tokenizers, positions(configs.values())) for spec in job.sets
        }
        self._check_bytes()
        self.content = {
            "models": {name: model_identity(s.model, s.revision) for name, s in stages.items()},
            "sets": {spec.name: file_hash(spec.csv) for spec in job.sets},
        }
        self.groups = tuple(
            knowledge_group(self.job, prepared, self.layers, self.heads, self.width)
            for prepared in self.sets.values()
        )
        self.work = tuple(self._work())

    def _check_bytes(self) -> None:
        """On a server, whether a grid's request stays within its limit: other stages' activations go up with it."""
        stages, limit = self.job.stage_names, int(self.job.execution.remote.max_request_mb * 2**20)
        longest = max(max(prepared.lengths) for prepared in self.sets.values())
        of_pair = (
            (len(stages) - 1) * len(self.layers) * self.heads * longest * self.width * self.dtype.itemsize
        )
        pairs = min(self.job.pairs_per_unit, max(len(prepared.lengths) for prepared in self.sets.values()))
        if self.job.execution.backend == "remote" and pairs * of_pair > limit:
            fewer = limit // of_pair
            raise JobError(
                f"pairs_per_unit: the grid of {pairs} pairs sends {pairs * of_pair:,} bytes of the {len(stages) - 1} "
                f"other stages' activations, at most {limit:,} are sent; "
                + (f"set pairs_per_unit={fewer}, " if fewer else "")
                + "name fewer stages (with one, none are sent), or raise execution.remote.max_request_mb"
            )

    def _work(self):
        """Clean runs of every stage, then the grids, beginning with the stage whose model is still open."""
        stages = self.job.stage_names
        for i, stage in enumerate(stages):
            for prepared in self.sets.values():
                for begin, end in self._blocks(prepared):
                    yield Work(
                        unit=Unit(
                            id=f"{prepared.path}/clean/{stage}/{begin:04d}",
                            group=prepared.path,
                            region={"source": (i, i + 1), "pair": (begin, end)},
                            arrays=("activation", "logit_diff_clean"),
                        ),
                        kind="clean",
                        stage=stage,
                        cells=end - begin,
                    )
        for i, stage in reversed(list(enumerate(stages))):
            for prepared in self.sets.values():
                for begin, end in self._blocks(prepared):
                    yield Work(
                        unit=Unit(
                            id=f"{prepared.path}/grid/{stage}/{begin:04d}",
                            group=prepared.path,
                            region={"target": (i, i + 1), "pair": (begin, end)},
                            arrays=grid_arrays(self.job),
                        ),
                        kind="grid",
                        stage=stage,
                        cells=len(stages) * len(self.layers) * self.heads * sum(prepared.lengths[begin:end]),
                        needs=tuple(f"{prepared.path}/clean/{name}/{begin:04d}" for name in stages),
                    )

    def _blocks(self, prepared: PreparedSet):
        n = len(prepared.lengths)
        return [(b, min(b + self.job.pairs_per_unit, n)) for b in range(0, n, self.job.pairs_per_unit)]

    def run(self, work: Work, model, store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Do one unit with its stage's model open (see pipeline.plan.Study)."""
        prepared = self.sets[work.unit.group.removeprefix("knowledge/")]
        begin, end = work.unit.region["pair"]
        pairs = prepared.prompts[work.open_stage][begin:end]
        options: dict[str, Any] = dict(
            site=self.job.site, layers=self.layers, answers=prepared.answers[work.open_stage]
        )
        if work.kind == "grid":
            options["max_tokens"] = self.job.execution.max_tokens
            source = self._source(prepared, store, begin, end)
            if model.ships:
                # A model that is elsewhere runs its own clean prompts: only other stages' activations travel.
                own = self.job.stage_names.index(work.stage)
                source = source[[i for i in range(len(source)) if i != own]]
                options |= {"own": own, "clean": [clean for clean, _ in pairs]}
            arrays, checked = self._grid(work, model, prepared, pairs, source, options)
        else:
            arrays, checked = self._clean(work, model, prepared, [clean for clean, _ in pairs], options), {}
        return arrays, checked

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit (see pipeline.plan.Study)."""
        prepared = self.sets[work.unit.group.removeprefix("knowledge/")]
        begin, end = work.unit.region["pair"]
        pairs = prepared.prompts[work.open_stage][begin:end]
        prefixes = [len(prefix) for prefix in {clean.prefix for clean, _ in pairs}]
        lengths = [len(clean.statement) for clean, _ in pairs]
        if work.kind == "clean" and one_pass([clean for clean, _ in pairs]):
            return run_cost(self.shape, [0], [len(clean.ids) for clean, _ in pairs])
        total = run_cost(self.shape, prefixes, lengths)
        if work.kind == "clean":
            return total
        if self.job.method == "attribution":
            total += Cost(0, 2 * total.multiply_adds)  # a backward pass costs about two forward ones
            pairs = [pair for pair, wanted in zip(pairs, prepared.exact[begin:end], strict=True) if wanted]
        layers = [layer for layer in self.layers for _ in range(self.heads)]
        plan = grid_plan(
            [len(clean.statement) for clean, _ in pairs],
            self._unchanged(work, pairs),
            len(self.job.stage_names),
            self.job.site,
            layers,
            self.shape.n_layers,
            self.job.execution.max_tokens or MAX_TOKENS,
        )
        for packed, which in plan:
            starts = [first_block(layers[i], self.job.site) for i in which]
            total += cells_cost(self.shape, packed, starts, n_keys=max(prefixes) + max(lengths))
        if share := self.job.execution.check_share:
            n = checked_cells(len(self.job.stage_names) * len(layers) * sum(lengths), share)
            total += run_cost(self.shape, [0], n * [max(prefixes) + max(lengths)])
        return total

    def _unchanged(self, work: Work, pairs) -> list[list[int]]:
        """Per source and pair: leading statement tokens that source and target run have in common."""
        return [
            [_first_difference(*pair) if stage == work.stage else 0 for pair in pairs]
            for stage in self.job.stage_names
        ]

    def _clean(self, work, model, prepared, prompts, options):
        reading = model.run(read_statements, prompts, **options)
        for values, prompt in zip(reading.values, prompts, strict=True):
            self._check(work, "activation", values[:, : len(prompt.statement)])
        return {
            "activation": self._by_head(as_stored(_widened(reading.values, prepared.width)))[None],
            "logit_diff_clean": reading.logit_diff.numpy()[None],
        }

    def _grid(self, work, model, prepared, pairs, source, options):
        """With `method: attribution` estimates of all pairs, beside exact values of some."""
        if self.job.method == "exact":
            grid, record = self._exact_grid(work, model, prepared, pairs, source, options)
            return {
                "logit_diff": self._target(grid.patched),
                "logit_diff_corrupt": grid.unpatched.numpy()[None],
            }, record
        corrupt = [corrupt for _, corrupt in pairs]
        estimate = model.run(
            estimated_grid, corrupt, source, unchanged=self._unchanged(work, pairs), **options
        )
        self._check_grid(work, corrupt, estimate.patched)
        begin, end = work.unit.region["pair"]
        exact = [i for i, wanted in enumerate(prepared.exact[begin:end]) if wanted]
        patched, record = torch.full_like(estimate.patched, torch.nan), {}
        if exact:
            some = [pairs[i] for i in exact]
            options |= {"clean": [clean for clean, _ in some]} if "clean" in options else {}
            grid, record = self._exact_grid(work, model, prepared, some, source[:, exact], options)
            patched[:, exact] = grid.patched
        arrays = {
            "logit_diff_attribution": self._target(estimate.patched),
            "logit_diff": self._target(patched),
            "logit_diff_corrupt": estimate.unpatched.numpy()[None],
        }
        return arrays, record

    def _exact_grid(self, work, model, prepared, pairs, source, options):
        """The exact grid of some pairs, a share of its cells recomputed by whole forward passes."""
        corrupt = [corrupt for _, corrupt in pairs]
        checked = model.run(
            checked_grid,
            corrupt,
            source,
            unchanged=self._unchanged(work, pairs),
            share=self.job.execution.check_share,
            rng=random.Random(f"{self.job.seed}/{work.unit.id}"),
            **options,
        )
        self._check_grid(work, corrupt, checked.grid.patched)
        if not checked.checked_cells:
            return checked.grid, {}
        record = {"checked_cells": checked.checked_cells, "largest_difference": checked.largest_difference}
        return checked.grid, record

    def _check_grid(self, work, prompts: list[Prompt], patched: torch.Tensor) -> None:
        for row, prompt in enumerate(prompts):
            self._check(work, "logit_diff", patched[:, row, :, : len(prompt.statement)])

    def _check(self, work, name: str, values: torch.Tensor) -> None:
        check_finite(work.unit.id, self.job.dtype, {name: values})

    def _source(self, prepared, store, begin, end) -> torch.Tensor:
        """Clean activations of all stages; dims source x pair x layer x token x hidden."""
        values = store.read(prepared.path, "activation", {"pair": (begin, end)})
        places = len(self.layers) * self.heads
        return from_stored(values.reshape(*values.shape[:2], places, *values.shape[-2:]), self.job.dtype)

    def _target(self, patched: torch.Tensor) -> np.ndarray:
        """As stored: dims source x target (this one) x pair x layer (x head) x token."""
        return np.stack([self._by_head(one) for one in patched.numpy()])[:, None]

    def _by_head(self, values: np.ndarray) -> np.ndarray:
        """Dims pair x place x ... as they are stored: pair x layer x ..., at `z` pair x layer x head x ..."""
        if self.job.site != "z":
            return values
        return values.reshape(len(values), len(self.layers), self.heads, *values.shape[2:])

    def summary(self) -> list[dict[str, Any]]:
        """A row per set: pairs, tokens, cells, cost (see pipeline.plan.Study)."""
        rows = []
        for prepared in self.sets.values():
            work = [w for w in self.work if w.unit.group == prepared.path]
            cost = sum(map(self.cost, work), Cost())
            shortest, longest = min(prepared.lengths), max(prepared.lengths)
            n_values = (
                len(self.job.stage_names)
                * len(prepared.lengths)
                * len(self.layers)
                * self.heads
                * longest
                * self.width
            )
            rows.append(
                {
                    "set": prepared.spec.name,
                    "pairs": f"{len(prepared.lengths)} of {prepared.aligned.available}",
                    "tokens": f"{shortest}-{longest}" if shortest < longest else str(longest),
                    "roles": _roles(prepared),
                    "layers": len(self.layers),
                    "cells": sum(w.cells for w in work if w.kind == "grid"),
                    "forwards": cost.forwards,
                    "multiply-adds": f"{cost.multiply_adds:.2e}",
                    "activation bytes": n_values * self.dtype.itemsize,
                }
            )
        return rows


def _roles(prepared: PreparedSet) -> str:
    """How many token columns the subject and the object have."""
    counts = Counter(prepared.aligned.roles)
    return (
        "free" if prepared.spec.pairs == "free" else f"{counts['subject']} subject, {counts['object']} object"
    )


def _first_difference(clean: Prompt, corrupt: Prompt) -> int:
    """Leading statement tokens that a pair has in common: within one model, so are their activations."""
    return next(i for i, (a, b) in enumerate(zip(clean.statement, corrupt.statement, strict=True)) if a != b)


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    """Pad the token axis (the third) with NaN up to the set's width."""
    prompts, layers, tokens, hidden = values.shape
    return torch.cat([values, values.new_full((prompts, layers, width - tokens, hidden), torch.nan)], dim=2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
