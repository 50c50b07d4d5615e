"""The study `confidence`: whether stages differ in their entropy neurons, and whether these do anything.

Norm and LogitVar of neurons come from the checkpoints' files alone. The candidates, and random neurons of
similar norm as a control, are then held at their mean activation on text; statement sets show how well calibrated each
stage's answers are. Source of the method: Gurnee et al. 2024; Stolfo et al. 2024; Du et al. 2025, section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrace.figures.measures.entropy_neurons import candidates, matched
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.spot_checks import check_cost, checked, drawn_for
from posttrace.pipeline.studies.confidence.arrays import (
    ANSWERS,
    EFFECTS,
    PATH,
    answers_group,
    kinds,
    neurons_group,
    text_group,
)
from posttrace.pipeline.studies.confidence.inputs import ConfidenceInputs, read_inputs
from posttrace.pipeline.studies.confidence.job import ConfidenceJob
from posttrace.pipeline.studies.confidence.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.stores import Group
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.neuron_ablation import ablate_neurons, read_text
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.models.safetensors import PICKLES, Checkpoint
from posttrace.tracers.oracles.neuron_ablation import check_ablation


class Confidence(Study[ConfidenceJob, ConfidenceInputs]):
    """A `confidence` job, planned."""

    def check(self, job: ConfidenceJob) -> None:
        layer = None if job.layer == "last" else job.layer
        self.neurons = {name: find_neurons(one, layer) for name, one in self.stages.structures.items()}
        self._check_sizes(job)
        for name, checkpoint in self.stages.checkpoints.items():
            _check_files(name, checkpoint.model)

    def resolved(self, job: ConfidenceJob) -> dict[str, Any]:
        # What the weights say does not depend on the dtype of runs.
        return super().resolved(job) if job.text is not None or job.sets else {}

    def read_inputs(self) -> ConfidenceInputs:
        return read_inputs(self.job, self.stages)

    def input_content(self) -> dict[str, Any]:
        text = hashlib.sha256("\0".join(self.inputs.documents).encode()).hexdigest()
        return {**super().input_content(), "text": text}

    def arrays(self) -> Iterator[Group]:
        neurons = self.neurons[self.stages.names[0]]
        yield neurons_group(self.job, neurons)
        if self.inputs.documents:
            yield text_group(self.job, neurons, self.inputs.documents)
        for asked in self.inputs.asked.values():
            yield answers_group(self.job, asked)

    def units(self) -> Iterator[Work]:
        return planned(self.job, self.inputs)

    def _check_sizes(self, job: ConfidenceJob) -> None:
        keys = ("n_neurons", "hidden_size", "layer")
        fix = "neurons of one are not those of the other; compare stages of one size"
        self.stages.check_one_size(keys, fix, of=self.neurons)
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

    def _stage(self, work: Work) -> str:
        """Return the stage that a unit is about, also where no model is open."""
        return self.job.stage_names[work.unit.region["model"][0]]

    def run_weights(self, work: Work, model, store) -> Result:
        """Norm and LogitVar of every neuron, and the candidates."""
        name = self._stage(work)
        checkpoint = self.stages.checkpoints[name]
        found = neuron_weights(checkpoint.model, self.neurons[name], checkpoint.revision)
        norm, logit_var = found.norm.numpy(), found.logit_var.numpy()
        chosen = candidates(norm, logit_var, self.job.top_share, self.job.candidates)
        return _of_stage(weight_norm=norm, logit_var=logit_var, candidate=chosen.astype("int32")), {}

    def run_chosen(self, work: Work, model, store) -> Result:
        """Choose what to ablate: the candidates, together and one by one, and as many random neurons of like norm."""
        norm, chosen = (store.read(PATH, name, work.unit.region)[0] for name in ("weight_norm", "candidate"))
        stream = hashlib.sha256(f"{self.job.seed}/{self._stage(work)}/controls".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(stream[:8], "little"))
        singles, sets = matched(norm, chosen, self.job.controls, rng)
        ablated = np.full((len(kinds(self.job)), self.job.candidates), -1, dtype="int32")
        for row, members in zip(ablated, [chosen, *chosen[:, None], *sets, *singles[:, None]], strict=True):
            row[: len(members)] = members
        return _of_stage(ablated=ablated), {}

    def run_means(self, work: Work, model, store) -> Result:
        """Mean activations on the text, and its entropy and loss."""
        stage = work.open_stage
        found = model.run(read_text, self.inputs.rows[stage], neurons=self.neurons[stage])
        return _of_stage(
            activation_mean=(found.activation / found.n_tokens.sum()).float().numpy(),
            entropy=found.entropy.numpy(),
            loss=found.loss.numpy(),
            n_tokens=found.n_tokens.numpy(),
        ), {}

    def run_ablation(self, work: Work, model, store) -> Result:
        """Entropy and loss with every set of neurons at its mean."""
        group, region, stage = work.unit.group, {"model": work.unit.region["model"]}, work.open_stage
        mean, ablated = (store.read(group, name, region)[0] for name in ("activation_mean", "ablated"))
        rows = self.inputs.rows[stage][slice(*work.unit.region["document"])]
        options = dict(
            neurons=self.neurons[stage],
            mean=torch.from_numpy(np.ascontiguousarray(mean)),
            ablations=[[int(n) for n in row if n >= 0] for row in ablated],
        )
        found = model.run(ablate_neurons, rows, **options)
        arrays = _of_stage(**{name: getattr(found, name).numpy() for name in EFFECTS})
        if not self.job.execution.check_share:
            return arrays, {}
        drawn = drawn_for(self.job, work.unit.id)
        return arrays, checked(*model.run(check_ablation, rows, effects=found, **drawn, **options))

    def run_answers(self, work: Work, model, store) -> Result:
        """How sure the stage is of a block of statements."""
        asked, stage = self.inputs.asked[work.unit.group], work.open_stage
        prompts = asked.prompts[stage][slice(*work.unit.region["statement"])]
        found = model.run(read_answers, prompts, answers=asked.answers[stage])
        return _of_stage(**{name: getattr(found, name).numpy() for name in ANSWERS}), {}

    def cost(self, work: Work) -> Cost:
        neurons = self.neurons[self._stage(work)]
        hidden, unembed = neurons.hidden_size, neurons.vocabulary * neurons.hidden_size
        if work.kind == "weights":
            return Cost(0, unembed * hidden + neurons.n_neurons * hidden**2)
        if work.kind == "chosen":
            return Cost()
        if work.kind == "answers":
            begin, end = work.unit.region["statement"]
            prompts = self.inputs.asked[work.unit.group].prompts[work.open_stage][begin:end]
            prefixes = [len(prefix) for prefix in {p.prefix for p in prompts}]
            return run_cost(self.stages.shape, prefixes, [len(p.statement) for p in prompts]) + Cost(
                0, len(prompts) * unembed
            )
        begin, end = work.unit.region.get("document", (0, len(self.inputs.documents)))
        rows = self.inputs.rows[work.open_stage][begin:end]
        tokens = sum(map(len, rows))
        once = run_cost(self.stages.shape, [0], list(map(len, rows))) + Cost(0, tokens * unembed)
        if work.kind == "means":
            return once
        # Each set of neurons is run twice: as it is, and with the final norm's scale frozen.
        runs = 2 * len(kinds(self.job))
        blocks = self.stages.shape.n_layers - neurons.layer
        again = tokens * unembed if blocks == 1 else tokens * (unembed + blocks * self.stages.shape.block)
        longest = max(map(len, rows))
        checks = check_cost(self.job, self.stages.shape, len(kinds(self.job)) * len(rows), longest) * 3
        checks += Cost(0, checks.forwards * longest * unembed)
        return once + Cost(runs, runs * again) + checks

    def facts(self, group: Group) -> dict[str, Any]:
        counted = [d for d in ("neuron", "ablation", "document", "statement") if d in group.sizes]
        return {
            "group": group.path,
            "of": ", ".join(f"{group.sizes[d]} {d}s" for d in counted),
            "stages": group.sizes["model"],
        }


def _of_stage(**values: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of one stage, with a first dimension for it."""
    return {name: value[None] for name, value in values.items()}


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
