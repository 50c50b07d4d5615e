"""The study `refusal`: whether refusing is one direction in the stream, and the same one in every stage.

The difference of the mean streams of harmful and harmless prompts, at the input of a block and one of the template's
last tokens, is ablated everywhere or added in one block while the stages answer. Source of the method: Arditi et al.
2024; Du et al. 2025, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import SAME, check_finite
from posttrace.pipeline.spot_checks import checked, combined, drawn_for
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.refusal.arrays import (
    PATH,
    SELECTED,
    SWEEP,
    direction_names,
    refusal_group,
)
from posttrace.pipeline.studies.refusal.costs import unit_cost
from posttrace.pipeline.studies.refusal.inputs import KINDS, SPLIT_NAMES, RefusalInputs, read_inputs
from posttrace.pipeline.studies.refusal.job import RANDOM, RefusalJob
from posttrace.pipeline.studies.refusal.scores import matched_phrase, repeated_share
from posttrace.pipeline.studies.refusal.selection import choose_coefficient, choose_direction
from posttrace.pipeline.studies.refusal.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.stores import Group
from posttrace.tracers.checked import scored_completions
from posttrace.tracers.cost import Cost
from posttrace.tracers.engines.directions import direction_effects, mean_streams
from posttrace.tracers.engines.edits import edit_of
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.reasoning import answer_starts
from posttrace.tracers.engines.steering import ablation


class Refusal(Study[RefusalJob, RefusalInputs]):
    """A `refusal` job, planned."""

    gaps = frozenset({"direction", *SWEEP, "mean_nll", "search_mean_nll"})
    """No value where prompts do not differ, where nothing is swept, and of an answer of one token."""

    def check(self, job: RefusalJob) -> None:
        self.stages.check_one_size(fix="a direction fits one size only")

    def resolved(self, job: RefusalJob) -> dict[str, Any]:
        return {**super().resolved(job), "selected": job.choices}

    def read_inputs(self) -> RefusalInputs:
        return read_inputs(self.job, self.stages)

    def chats(self) -> list[str]:
        return [name for name, prompts in self.inputs.prompts.items() if prompts.template == "chat"]

    def input_content(self) -> dict[str, Any]:
        splits = self.inputs.splits.items()
        return {
            "instructions": {kind: [list(getattr(s, n)) for n in SPLIT_NAMES] for kind, s in splits},
            "prompts": self.inputs.probes,
            "phrases": list(self.inputs.phrases),
            "openings": file_hash(self.job.openings),
            "reasoning": self.inputs.may_reason,
        }

    def arrays(self) -> Iterator[Group]:
        yield refusal_group(self.job, self.inputs, self.stages.n_layers, self.stages.hidden_size)

    def units(self) -> Iterator[Work]:
        n_positions = len(self.inputs.positions)
        return planned(
            self.job, self.inputs.splits, self.stages.n_layers, n_positions, self.inputs.may_reason
        )

    def run_directions(self, work: Work, model, store) -> Result:
        """Compute a stage's directions at every block and position, and its log-odds without steering."""
        stage = work.about["subject"]
        prompts, read = self.inputs.prompts[stage], self.job.read_at(self.inputs.positions)
        means = [
            model.run(mean_streams, prompts.ids[kind, "direction"], read, self.job.execution.max_tokens)
            for kind in KINDS
        ]
        difference = means[0] - means[1]
        distance = difference.norm(dim=-1, keepdim=True)
        check_finite(work.unit.id, self.job.dtype, {"direction": difference})
        plain = [self._log_odds(model, stage, kind) for kind in KINDS]
        # Block 0 sees the same at a token of the template, whatever the instruction: there is no direction.
        distance = torch.where(distance > SAME * means[0].norm(dim=-1, keepdim=True), distance, 0.0)
        unit_vectors = torch.where(distance > 0, difference / distance, torch.nan)
        return {
            "direction": unit_vectors.numpy()[None],
            "class_distance": distance[..., 0].numpy()[None],
            **{f"plain_{kind}": odds.numpy()[None] for kind, odds in zip(KINDS, plain, strict=True)},
        }, {}

    def _asked(self, model, stage, kind) -> list[tuple[int, ...]]:
        """Return the validation prompts, up to where an answer begins."""
        prompts = self.inputs.prompts[stage]
        ids = prompts.ids[kind, "validation"]
        if prompts.reasoning is None:
            return ids
        return model.run(answer_starts, ids, prompts.reasoning, self.job.execution.max_tokens)

    def _log_odds(self, model, stage, kind):
        prompts = self.inputs.prompts[stage]
        return model.run(
            generate,
            self._asked(model, stage, kind),
            [],
            prompts.openings,
            max_new_tokens=1,
            max_tokens=self.job.execution.max_tokens,
        ).log_odds

    def run_sweep(self, work: Work, model, store) -> Result:
        """Compute what every position's direction of one block does to the validation prompts."""
        stage = work.about["subject"]
        prompts, region = self.inputs.prompts[stage], work.unit.region
        layer = region["layer"][0]
        vectors = torch.from_numpy(store.read(PATH, "direction", region)[0, 0].copy())
        distance = store.read(PATH, "class_distance", region)[0, 0]
        usable = [
            i
            for i, position in enumerate(self.inputs.positions)
            if -position <= prompts.tail and distance[i] > 0 and vectors[i].isfinite().all()
        ]
        n = {kind: len(prompts.ids[kind, "validation"]) for kind in KINDS}
        found = {
            "bypass": np.full((len(self.inputs.positions), n["harmful"]), np.nan, "float32"),
            "induce": np.full((len(self.inputs.positions), n["harmless"]), np.nan, "float32"),
            "kl": np.full((len(self.inputs.positions), n["harmless"]), np.nan, "float32"),
        }
        if usable:
            effects = model.run(
                direction_effects,
                *(self._asked(model, stage, kind) for kind in KINDS),
                layer=layer,
                directions=vectors[usable],
                coefficients=[float(distance[i]) for i in usable],
                openings=prompts.openings,
                max_tokens=self.job.execution.max_tokens,
            )
            for name, values in found.items():
                values[usable] = getattr(effects, name).numpy()
                check_finite(work.unit.id, self.job.dtype, {name: values[usable]})
        return {name: values[None, None] for name, values in found.items()}, {}

    def run_selection(self, work: Work, model, store) -> Result:
        """Where the stage's direction is taken."""
        stage = work.about["subject"]
        if stage in self.job.choices:
            choice = self.job.choices[stage]
            layer, position, qualifies = choice.layer, choice.position, True
        else:
            region = {"model": work.unit.region["model"]}
            bypass, induce, kl = (
                store.read(PATH, name, region)[0].mean(axis=-1, dtype=np.float64) for name in SWEEP
            )
            if not np.isfinite(bypass + induce + kl).any():
                raise JobError(
                    f"stage {stage}: at no layer and position of the template is there a direction with finite "
                    "effects; harmful and harmless instructions must differ, and activations fit dtype (bfloat16 or "
                    "float32)"
                )
            chosen = choose_direction(bypass, induce, kl, self.job.max_kl, self.job.max_depth)
            layer, position, qualifies = (
                chosen.layer,
                self.inputs.positions[chosen.position],
                chosen.qualifies,
            )
        return {
            "selected_layer": np.array([layer]),
            "selected_position": np.array([position]),
            "selected_qualifies": np.array([qualifies]),
        }, {}

    def _selected(self, store, stage) -> tuple[int, torch.Tensor, float]:
        """Return a stage's layer, its unit direction there and the distance of the class means."""
        m = self.job.stage_names.index(stage)
        region = {"model": (m, m + 1)}
        layer, position = (int(store.read(PATH, name, region)[0]) for name in SELECTED[:2])
        place = {**region, "layer": (layer, layer + 1)}
        at = self.inputs.positions.index(position)
        vector = torch.from_numpy(store.read(PATH, "direction", place)[0, 0, at].copy())
        distance = float(store.read(PATH, "class_distance", place)[0, 0, at])
        if not vector.isfinite().all():
            raise JobError(
                f"selected.{stage}: at layer {layer}, position {position} harmful and harmless prompts do not differ; "
                "edit selected"
            )
        return layer, vector, distance

    def run_coefficient(self, work: Work, model, store) -> Result:
        """How much of the direction is added."""
        stage = work.about["subject"]
        layer, vector, distance = self._selected(store, stage)
        fixed = self.job.choices[stage].coefficient if stage in self.job.choices else None
        if not self.job.coefficient_search:
            return {"coefficient": np.array([fixed or distance], "float32")}, {}
        tried = [distance * factor for factor in self.job.coefficient_search]
        prompts = self.inputs.prompts[stage].ids["harmless", "validation"]
        found = [
            self._answer(
                model,
                stage,
                prompts,
                [edit_of(self.job.add(stage, layer, c), vector, model.n_layers)],
                f"{work.unit.id}/{i}",
            )[0]
            for i, c in enumerate(tried)
        ]
        stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
        best = fixed or choose_coefficient(tried, stacked["refused"], distance)
        return {
            "coefficient": np.array([best], "float32"),
            "search_coefficient": np.array([tried], "float32"),
            **{f"search_{name}": stacked[name][None] for name in ("refused", "log_odds", "mean_nll")},
        }, {}

    def run_answers(self, work: Work, model, store) -> Result:
        """All that one direction does to one target: both interventions, for a block of prompts."""
        target, name = work.open_stage, work.about["direction"]
        ids = self.inputs.prompts[target].ids
        prompts = [p for kind in KINDS for p in ids[kind, "test"]][slice(*work.unit.region["prompt"])]
        names = direction_names(self.job)
        if name == "none":
            found, record = self._answer(model, target, prompts, [], work.unit.id)
            return {
                key: np.repeat(values[None, None, None], len(names), axis=0) for key, values in found.items()
            }, record
        # Every direction is added where the target's own is and with its length: only the direction differs.
        layer, vector, _ = self._selected(store, target)
        if name.startswith(RANDOM):
            drawn = np.random.default_rng([self.job.seed, int(name.removeprefix(RANDOM))])
            vector = torch.from_numpy(drawn.standard_normal(self.stages.hidden_size)).float()
            vector = vector / vector.norm()
        elif name != target:
            _, vector, _ = self._selected(store, name)
        coefficient = float(store.read(PATH, "coefficient", {"model": work.unit.region["target"]})[0])
        found = [
            self._answer(model, target, prompts, edits, f"{work.unit.id}/{intervention}")
            for intervention, edits in [
                ("ablation", ablation(vector, self.stages.sites(target), model.n_layers)),
                ("addition", [edit_of(self.job.add(name, layer, coefficient), vector, model.n_layers)]),
            ]
        ]
        arrays = {key: np.stack([one[key] for one, _ in found])[None, None] for key in found[0][0]}
        return arrays, combined(record for _, record in found)

    def _answer(self, model, stage, prompts, edits, what):
        """Arrays over the prompts by name, and how many were computed again."""
        ready, tokenizer = self.inputs.prompts[stage], self.stages.tokenizers[stage]
        done = model.run(
            scored_completions,
            prompts,
            edits,
            ready.openings,
            max_new_tokens=self.job.new_tokens,
            stop=ready.stop,
            reasoning=ready.reasoning,
            max_tokens=self.job.execution.max_tokens,
            **drawn_for(self.job, what),
        )
        several = [len(ids) > 1 for ids in done.ids]
        found = {"log_odds": done.log_odds, "mean_nll": done.mean_nll[several], "logits": done.peak}
        check_finite(what, self.job.dtype, found)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in done.ids]
        phrases = [matched_phrase(text, self.inputs.phrases) for text in texts]
        arrays = {
            "refused": np.array([phrase != "" for phrase in phrases]),
            "phrase": np.array(phrases, dtype=object),
            "log_odds": done.log_odds.numpy(),
            "completion": np.array(texts, dtype=object),
            "mean_nll": done.mean_nll.numpy(),
            "repeated": np.array([repeated_share(ids) for ids in done.ids], "float32"),
        }
        if self.inputs.may_reason:
            n = len(prompts)
            arrays["reasoning_tokens"] = np.array(done.reasoning or [0] * n, "int32")
            arrays["reasoning_cut"] = np.array(done.cut or [False] * n)
        return arrays, checked(done.checked, done.largest_difference)

    def cost(self, work: Work) -> Cost:
        return unit_cost(self, work)

    def parts(self) -> Iterator[tuple[dict[str, Any], list[Work]]]:
        splits = self.inputs.splits
        for stage, prompts in self.inputs.prompts.items():
            work = [w for w in self.work if w.about["subject"] == stage]
            lengths = [len(p) for some in prompts.ids.values() for p in some]
            choice = self.job.choices.get(stage)
            yield (
                {
                    "stage": stage,
                    **{
                        name: " + ".join(str(len(getattr(splits[k], name))) for k in KINDS)
                        for name in SPLIT_NAMES
                    },
                    "tokens": f"{min(lengths)}-{max(lengths)}",
                    "template tail": prompts.tail,
                    "selected": f"layer {choice.layer}, {choice.position}" if choice else "by a sweep",
                    "cells": sum(w.cells for w in work),
                },
                work,
            )
