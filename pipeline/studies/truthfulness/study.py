"""The study `truthfulness`: is truth a direction, and does one stage's direction read and steer another stage?

Each set is left out in turn: a direction is learned on the others, probes made of it judge the statements left out,
and the direction, added to or taken from the stream at two tokens, turns the model's own judgement, beside random
directions of the same norm. Sources: Marks & Tegmark 2024; Du et al. 2025, section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.plan import Work
from posttrace.pipeline.stages import SIZES, check_one_size, positions
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.truthfulness import analysis, interventions
from posttrace.pipeline.studies.truthfulness.arrays import set_group, shown_names, summary_group
from posttrace.pipeline.studies.truthfulness.inputs import prepare_set
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.pipeline.studies.truthfulness.units import GAPS, units, variants_of
from posttrace.pipeline.tensors import as_stored
from posttrace.tracers.cost import Cost, run_cost, shape_of
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.steered_answers import steered_cost
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, load_config, load_tokenizer, resolve_dtype


class Truthfulness:
    """A `truthfulness` job, prepared (see pipeline.plan.Study)."""

    gaps = GAPS

    def __init__(self, job: TruthfulnessJob):
        stages = {name: job.family.stages[name] for name in job.stage_names}
        configs = {name: load_config(s.model, s.revision) for name, s in stages.items()}
        check_one_size(job.family, configs, SIZES, "; choose stages of one size")
        first = next(iter(stages))
        self.n_layers, self.hidden_size = configs[first].num_hidden_layers, configs[first].hidden_size
        for key, layer in zip(("intervene_layer", "probe_layer"), job.layers_given, strict=True):
            if layer is not None and layer >= self.n_layers:
                raise JobError(
                    f"{key}: {layer} is not in 0-{self.n_layers - 1} ({job.family.name} has {self.n_layers} blocks); "
                    f"edit {key}"
                )
        self.shape = shape_of(empty_model(stages[first].model, stages[first].revision))
        self.dtype = resolve_dtype(
            job.dtype, job.execution.device, stages[first].model, stages[first].revision
        )
        self.job = job.model_copy(update={"dtype": str(self.dtype).removeprefix("torch.")})
        self.tokenizers = tokenizers = {
            name: load_tokenizer(s.model, s.revision) for name, s in stages.items()
        }
        room = positions(configs.values())
        self.sets = {spec.name: prepare_set(job, spec, tokenizers, room) for spec in job.sets}
        self.shown = {
            name: prepared.sample(job.samples, f"{job.seed}/{name}/samples")
            for name, prepared in self.sets.items()
        }
        self.content = {
            "models": {name: model_identity(s.model, s.revision) for name, s in stages.items()},
            "sets": {spec.name: file_hash(spec.csv) for spec in job.sets},
        }
        self.groups = (
            summary_group(self.job, self.sets, self.n_layers, self.hidden_size, self.swept),
            *(
                set_group(self.job, prepared, self.shown[name], self.n_layers, self.hidden_size)
                for name, prepared in self.sets.items()
            ),
        )
        tried = {name: math.prod(self._tried(name)) for name in self.sets}
        self.work = tuple(units(self.job, self.sets, self.shown, tried))

    @property
    def swept(self) -> bool:
        """Whether the first pushed block is chosen by trying interventions."""
        return self.job.layers_given[0] is None

    def _tried(self, held_out: str) -> tuple[int, int]:
        """Statements, and pushes of each (at most), of a sweep for the first block."""
        n = len(analysis.training_sets(self.sets, held_out)) * self.job.sweep_statements
        last = self.job.layers_given[1]
        return n, (self.n_layers if last is None else last + 1) * (1 + interventions.SWEEP_RANDOM)

    def run(self, work: Work, model, store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Do one unit (see pipeline.plan.Study)."""
        job, sets = self.job, self.sets
        kind, name = work.kind, work.about["set"]
        if kind == "read":
            begin, end = work.unit.region["statement"]
            return {"activation": self._read(model, work, sets[name].bare[work.open_stage][begin:end])}, {}
        if kind == "learn":
            return analysis.learn(job, sets, name, self.n_layers, store), {}
        if kind == "probe":
            return analysis.try_probes(job, sets, name, self.n_layers, store), {}
        if kind == "accuracy":
            return analysis.accuracies(sets[name], store), {}
        if kind == "effect":
            return analysis.effects(job, sets[name], store), {}
        if kind == "sweep":
            return interventions.choose_first_layer(job, sets, name, model, store, work.unit.id)
        if kind == "complete":
            shown, tokenizer = self.shown[name], self.tokenizers[work.open_stage]
            return interventions.completions(
                job, sets, name, work.open_stage, shown, model, store, tokenizer
            ), {}
        span = work.unit.region["statement"]
        return interventions.steered(job, sets, name, work.open_stage, span, model, store, work.unit.id)

    def _read(self, model, work, prompts) -> np.ndarray:
        """The last token's activations; dims 1 x statement x layer x hidden."""
        layers = self.job.read.layers_of(self.n_layers)
        read = self.job.read
        values = model.run(read_statements, prompts, site=read.site, layers=layers, tokens=read.tokens).values
        check_finite(work.unit.id, self.job.dtype, {"activation": values})
        return as_stored(values[:, :, 0])[None]

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit, at most; the sample of whole passes aside."""
        kind, name = work.kind, work.about["set"]
        if work.stage is None:
            return Cost()
        if kind == "read":
            begin, end = work.unit.region["statement"]
            return self._plain_cost(self.sets[name].bare[work.open_stage][begin:end])
        first = self.job.layers_given[0] or 0
        if kind == "sweep":
            n, variants = self._tried(name)
            training = analysis.training_sets(self.sets, name)
            some = [self.sets[one].asked[work.open_stage] for one in training]
            return self._pushed_cost([one for asked in some for one in asked if one][:n], variants, 0)
        if kind == "complete":
            asked = self.sets[name].asked[work.open_stage]
            prompts = [one.prompt for one in (asked[i] for i in self.shown[name]) if one]
            tokens = (
                sum(len(p.ids) for p in prompts) * len(shown_names(self.job)) * self.job.completion_tokens
            )
            one = run_cost(self.shape, [0], [tokens // max(1, len(prompts))])
            return Cost(work.cells * self.job.completion_tokens, one.multiply_adds)
        asked = self.sets[name].asked[work.open_stage][slice(*work.unit.region["statement"])]
        return self._pushed_cost([one for one in asked if one], variants_of(self.job) - 1, first)

    def _plain_cost(self, prompts) -> Cost:
        prefixes = [len(prefix) for prefix in {p.prefix for p in prompts}]
        return run_cost(self.shape, prefixes, [len(p.statement) for p in prompts])

    def _pushed_cost(self, asked, variants: int, first: int) -> Cost:
        if not asked:
            return Cost()
        prompts = [one.prompt for one in asked]
        keys = max(p.start for p in prompts) + max(len(p.statement) for p in prompts)
        width = max(-one.tokens[0] for one in asked)  # from the first pushed token to the end
        pushed = steered_cost(
            self.shape, len(prompts) * variants, width, keys, first, self.job.execution.max_tokens
        )
        return self._plain_cost(prompts) + pushed

    def summary(self) -> list[dict[str, Any]]:
        """A row per set: statements, tokens, cells, cost (see pipeline.plan.Study)."""
        rows = []
        for name, prepared in self.sets.items():
            work = [w for w in self.work if w.about["set"] == name]
            cost = sum(map(self.cost, work), Cost())
            lengths = [len(p.ids) for p in next(iter(prepared.bare.values()))]
            rows.append(
                {
                    "set": name,
                    "statements": f"{len(prepared.statements)} of {prepared.available}",
                    "true": sum(prepared.labels),
                    "tokens": f"{min(lengths)}-{max(lengths)}",
                    "layers": self.n_layers,
                    "cells": sum(w.cells for w in work if w.stage and w.kind != "read"),
                    "forwards": cost.forwards,
                    "multiply-adds": f"{cost.multiply_adds:.2e}",
                }
            )
        return rows
