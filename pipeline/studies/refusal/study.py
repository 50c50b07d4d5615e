"""The study `refusal`: is refusing one direction in the stream, and is it the same one in every stage?

The difference of the mean streams of harmful and harmless prompts, at the input of a block and one of the template's
last tokens, is ablated everywhere or added in one block while the stages answer. Source of the method: Arditi et al.
2024; Du et al. 2025, section 5.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import SAME, check_finite
from posttrace.pipeline.plan import Work
from posttrace.pipeline.stages import SIZES, check_one_size
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.refusal.arrays import (
    ANSWERS,
    PATH,
    SELECTED,
    SWEEP,
    direction_names,
    refusal_group,
)
from posttrace.pipeline.studies.refusal.costs import unit_cost
from posttrace.pipeline.studies.refusal.inputs import KINDS, SPLIT_NAMES, check_choices, prepare_stage
from posttrace.pipeline.studies.refusal.instructions import read_splits
from posttrace.pipeline.studies.refusal.job import RANDOM, RefusalJob
from posttrace.pipeline.studies.refusal.scores import matched_phrase, read_phrases, repeated_share
from posttrace.pipeline.studies.refusal.selection import choose_coefficient, choose_direction
from posttrace.pipeline.studies.refusal.templates import PROBES, written
from posttrace.pipeline.studies.refusal.units import planned
from posttrace.tracers.checked import scored_completions
from posttrace.tracers.cost import Cost, shape_of
from posttrace.tracers.engines.directions import direction_effects, mean_streams
from posttrace.tracers.engines.edits import edit_of
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.steering import ablation
from posttrace.tracers.models.architecture import recognise
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, load_config, load_tokenizer, resolve_dtype


class Refusal:
    """A `refusal` job, prepared (see pipeline.plan.Study)."""

    gaps = frozenset({"direction", *SWEEP, "mean_nll", "search_mean_nll"})
    """No value where prompts do not differ, where nothing is swept, and of an answer of one token."""

    def __init__(self, job: RefusalJob):
        stages = {name: job.family.stages[name] for name in job.stage_names}
        configs = {name: load_config(s.model, s.revision) for name, s in stages.items()}
        first = next(iter(stages))
        check_one_size(job.family, configs, SIZES, "; a direction fits one size only")
        self.n_layers, self.hidden_size = configs[first].num_hidden_layers, configs[first].hidden_size
        dtype = resolve_dtype(job.dtype, job.execution.device, stages[first].model, stages[first].revision)
        self.job = job.model_copy(
            update={"dtype": str(dtype).removeprefix("torch."), "selected": job.choices}
        )
        self.phrases = read_phrases(job.phrases)
        sizes = {split: getattr(job, f"{split}_prompts") for split in SPLIT_NAMES}
        self.splits = {kind: read_splits(kind, getattr(job, kind), sizes, job.seed) for kind in KINDS}
        self.tokenizers = {name: load_tokenizer(s.model, s.revision) for name, s in stages.items()}
        rooms = {name: getattr(c, "max_position_embeddings", None) for name, c in configs.items()}

        everything = [text for s in self.splits.values() for n in SPLIT_NAMES for text in getattr(s, n)]
        texts = {name: written(job, name, t, everything) for name, t in self.tokenizers.items()}

        def prepared(n_positions):
            return {
                name: prepare_stage(
                    self.job, name, tokenizer, self.splits, texts[name], rooms[name], n_positions
                )
                for name, tokenizer in self.tokenizers.items()
            }

        tails = prepared(0)
        check_choices(self.job, self.n_layers, tails)
        fixed = [-self.job.choices[s].position for s in stages if s in self.job.choices]
        self.positions = tuple(range(-max([*fixed, *(p.tail for p in tails.values())]), 0))
        self.prompts = prepared(len(self.positions))
        shortest = min(len(p) for s in self.prompts.values() for some in s.ids.values() for p in some)
        if shortest < len(self.positions):
            raise JobError(
                f"selected: a prompt has {shortest} tokens, fewer than the {len(self.positions)} that directions are "
                "taken from; edit selected, or take short instructions out"
            )
        structures = {name: empty_model(s.model, s.revision) for name, s in stages.items()}
        self.sites = {name: recognise(structure).sites for name, structure in structures.items()}
        self.shape = shape_of(structures[first])
        self.names = direction_names(self.job)
        self.content = {
            "models": {name: model_identity(s.model, s.revision) for name, s in stages.items()},
            "instructions": {
                kind: [list(getattr(s, n)) for n in SPLIT_NAMES] for kind, s in self.splits.items()
            },
            # Whole prompts, since a chat template may write the date into them.
            "prompts": {name: prompts[PROBES[0]] for name, prompts in texts.items()},
            "phrases": list(self.phrases),
            "openings": file_hash(job.openings),
        }
        self.groups = (
            refusal_group(
                self.job, self.prompts, self.splits, self.n_layers, len(self.positions), self.hidden_size
            ),
        )
        self.work = tuple(planned(self.job, self.splits, self.n_layers, len(self.positions)))

    def run(self, work: Work, model, store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Do one unit (see pipeline.plan.Study)."""
        do = {
            "directions": self._directions,
            "sweep": self._sweep,
            "selection": self._selection,
            "coefficient": self._coefficient,
            "answers": self._answers,
        }[work.kind]
        return do(work, work.about["stage"], model, store)

    def _directions(self, work, stage, model, store):
        prompts, read = self.prompts[stage], self.job.read_at(self.positions)
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

    def _log_odds(self, model, stage, kind):
        prompts = self.prompts[stage]
        return model.run(
            generate,
            prompts.ids[kind, "validation"],
            [],
            prompts.openings,
            max_new_tokens=1,
            max_tokens=self.job.execution.max_tokens,
        ).log_odds

    def _sweep(self, work, stage, model, store):
        prompts, region = self.prompts[stage], work.unit.region
        layer = region["layer"][0]
        vectors = torch.from_numpy(store.read(PATH, "direction", region)[0, 0].copy())
        distance = store.read(PATH, "class_distance", region)[0, 0]
        usable = [
            i
            for i, position in enumerate(self.positions)
            if -position <= prompts.tail and distance[i] > 0 and vectors[i].isfinite().all()
        ]
        n = {kind: len(prompts.ids[kind, "validation"]) for kind in KINDS}
        found = {
            "bypass": np.full((len(self.positions), n["harmful"]), np.nan, "float32"),
            "induce": np.full((len(self.positions), n["harmless"]), np.nan, "float32"),
            "kl": np.full((len(self.positions), n["harmless"]), np.nan, "float32"),
        }
        if usable:
            effects = model.run(
                direction_effects,
                *(prompts.ids[kind, "validation"] for kind in KINDS),
                layer,
                vectors[usable],
                [float(distance[i]) for i in usable],
                prompts.openings,
                self.job.execution.max_tokens,
            )
            for name, values in found.items():
                values[usable] = getattr(effects, name).numpy()
                check_finite(work.unit.id, self.job.dtype, {name: values[usable]})
        return {name: values[None, None] for name, values in found.items()}, {}

    def _selection(self, work, stage, model, store):
        if stage in self.job.choices:
            choice = self.job.choices[stage]
            layer, position, qualifies = choice.layer, choice.position, True
        else:
            region = {"model": work.unit.region["model"]}
            means = [store.read(PATH, name, region)[0].mean(axis=-1, dtype=np.float64) for name in SWEEP]
            if not np.isfinite(sum(means)).any():
                raise JobError(
                    f"stage {stage}: at no layer and position of the template is there a direction with finite "
                    "effects; harmful and harmless instructions must differ, and activations fit dtype (bfloat16 or "
                    "float32)"
                )
            chosen = choose_direction(*means, self.job.max_kl, self.job.max_depth)
            layer, position, qualifies = chosen.layer, self.positions[chosen.position], chosen.qualifies
        return {
            "selected_layer": np.array([layer]),
            "selected_position": np.array([position]),
            "selected_qualifies": np.array([qualifies]),
        }, {}

    def _selected(self, store, stage) -> tuple[int, torch.Tensor, float]:
        """A stage's layer, its unit direction there and the distance of the class means."""
        m = self.job.stage_names.index(stage)
        region = {"model": (m, m + 1)}
        layer, position = (int(store.read(PATH, name, region)[0]) for name in SELECTED[:2])
        place = {**region, "layer": (layer, layer + 1)}
        at = self.positions.index(position)
        vector = torch.from_numpy(store.read(PATH, "direction", place)[0, 0, at].copy())
        distance = float(store.read(PATH, "class_distance", place)[0, 0, at])
        if not vector.isfinite().all():
            raise JobError(
                f"selected.{stage}: at layer {layer}, position {position} harmful and harmless prompts do not differ; "
                "edit selected"
            )
        return layer, vector, distance

    def _coefficient(self, work, stage, model, store):
        layer, vector, distance = self._selected(store, stage)
        fixed = self.job.choices[stage].coefficient if stage in self.job.choices else None
        if not self.job.coefficient_search:
            return {"coefficient": np.array([fixed or distance], "float32")}, {}
        tried = [distance * factor for factor in self.job.coefficient_search]
        prompts = self.prompts[stage].ids["harmless", "validation"]
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

    def _answers(self, work, target, model, store):
        """All that one direction does to one target: both interventions, for a block of prompts."""
        name, (begin, end) = work.about["direction"], work.unit.region["prompt"]
        prompts = [p for kind in KINDS for p in self.prompts[target].ids[kind, "test"]][begin:end]
        if name == "none":
            found, record = self._answer(model, target, prompts, [], work.unit.id)
            return {
                key: np.repeat(found[key][None, None, None], len(self.names), axis=0) for key in ANSWERS
            }, record
        # Every direction is added where the target's own is and with its length: only the direction differs.
        layer, vector, _ = self._selected(store, target)
        if name.startswith(RANDOM):
            drawn = np.random.default_rng([self.job.seed, int(name.removeprefix(RANDOM))])
            vector = torch.from_numpy(drawn.standard_normal(self.hidden_size)).float()
            vector = vector / vector.norm()
        elif name != target:
            _, vector, _ = self._selected(store, name)
        coefficient = float(store.read(PATH, "coefficient", {"model": work.unit.region["target"]})[0])
        found = [
            self._answer(model, target, prompts, edits, f"{work.unit.id}/{intervention}")
            for intervention, edits in [
                ("ablation", ablation(vector, self.sites[target], model.n_layers)),
                ("addition", [edit_of(self.job.add(name, layer, coefficient), vector, model.n_layers)]),
            ]
        ]
        arrays = {key: np.stack([one[key] for one, _ in found])[None, None] for key in ANSWERS}
        return arrays, {
            "checked_cells": sum(record["checked_cells"] for _, record in found),
            "largest_difference": max(record["largest_difference"] for _, record in found),
        }

    def _answer(self, model, stage, prompts, edits, what):
        """Arrays over the prompts by name, and how many were computed again."""
        ready, tokenizer = self.prompts[stage], self.tokenizers[stage]
        done = model.run(
            scored_completions,
            prompts,
            edits,
            ready.openings,
            max_new_tokens=self.job.new_tokens,
            stop=ready.stop,
            max_tokens=self.job.execution.max_tokens,
            share=self.job.execution.check_share,
            rng=random.Random(f"{self.job.seed}/{what}"),
        )
        several = [len(ids) > 1 for ids in done.ids]
        found = {"log_odds": done.log_odds, "mean_nll": done.mean_nll[several], "logits": done.peak}
        check_finite(what, self.job.dtype, found)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in done.ids]
        phrases = [matched_phrase(text, self.phrases) for text in texts]
        arrays = {
            "refused": np.array([phrase != "" for phrase in phrases]),
            "phrase": np.array(phrases, dtype=object),
            "log_odds": done.log_odds.numpy(),
            "completion": np.array(texts, dtype=object),
            "mean_nll": done.mean_nll.numpy(),
            "repeated": np.array([repeated_share(ids) for ids in done.ids], "float32"),
        }
        return arrays, {"checked_cells": done.checked, "largest_difference": done.largest_difference}

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit, the sample of whole passes aside (see pipeline.plan.Study)."""
        return unit_cost(self, work)

    def summary(self) -> list[dict[str, Any]]:
        """A row per stage: prompts, tokens, cells, cost (see pipeline.plan.Study)."""
        rows = []
        for stage in self.job.stage_names:
            work = [w for w in self.work if w.about["stage"] == stage]
            cost = sum(map(self.cost, work), Cost())
            lengths = [len(p) for some in self.prompts[stage].ids.values() for p in some]
            choice = self.job.choices.get(stage)
            rows.append(
                {
                    "stage": stage,
                    "direction": " + ".join(str(len(self.splits[k].direction)) for k in KINDS),
                    "validation": " + ".join(str(len(self.splits[k].validation)) for k in KINDS),
                    "test": " + ".join(str(len(self.splits[k].test)) for k in KINDS),
                    "tokens": f"{min(lengths)}-{max(lengths)}",
                    "template tail": self.prompts[stage].tail,
                    "selected": f"layer {choice.layer}, {choice.position}" if choice else "by a sweep",
                    "cells": sum(w.cells for w in work),
                    "forwards": cost.forwards,
                    "multiply-adds": f"{cost.multiply_adds:.2e}",
                }
            )
        return rows
