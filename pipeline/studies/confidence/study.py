"""The study `confidence`: do stages differ in their entropy neurons, and do these do anything?

Norm and LogitVar of neurons come from the checkpoints' files alone. The candidates, and random neurons of like norm
beside them, are then held at their mean activation on text, and statement sets tell how well calibrated each stage's
answers are. Source of the method: Gurnee et al. 2024; Stolfo et al. 2024; Du et al. 2025, section 6.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrace.figures.measures.entropy_neurons import candidates, matched
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.plan import Work
from posttrace.pipeline.stages import check_one_size, positions
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.confidence.arrays import (
    ANSWERS,
    EFFECTS,
    MEANS,
    PATH,
    WEIGHTS,
    answers_group,
    kinds,
    neurons_group,
    text_group,
)
from posttrace.pipeline.studies.confidence.inputs import ask
from posttrace.pipeline.studies.confidence.job import TEXT, ConfidenceJob
from posttrace.pipeline.studies.confidence.text import encode_documents, read_documents
from posttrace.stores import Unit
from posttrace.tracers.cost import Cost, run_cost, shape_of
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.neuron_ablation import ablate_neurons, read_text
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, load_config, load_tokenizer, resolve_dtype
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.models.safetensors import PICKLES, Checkpoint
from posttrace.tracers.oracles.neuron_ablation import check_ablation


class Confidence:
    """A `confidence` job, prepared (see pipeline.plan.Study)."""

    gaps: frozenset[str] = frozenset()

    def __init__(self, job: ConfidenceJob):
        self.stages = {name: job.family.stages[name] for name in job.stage_names}
        first = next(iter(self.stages.values()))
        structures = {name: empty_model(s.model, s.revision) for name, s in self.stages.items()}
        layer = None if job.layer == "last" else job.layer
        self.neurons = {name: find_neurons(structure, layer) for name, structure in structures.items()}
        self._check_sizes(job)
        for name, stage in self.stages.items():
            _check_files(name, stage.model)
        self.shape = shape_of(next(iter(structures.values())))
        self.job = job
        if job.text is not None or job.sets:
            # What the weights say does not depend on the dtype of runs.
            dtype = resolve_dtype(job.dtype, job.execution.device, first.model, first.revision)
            self.job = job.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
        self._prepare_prompts()
        self.content = {
            "models": {name: model_identity(s.model, s.revision) for name, s in self.stages.items()},
            "sets": {spec.name: file_hash(spec.csv) for spec in job.sets},
            "text": hashlib.sha256("\0".join(self.documents).encode()).hexdigest(),
        }
        neurons = next(iter(self.neurons.values()))
        self.groups = (
            neurons_group(self.job, neurons),
            *([text_group(self.job, neurons, self.documents)] if self.documents else []),
            *(answers_group(self.job, asked) for asked in self.asked.values()),
        )
        self.work = tuple(self._work())

    def _check_sizes(self, job: ConfidenceJob) -> None:
        keys = ("n_neurons", "hidden_size", "layer")
        fix = ", and neurons of one are not those of the other; compare stages of one size"
        check_one_size(job.family, self.neurons, keys, fix)
        n = next(iter(self.neurons.values())).n_neurons
        if int(n * job.top_share) < job.candidates:
            raise JobError(
                f"candidates: {job.candidates} is more than the top {job.top_share:.0%} of {n} neurons; lower "
                "candidates or raise top_share"
            )
        if job.text is not None and n - job.candidates < job.controls:
            raise JobError(
                f"controls: {job.controls} is not in 50-{n - job.candidates} (the MLP has {n} neurons, "
                f"{job.candidates} of them candidates); lower controls or candidates, or set text: null"
            )

    def _prepare_prompts(self) -> None:
        self.documents, self.rows, self.asked = [], {}, {}
        if self.job.text is None and not self.job.sets:
            return
        tokenizers = {name: load_tokenizer(s.model, s.revision) for name, s in self.stages.items()}
        room = positions(load_config(s.model, s.revision) for s in self.stages.values())
        if self.job.text is not None:
            self.documents = read_documents(self.job.text, self.job.seed)
            self.rows = encode_documents(self.documents, tokenizers, self.job.text.tokens, room)
        for spec in self.job.sets:
            asked = ask(self.job, spec, tokenizers, room)
            self.asked[asked.path] = asked

    def _work(self):
        """What needs no model first, then everything of one stage after the other."""
        stages, text = list(enumerate(self.job.stage_names)), f"{PATH}/{TEXT}"
        for i, stage in stages:
            region = {"model": (i, i + 1)}
            yield self._unit("weights", f"{PATH}/weights/{stage}", PATH, region, WEIGHTS, None, 1)
        if self.documents:
            for i, stage in stages:
                yield self._unit(
                    "chosen",
                    f"{text}/chosen/{stage}",
                    text,
                    {"model": (i, i + 1)},
                    ("ablated",),
                    None,
                    1,
                    [f"{PATH}/weights/{stage}"],
                )
        for i, stage in stages:
            if self.documents:
                n, size = len(self.documents), self.job.text.per_unit
                region = {"model": (i, i + 1)}
                yield self._unit("means", f"{text}/means/{stage}", text, region, MEANS, stage, n)
                for begin in range(0, n, size):
                    region = {"model": (i, i + 1), "document": (begin, min(begin + size, n))}
                    cells = len(kinds(self.job)) * (region["document"][1] - begin)
                    unit = f"{text}/ablation/{stage}/{begin:04d}"
                    needs = [f"{text}/chosen/{stage}", f"{text}/means/{stage}"]
                    yield self._unit("ablation", unit, text, region, EFFECTS, stage, cells, needs)
            for asked in self.asked.values():
                n, size = len(asked.statements), self.job.statements_per_unit
                for begin in range(0, n, size):
                    region = {"model": (i, i + 1), "statement": (begin, min(begin + size, n))}
                    unit = f"{asked.path}/answers/{stage}/{begin:04d}"
                    cells = region["statement"][1] - begin
                    yield self._unit("answers", unit, asked.path, region, ANSWERS, stage, cells)

    def _unit(self, kind, name, group, region, arrays, stage, cells, needs=()) -> Work:
        unit = Unit(name, group, region, arrays)
        return Work(unit=unit, kind=kind, stage=stage, cells=cells, needs=tuple(needs))

    def run(self, work: Work, model, store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Do one unit (see pipeline.plan.Study)."""
        make = {
            "weights": self._weights,
            "chosen": self._chosen,
            "means": self._means,
            "ablation": self._effects,
            "answers": self._answers,
        }
        values = make[work.kind](work, model, store)
        values, checked = values if isinstance(values, tuple) else (values, {})
        return {name: value[None] for name, value in values.items()}, checked

    def _stage(self, work: Work) -> str:
        return self.job.stage_names[work.unit.region["model"][0]]

    def _weights(self, work: Work, model, store) -> dict[str, np.ndarray]:
        name = self._stage(work)
        stage = self.stages[name]
        found = neuron_weights(stage.model, self.neurons[name], stage.revision)
        norm, logit_var = found.norm.numpy(), found.logit_var.numpy()
        chosen = candidates(norm, logit_var, self.job.top_share, self.job.candidates)
        return {"weight_norm": norm, "logit_var": logit_var, "candidate": chosen.astype("int32")}

    def _chosen(self, work: Work, model, store) -> dict[str, np.ndarray]:
        """What is ablated: the candidates, together and one by one, and as many random neurons of like norm."""
        region = {"model": work.unit.region["model"]}
        norm, chosen = (store.read(PATH, name, region)[0] for name in ("weight_norm", "candidate"))
        stream = hashlib.sha256(f"{self.job.seed}/{self._stage(work)}/controls".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(stream[:8], "little"))
        singles, sets = matched(norm, chosen, self.job.controls, rng)
        ablated = np.full((len(kinds(self.job)), self.job.candidates), -1, dtype="int32")
        for row, members in zip(ablated, [chosen, *chosen[:, None], *sets, *singles[:, None]], strict=True):
            row[: len(members)] = members
        return {"ablated": ablated}

    def _means(self, work: Work, model, store) -> dict[str, np.ndarray]:
        found = model.run(read_text, self.rows[work.open_stage], neurons=self.neurons[work.open_stage])
        return {
            "activation_mean": (found.activation / found.n_tokens.sum()).float().numpy(),
            "entropy": found.entropy.numpy(),
            "loss": found.loss.numpy(),
            "n_tokens": found.n_tokens.numpy(),
        }

    def _effects(self, work: Work, model, store):
        """A share of what was found is computed again by whole forward passes."""
        group, region = work.unit.group, {"model": work.unit.region["model"]}
        mean, ablated = (store.read(group, name, region)[0] for name in ("activation_mean", "ablated"))
        begin, end = work.unit.region["document"]
        rows = self.rows[work.open_stage][begin:end]
        options = dict(
            neurons=self.neurons[work.open_stage],
            mean=torch.from_numpy(np.ascontiguousarray(mean)),
            ablations=[[int(n) for n in row if n >= 0] for row in ablated],
        )
        found = model.run(ablate_neurons, rows, **options)
        values = {name: getattr(found, name).numpy() for name in EFFECTS}
        if share := self.job.execution.check_share:
            rng = random.Random(f"{self.job.seed}/{work.unit.id}")
            n, largest = model.run(check_ablation, rows, effects=found, share=share, rng=rng, **options)
            return values, {"checked_cells": n, "largest_difference": largest}
        return values

    def _answers(self, work: Work, model, store) -> dict[str, np.ndarray]:
        asked = self.asked[work.unit.group]
        begin, end = work.unit.region["statement"]
        prompts = asked.prompts[work.open_stage][begin:end]
        found = model.run(read_answers, prompts, answers=asked.answers[work.open_stage])
        return {name: getattr(found, name).numpy() for name in ANSWERS}

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit (see pipeline.plan.Study)."""
        neurons = self.neurons[self._stage(work)]
        hidden, unembed = neurons.hidden_size, neurons.vocabulary * neurons.hidden_size
        if work.kind == "weights":
            return Cost(0, unembed * hidden + neurons.n_neurons * hidden**2)
        if work.kind == "chosen":
            return Cost()
        if work.kind == "answers":
            begin, end = work.unit.region["statement"]
            prompts = self.asked[work.unit.group].prompts[work.open_stage][begin:end]
            prefixes = [len(prefix) for prefix in {p.prefix for p in prompts}]
            return run_cost(self.shape, prefixes, [len(p.statement) for p in prompts]) + Cost(
                0, len(prompts) * unembed
            )
        begin, end = work.unit.region.get("document", (0, len(self.documents)))
        rows = self.rows[work.open_stage][begin:end]
        tokens = sum(map(len, rows))
        once = run_cost(self.shape, [0], list(map(len, rows))) + Cost(0, tokens * unembed)
        if work.kind == "means":
            return once
        # Each set of neurons is run twice: as it is, and with the final norm's scale frozen.
        runs = 2 * len(kinds(self.job))
        blocks = self.shape.n_layers - neurons.layer
        again = tokens * unembed if blocks == 1 else tokens * (unembed + blocks * self.shape.block)
        return once + Cost(runs, runs * again)

    def summary(self) -> list[dict[str, Any]]:
        """A row per group: what is counted, cost (see pipeline.plan.Study)."""
        rows = []
        for group in self.groups:
            work = [w for w in self.work if w.unit.group == group.path]
            cost = sum(map(self.cost, work), Cost())
            sizes = [
                f"{group.sizes[d]} {d}s"
                for d in ("neuron", "ablation", "document", "statement")
                if d in group.sizes
            ]
            rows.append(
                {
                    "group": group.path,
                    "of": ", ".join(sizes),
                    "stages": group.sizes["model"],
                    "units": len(work),
                    "forwards": cost.forwards,
                    "multiply-adds": f"{cost.multiply_adds:.2e}",
                }
            )
        return rows


def _check_files(stage: str, model: str) -> None:
    """Neurons are found in the weights, wherever the model runs; hub ids have theirs fetched when they are read."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    if any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *PICKLES)):
        Checkpoint(model)  # refuses pickles and a damaged index
        return
    raise JobError(
        f"stage {stage}: {model} holds no safetensors files; neurons are found in the weights, which no server "
        "hands out: give a folder or a hub id that has them (the model is not loaded for it)"
    )
