"""The study `knowledge`: where knowledge is stored, and whether one stage understands another's representation.

For every pair of a true and a false statement, the true one is run through the *source* (clean run), the false
one through the *target* (corrupt run), and each activation of the clean run in turn replaces its counterpart
in the corrupt run. Source of the method: Meng et al. 2022; Du et al. 2025, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.spot_checks import checked, drawn_for
from posttrace.pipeline.stages import SIZES
from posttrace.pipeline.studies.knowledge.arrays import knowledge_group
from posttrace.pipeline.studies.knowledge.inputs import PairSet, read_pairs
from posttrace.pipeline.studies.knowledge.job import KnowledgeJob
from posttrace.pipeline.studies.knowledge.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.pipeline.tensors import as_stored, from_stored, widened
from posttrace.stores import Group
from posttrace.tracers.batching.memory import MAX_TOKENS
from posttrace.tracers.checked import checked_grid, estimated_grid
from posttrace.tracers.cost import Cost, cells_cost, run_cost
from posttrace.tracers.engines.activations import one_pass, read_statements
from posttrace.tracers.engines.patching import first_block, grid_plan, whole_plan
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.oracles.compare import sample_size
from posttrace.tracers.prompts import Prompt


class Knowledge(Study[KnowledgeJob, dict[str, PairSet]]):
    """A `knowledge` job, planned; `inputs` has its sets by name."""

    gaps = frozenset({"activation", "logit_diff", "logit_diff_attribution"})
    """Statements are of unequal length, and `attribution` leaves exact values of most pairs out."""

    def check(self, job: KnowledgeJob) -> None:
        by_head = ("num_attention_heads",) if job.site == "z" else ()
        self.stages.check_one_size((*SIZES, *by_head), "patch within one size")
        self.stages.check_site(job.site, "site", patchable=True)
        first = self.stages.names[0]
        self.heads, self.width = site_shape(self.stages.configs[first], job.site)
        try:
            self.layers = job.patch_from(first).layers_of(self.stages.n_layers)
        except ValueError as error:
            raise JobError(f"{job.family.name}: {error}") from None

    def read_inputs(self) -> dict[str, PairSet]:
        tokenizers, room = self.stages.tokenizers, self.stages.room
        sets = {spec.name: read_pairs(self.job, spec, tokenizers, room) for spec in self.job.sets}
        self._check_bytes(sets)
        return sets

    def arrays(self) -> Iterator[Group]:
        for pairs in self.inputs.values():
            yield knowledge_group(self.job, pairs, self.layers, self.heads, self.width)

    def units(self) -> Iterator[Work]:
        return planned(self.job, self.inputs, len(self.layers) * self.heads)

    def _check_bytes(self, sets: dict[str, PairSet]) -> None:
        """On a server, whether a grid's request stays within its limit: other stages' activations go up with it."""
        execution, others = self.job.execution, len(self.stages.names) - 1
        limit = int(execution.remote.max_request_mb * 2**20)
        longest = max(max(pairs.lengths) for pairs in sets.values())
        of_pair = others * len(self.layers) * self.heads * longest * self.width * self.stages.dtype.itemsize
        n = min(self.job.pairs_per_unit, max(len(pairs.lengths) for pairs in sets.values()))
        if execution.backend == "remote" and n * of_pair > limit:
            fewer = limit // of_pair
            raise JobError(
                f"pairs_per_unit: the grid of {n} pairs sends {n * of_pair:,} bytes of the {others} other stages' "
                f"activations, at most {limit:,} are sent; "
                + (f"set pairs_per_unit={fewer}, " if fewer else "")
                + "name fewer stages (with one, none are sent), or raise execution.remote.max_request_mb"
            )

    def _pairs(self, work: Work) -> tuple[PairSet, list[tuple[Prompt, Prompt]]]:
        """Return the set of a unit, and the prompts of its pairs."""
        pairs = self.inputs[work.about["set"]]
        return pairs, pairs.prompts[work.open_stage][slice(*work.unit.region["pair"])]

    def _options(self, work: Work, pairs: PairSet) -> dict[str, Any]:
        return dict(site=self.job.site, layers=self.layers, answers=pairs.answers[work.open_stage])

    def run_clean(self, work: Work, model, store) -> Result:
        """Activations of the clean runs, and what they answer."""
        pairs, prompts = self._pairs(work)
        clean = [clean for clean, _ in prompts]
        reading = model.run(read_statements, clean, **self._options(work, pairs))
        for values, prompt in zip(reading.values, clean, strict=True):
            self._check(work, "activation", values[:, : len(prompt.statement)])
        return {
            "activation": self._by_head(as_stored(widened(reading.values, 2, pairs.width)))[None],
            "logit_diff_clean": reading.logit_diff.numpy()[None],
        }, {}

    def run_grid(self, work: Work, model, store) -> Result:
        """Compute every source's patch grid; `method: attribution` estimates all pairs and computes some exactly."""
        pairs, prompts = self._pairs(work)
        options = {**self._options(work, pairs), "max_tokens": self.job.execution.max_tokens}
        source = self._source(pairs, store, work.unit.region["pair"])
        if model.ships:
            # A model that is elsewhere runs its own clean prompts: only other stages' activations travel.
            own = self.job.stage_names.index(work.open_stage)
            source = source[[i for i in range(len(source)) if i != own]]
            options |= {"own": own, "clean": [clean for clean, _ in prompts]}
        if self.job.method == "exact":
            grid, record = self._exact_grid(work, model, prompts, source, options)
            return {
                "logit_diff": self._target(grid.patched),
                "logit_diff_corrupt": grid.unpatched.numpy()[None],
            }, record
        corrupt = [corrupt for _, corrupt in prompts]
        unchanged = self._unchanged(work, prompts)
        estimate = model.run(estimated_grid, corrupt, source, unchanged=unchanged, **options)
        self._check_grid(work, corrupt, estimate.patched)
        exact = [i for i, wanted in enumerate(pairs.exact[slice(*work.unit.region["pair"])]) if wanted]
        patched, record = torch.full_like(estimate.patched, torch.nan), {}
        if exact:
            some = [prompts[i] for i in exact]
            options |= {"clean": [clean for clean, _ in some]} if "clean" in options else {}
            grid, record = self._exact_grid(work, model, some, source[:, exact], options)
            patched[:, exact] = grid.patched
        return {
            "logit_diff_attribution": self._target(estimate.patched),
            "logit_diff": self._target(patched),
            "logit_diff_corrupt": estimate.unpatched.numpy()[None],
        }, record

    def cost(self, work: Work) -> Cost:
        pairs, prompts = self._pairs(work)
        clean = [clean for clean, _ in prompts]
        prefixes = [len(prefix) for prefix in {one.prefix for one in clean}]
        lengths = [len(one.statement) for one in clean]
        if work.kind == "clean" and (self.stages.shape.whole or one_pass(clean)):
            return run_cost(self.stages.shape, [0], [len(one.ids) for one in clean])
        total = run_cost(self.stages.shape, prefixes, lengths)
        if work.kind == "clean":
            return total
        if self.job.method == "attribution":
            total += Cost(0, 2 * total.multiply_adds)  # a backward pass costs about two forward ones
            exact = pairs.exact[slice(*work.unit.region["pair"])]
            prompts = [pair for pair, wanted in zip(prompts, exact, strict=True) if wanted]
        layers = [layer for layer in self.layers for _ in range(self.heads)]
        statements = [len(one.statement) for one, _ in prompts]
        options: dict[str, Any] = dict(
            unchanged=self._unchanged(work, prompts),
            n_sources=len(self.job.stage_names),
            site=self.job.site,
            layers=layers,
            n_layers=self.stages.shape.n_layers,
            max_tokens=self.job.execution.max_tokens or MAX_TOKENS,
        )
        if self.stages.shape.whole:
            sizes = [len(one.ids) for one, _ in prompts]
            for batch in whole_plan(statements, sizes, **options):
                total += run_cost(self.stages.shape, [0], [sizes[prompt] for _, _, prompt, _ in batch])
        else:
            for packed, which in grid_plan(statements, **options):
                starts = [first_block(layers[i], self.job.site) for i in which]
                total += cells_cost(self.stages.shape, packed, starts, n_keys=max(prefixes) + max(lengths))
        if share := self.job.execution.check_share:
            n = sample_size(len(self.job.stage_names) * len(layers) * sum(statements), share)
            total += run_cost(self.stages.shape, [0], n * [max(prefixes) + max(lengths)])
        return total

    def _unchanged(self, work: Work, pairs) -> list[list[int]]:
        """Per source and pair: leading statement tokens that source and target run have in common."""
        return [
            [_first_difference(*pair) if stage == work.stage else 0 for pair in pairs]
            for stage in self.job.stage_names
        ]

    def _exact_grid(self, work, model, pairs, source, options):
        """Return the exact grid of some pairs, a share of its cells recomputed by whole forward passes."""
        corrupt = [corrupt for _, corrupt in pairs]
        found = model.run(
            checked_grid,
            corrupt,
            source,
            unchanged=self._unchanged(work, pairs),
            **drawn_for(self.job, work.unit.id),
            **options,
        )
        self._check_grid(work, corrupt, found.grid.patched)
        return found.grid, checked(found.checked_cells, found.largest_difference)

    def _check_grid(self, work, prompts: list[Prompt], patched: torch.Tensor) -> None:
        for row, prompt in enumerate(prompts):
            self._check(work, "logit_diff", patched[:, row, :, : len(prompt.statement)])

    def _check(self, work, name: str, values: torch.Tensor) -> None:
        check_finite(work.unit.id, self.job.dtype, {name: values})

    def _source(self, pairs, store, block) -> torch.Tensor:
        """Clean activations of all stages; dims source x pair x layer x token x hidden."""
        values = store.read(pairs.path, "activation", {"pair": block})
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

    def notes(self) -> Iterator[str]:
        yield from super().notes()
        for name, pairs in self.inputs.items():
            if n := pairs.aligned.unequal:
                yield f"set {name}: pairs left out, as their two statements have unequal numbers of tokens: {n}"

    def facts(self, group: Group) -> dict[str, Any]:
        pairs = self.inputs[group.attrs["set"]]
        shortest, longest = min(pairs.lengths), max(pairs.lengths)
        grid = [w for w in self.work if w.unit.group == group.path and w.kind == "grid"]
        return {
            "set": pairs.spec.name,
            "pairs": f"{len(pairs.lengths)} of {pairs.aligned.available}",
            "tokens": f"{shortest}-{longest}" if shortest < longest else str(longest),
            "roles": _roles(pairs),
            "layers": len(self.layers),
            "cells": sum(w.cells for w in grid),
        }


def _roles(pairs: PairSet) -> str:
    """How many token columns the subject and the object have."""
    counts = Counter(pairs.aligned.roles)
    return "free" if pairs.spec.pairs == "free" else f"{counts['subject']} subject, {counts['object']} object"


def _first_difference(clean: Prompt, corrupt: Prompt) -> int:
    """Leading statement tokens that a pair has in common: within one model, so are their activations."""
    return next(i for i, (a, b) in enumerate(zip(clean.statement, corrupt.statement, strict=True)) if a != b)
