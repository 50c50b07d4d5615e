"""The study `truthfulness`: whether truth is a direction that reads and steers other stages, too.

Each set is left out in turn: a direction is learned on the others, probes made of it judge the statements left out,
and the direction, added to or taken from the stream at two tokens, turns the model's own judgement, next to random
directions of the same norm. Sources: Marks & Tegmark 2024; Du et al. 2025, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.spot_checks import check_cost
from posttrace.pipeline.studies.truthfulness import analysis, interventions
from posttrace.pipeline.studies.truthfulness.arrays import set_group, shown_names, summary_group
from posttrace.pipeline.studies.truthfulness.inputs import TruthfulnessInputs, read_inputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.pipeline.studies.truthfulness.units import GAPS, layer_blocks, planned, variants_of
from posttrace.pipeline.study import Result, Study, Work
from posttrace.pipeline.tensors import as_stored
from posttrace.stores import Group
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.steered_answers import steered_cost

PASSES = 200
"""Passes over the activations that fits are expected to take, for the estimate of cost."""


class Truthfulness(Study[TruthfulnessJob, TruthfulnessInputs]):
    """A `truthfulness` job, planned."""

    gaps = GAPS

    def check(self, job: TruthfulnessJob) -> None:
        self.stages.check_one_size()
        for key, layer in zip(("intervene_layer", "probe_layer"), job.layers_given, strict=True):
            self.stages.check_layer(layer, key)

    def read_inputs(self) -> TruthfulnessInputs:
        return read_inputs(self.job, self.stages.tokenizers, self.stages.room)

    def arrays(self) -> Iterator[Group]:
        n_layers, hidden_size = self.stages.n_layers, self.stages.hidden_size
        begin, end = layer_blocks(self.inputs.sets, (n_layers, hidden_size))[0]
        yield summary_group(self.job, self.inputs.sets, n_layers, hidden_size, self.swept, end - begin)
        for name, one in self.inputs.sets.items():
            yield set_group(self.job, one, self.inputs.shown[name], n_layers, hidden_size)

    def units(self) -> Iterator[Work]:
        tried = {name: math.prod(self._tried(name)) for name in self.inputs.sets}
        shape = self.stages.n_layers, self.stages.hidden_size
        return planned(self.job, self.inputs.sets, self.inputs.shown, tried, shape)

    @property
    def swept(self) -> bool:
        """Whether the first steered block is chosen by trying interventions."""
        return self.job.layers_given[0] is None

    def _tried(self, held_out: str) -> tuple[int, int]:
        """Statements, and steered runs of each (at most), of a sweep for the first block."""
        n = len(analysis.training_sets(self.inputs.sets, held_out)) * self.job.sweep_statements
        last = self.job.layers_given[1]
        return n, (self.stages.n_layers if last is None else last + 1) * (1 + interventions.SWEEP_RANDOM)

    def run_read(self, work: Work, model, store) -> Result:
        """Compute the last token's activations; dims 1 x statement x layer x hidden."""
        prompts = self.inputs.sets[work.about["set"]].bare[work.open_stage][
            slice(*work.unit.region["statement"])
        ]
        read, layers = self.job.read, self.job.read.layers_of(self.stages.n_layers)
        values = model.run(read_statements, prompts, site=read.site, layers=layers, tokens=read.tokens).values
        check_finite(work.unit.id, self.job.dtype, {"activation": values})
        return {"activation": as_stored(values[:, :, 0])[None]}, {}

    def run_fit(self, work: Work, model, store) -> Result:
        region = work.unit.region
        return analysis.fit_layers(self.job, self.inputs.sets, region["model"][0], region["layer"], store), {}

    def run_learn(self, work: Work, model, store) -> Result:
        return analysis.learn(self.job, self.inputs.sets, work.about["set"], store), {}

    def run_probe(self, work: Work, model, store) -> Result:
        return analysis.try_probes(
            self.job, self.inputs.sets, work.about["set"], self.stages.n_layers, store
        ), {}

    def run_accuracy(self, work: Work, model, store) -> Result:
        return analysis.accuracies(self.inputs.sets[work.about["set"]], store), {}

    def run_effect(self, work: Work, model, store) -> Result:
        return analysis.effects(self.job, self.inputs.sets[work.about["set"]], store), {}

    def run_sweep(self, work: Work, model, store) -> Result:
        sets, name = self.inputs.sets, work.about["set"]
        return interventions.choose_first_layer(self.job, sets, name, model, store, work.unit.id)

    def run_steer(self, work: Work, model, store) -> Result:
        sets, name, span = self.inputs.sets, work.about["set"], work.unit.region["statement"]
        return interventions.steered(self.job, sets, name, work.open_stage, span, model, store, work.unit.id)

    def run_complete(self, work: Work, model, store) -> Result:
        sets, name, stage = self.inputs.sets, work.about["set"], work.open_stage
        shown, tokenizer = self.inputs.shown[name], self.stages.tokenizers[stage]
        return interventions.completions(self.job, sets, name, stage, shown, model, store, tokenizer), {}

    def reads(self, work: Work) -> int:
        """Count a block of layers for fits, a set of one stage for probes; others hold a few vectors."""
        statements = {"fit": work.cells, "probe": work.cells * self.stages.n_layers}.get(work.kind, 0)
        return 2 * 4 * statements * self.stages.hidden_size

    def cost(self, work: Work) -> Cost:
        """At most."""
        kind, name = work.kind, work.about["set"]
        if kind == "fit":
            return Cost(0, work.cells * self.stages.hidden_size * len(self.inputs.sets) * PASSES)
        if kind == "probe":
            pairs = len(self.stages.names) ** 2 * len(self.job.probes)
            return Cost(0, work.cells * self.stages.n_layers * self.stages.hidden_size * pairs)
        if work.stage is None:
            return Cost()
        if kind == "read":
            begin, end = work.unit.region["statement"]
            return self._plain_cost(self.inputs.sets[name].bare[work.open_stage][begin:end])
        first = self.job.layers_given[0] or 0
        if kind == "sweep":
            n, variants = self._tried(name)
            training = analysis.training_sets(self.inputs.sets, name)
            some = [self.inputs.sets[one].asked[work.open_stage] for one in training]
            return self._steered_cost([one for asked in some for one in asked if one][:n], variants, 0)
        if kind == "complete":
            asked = self.inputs.sets[name].asked[work.open_stage]
            prompts = [one.prompt for one in (asked[i] for i in self.inputs.shown[name]) if one]
            tokens = (
                sum(len(p.ids) for p in prompts) * len(shown_names(self.job)) * self.job.completion_tokens
            )
            one = run_cost(self.stages.shape, [0], [tokens // max(1, len(prompts))])
            return Cost(work.cells * self.job.completion_tokens, one.multiply_adds)
        asked = self.inputs.sets[name].asked[work.open_stage][slice(*work.unit.region["statement"])]
        return self._steered_cost([one for one in asked if one], variants_of(self.job) - 1, first)

    def _plain_cost(self, prompts) -> Cost:
        prefixes = [len(prefix) for prefix in {p.prefix for p in prompts}]
        return run_cost(self.stages.shape, prefixes, [len(p.statement) for p in prompts])

    def _steered_cost(self, asked, variants: int, first: int) -> Cost:
        if not asked:
            return Cost()
        prompts = [one.prompt for one in asked]
        keys = max(p.start for p in prompts) + max(len(p.statement) for p in prompts)
        width = max(-one.tokens[0] for one in asked)  # from the first steered token to the end
        steered = steered_cost(
            self.stages.shape,
            rows=len(prompts) * variants,
            width=width,
            n_keys=keys,
            first=first,
            max_tokens=self.job.execution.max_tokens,
        )
        checks = check_cost(
            self.job, self.stages.shape, len(prompts) * variants, max(len(p.ids) for p in prompts)
        )
        return self._plain_cost(prompts) + steered + checks

    def parts(self) -> Iterator[tuple[dict[str, Any], list[Work]]]:
        for name, one in self.inputs.sets.items():
            work = [w for w in self.work if w.about["set"] == name]
            lengths = [len(p.ids) for p in next(iter(one.bare.values()))]
            yield (
                {
                    "set": name,
                    "statements": f"{len(one.statements)} of {one.available}",
                    "true": sum(one.labels),
                    "tokens": f"{min(lengths)}-{max(lengths)}",
                    "layers": self.stages.n_layers,
                    "cells": sum(w.cells for w in work if w.stage and w.kind != "read"),
                },
                work,
            )
        fits = [w for w in self.work if w.kind == "fit"]
        yield (
            {"set": "probes of all", "layers": self.stages.n_layers, "cells": sum(w.cells for w in fits)},
            fits,
        )
