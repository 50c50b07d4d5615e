"""The study `stages`: which stage of training made a behaviour, and where in its update of the weights.

Three counterfactuals are kept apart: the effect of a stage (its checkpoint against the one before), its update
removed from the final weights, and training without the stage, which only retraining gives. The effect is split by
layer, module and token along the straight path between the two checkpoints, and checked against swapping modules.

Background: Zhang et al. 2025 (arXiv 2506.00175) asks how behaviour would have changed without a stage of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from posttrace.pipeline import interrupts
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.estimate import free_host_memory
from posttrace.pipeline.spot_checks import check_cost, checked, drawn_for
from posttrace.pipeline.statements import file_hash
from posttrace.pipeline.studies.stages.arrays import (
    DATA_ORDERS,
    NANS,
    ORDERS,
    SWAPS,
    behaviour_group,
    updates,
    weights_group,
)
from posttrace.pipeline.studies.stages.inputs import PATH, SMOOTH, Asked, read_inputs
from posttrace.pipeline.studies.stages.job import StagesJob
from posttrace.pipeline.studies.stages.recipe import Recipe, flat, unflat
from posttrace.pipeline.studies.stages.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.pipeline.tensors import widened
from posttrace.stores import Group
from posttrace.tracers.batching.memory import free_memory
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.behaviours import Question, behaviour_values, traced_values
from posttrace.tracers.engines.path_attribution import NODES, path_attribution, slopes_at
from posttrace.tracers.engines.swaps import cut, only, swapped_values
from posttrace.tracers.engines.weights import (
    control_values,
    removed_values,
    rounding_values,
    values_with,
)
from posttrace.tracers.models.safetensors import Checkpoint
from posttrace.tracers.models.updates import Streamed, Update, sizes
from posttrace.tracers.models.weighted import MODULES, parts_of, weighted_modules
from posttrace.tracers.oracles.stages import check_slopes, check_swaps

TRAINING = {"retrain": 4, "replay": 12}
"""Kind of unit that trains -> its multiply-adds over those of a forward pass: a backward pass is two, the reference is
one more, and the change of the weights doubles what depends on them twice."""

ROOM = 3
"""Free memory, over the size of a checkpoint, at which a second one is kept: it, and as much for activations twice."""


class Stages(Study[StagesJob, dict[str, Asked]]):
    """A `stages` job, planned; `inputs` has its behaviours by the path of their group."""

    gaps = NANS

    def chats(self) -> tuple[str, ...]:
        return self.stages.names[-1:] if self.job.template == "chat" else ()

    def check(self, job: StagesJob) -> None:
        self._check_shapes(job)
        if job.effects_only:
            return
        for name, checkpoint in self.stages.checkpoints.items():
            if getattr(self.stages.configs[name], "quantization_config", None):
                raise JobError(
                    f"stage {name}: {checkpoint.model} is quantised, and differences of quantised weights are not what "
                    "training added; give the checkpoint that it was made from"
                )
            held = self.stages.configs[name].dtype
            if job.dtype == "bfloat16" and held != torch.bfloat16:
                raise JobError(
                    f"dtype: bfloat16 would round the weights of stage {name}, which are {held} in {checkpoint.model}; "
                    "set dtype=float32"
                )
        weighted_modules(self.stages.structures[self.stages.names[0]])
        self.recipe = Recipe(job) if job.recipe else None
        self._update: tuple[str, Streamed] | None = None

    def _check_shapes(self, job: StagesJob) -> None:
        first, *others = self.stages.names
        shapes = {
            name: {key: tuple(p.shape) for key, p in self.stages.structures[name].named_parameters()}
            for name in self.stages.names
        }
        for name in others:
            for key in shapes[first] | shapes[name]:
                one, two = (shapes[stage].get(key) for stage in (first, name))
                if one != two:
                    raise JobError(
                        f"family {job.family.name}: {key} has shape {one} in {first} and {two} in {name}; an update is "
                        "a difference of equal shapes: bring all stages to one vocabulary, or choose `stages` of one "
                        "shape"
                    )

    def resolved(self, job: StagesJob) -> dict[str, Any]:
        if job.effects_only:
            return super().resolved(job)
        return {"dtype": "float32" if job.dtype == "auto" else job.dtype}

    def notes(self) -> Iterator[str]:
        yield from super().notes()
        if self.job.effects_only:
            yield (
                "on a server only the effects of the stages are measured, f(stage) - f(stage before): attribution, "
                "swaps, removed updates and controls need the files of two checkpoints; run it with --backend local"
            )

    def read_inputs(self) -> dict[str, Asked]:
        return read_inputs(self.job, self.stages)

    def input_content(self) -> dict[str, Any]:
        prompts = {
            path: [[[list(row.ids), list(row.at)] for row in question] for question in asked.questions]
            for path, asked in self.inputs.items()
        }
        found = {**super().input_content(), "prompts": prompts, "openings": file_hash(self.job.openings)}
        if self.job.effects_only:
            found["measured"] = "effects"
        elif self.recipe is not None:
            found["recipe"] = self.recipe.identity
        return found

    def arrays(self) -> Iterator[Group]:
        structure = self.stages.structures[self.stages.names[0]]
        if not self.job.effects_only:
            yield weights_group(self.job, {name: p.numel() for name, p in structure.named_parameters()})
        for asked in self.inputs.values():
            yield behaviour_group(self.job, asked, self.stages.n_layers)

    def units(self) -> Iterator[Work]:
        return planned(self.job, self.inputs)

    def _files(self, update: str) -> Update:
        """Return the update's two checkpoints."""
        names = self.job.stage_names
        later = names.index(update)
        pair = (self.stages.checkpoints[names[i]] for i in (later - 1, later))
        earlier, after = (Checkpoint(one.model, one.revision) for one in pair)
        return Update(self.stages.structures[update], earlier, after)

    def _difference(self, update: str, model) -> Streamed:
        """Return the update on the model's devices; kept until another one is asked for, if memory allows."""
        if self._update is None or self._update[0] != update:
            self._update = None  # let go of the old one first
            self._update = update, streamed(model, self._files(update).difference)
        return self._update[1]

    def _questions(self, work: Work) -> tuple[Question, ...]:
        questions = self.inputs[work.unit.group].questions
        return questions[slice(*work.unit.region.get("prompt", (0, len(questions))))]

    @property
    def _options(self) -> dict[str, Any]:
        return {"max_tokens": self.job.execution.max_tokens}

    def run_weights(self, work: Work, model, store) -> Result:
        """How much one update changed every tensor, and its cosines with the other updates."""
        names, mine = updates(self.job), work.about["update"]
        files = {name: self._files(name) for name in names}
        found = list(sizes(files[mine], files))
        arrays = {
            key: np.array([about[key] for _, about, _ in found])[None]
            for key in ("update_norm", "weight_norm", "changed")
        }
        cosines = [[cosine[other] for _, _, cosine in found] for other in names]
        return {**arrays, "update_cosine": np.array(cosines)[None]}, {}

    def run_replay(self, work: Work, model, store) -> Result:
        """Train the stages after one again, and carry its update along."""
        files = self._files(work.about["update"])
        last, moved = self._trained(work, files.later, files.difference)
        assert moved is not None, "a change was given"
        return {"replayed_weights": flat(last)[None], "propagated_update": flat(moved)[None]}, {}

    def run_retrain(self, work: Work, model, store) -> Result:
        """Train the stages after one from the stage before it."""
        last, _ = self._trained(work, self._files(work.about["update"]).earlier)
        return {"retrained_weights": flat(last)[None, None]}, {}

    def _trained(self, work: Work, start, change=None):
        assert self.recipe is not None, "planned with a recipe only"
        files = self._files(work.about["update"])
        begin, moved = (read and {name: read(name) for name in files.names} for read in (start, change))
        order = work.unit.region.get("data_order", (0, 1))[0]
        return self.recipe.trained.replay(
            self.recipe.after(work.about["update"]), begin, moved, order=order, each=interrupts.check
        )

    def run_without(self, work: Work, model, store) -> Result:
        """Measure the retrained models, and what estimates them from the final one."""
        prompts, parameters = self._questions(work), dict(model.nn._module.named_parameters())
        w = work.unit.region["without"]

        def read(name: str, order: int = 0) -> dict[str, torch.Tensor]:
            region = {"without": w, "data_order": (order, order + 1)}
            return unflat(store.read(PATH, name, region).ravel(), parameters)

        def values(weights) -> np.ndarray:
            return model.run(values_with, prompts, weights, **self._options).numpy()

        def removed(update) -> np.ndarray:
            return model.run(removed_values, prompts, update, alphas=[1.0], **self._options)[0].numpy()

        propagated = read("propagated_update")
        points = [(i, 1.0) for i in range(len(prompts))]
        found = model.run(slopes_at, prompts, propagated, points, **self._options)
        linear = (found.values - found.total).float().numpy()
        task_vector = removed(self._difference(work.about["update"], model))
        retrained = [values(read("retrained_weights", order)) for order in range(DATA_ORDERS)]
        return {
            "retrained": np.stack(retrained)[None],
            "estimate": np.stack([task_vector, removed(propagated), linear])[None],
            "replayed": values(read("replayed_weights"))[None],
        }, {}

    def run_values(self, work: Work, model, store) -> Result:
        """Compute the behaviour of a stage."""
        engine = traced_values if self.job.effects_only else behaviour_values
        return {"behaviour": model.run(engine, self._questions(work), **self._options).numpy()[None]}, {}

    def run_path(self, work: Work, model, store) -> Result:
        """Measure the effect of an update by layer, module and token."""
        prompts, update = self._questions(work), self._difference(work.about["update"], model)
        asked = self.inputs[work.unit.group]
        allowed = {"tolerance": self.job.tolerance, "of_mean": SMOOTH.get(asked.unit)}
        found = model.run(path_attribution, prompts, update, **allowed, **self._options)
        width = asked.n_tokens
        arrays = {
            "attribution": widened(found.modules, -1, width).numpy()[None],
            "attribution_embed": widened(found.embed, -1, width).numpy()[None],
            "attribution_unembed": found.unembed.numpy()[None],
            "residual": found.residual.numpy()[None],
            "nodes": found.nodes.int().numpy()[None],
            "slope": found.slope.T.numpy()[None],
        }
        if not self.job.execution.check_share:
            return arrays, {}
        drawn = drawn_for(self.job, work.unit.id)
        return arrays, checked(*model.run(check_slopes, prompts, update, **drawn))

    def run_swaps(self, work: Work, model, store) -> Result:
        """Modules of an update inserted alone, removed alone, and put in one after the other."""
        prompts, n = self._questions(work), len(parts_of(model.n_layers))
        settings = {
            "insert": [only(g, n, later=True) for g in range(n)],
            "remove": [only(g, n, later=False) for g in range(n)],
            "cumulative": [cut(c, n, below=order == "below") for order in ORDERS for c in range(n + 1)],
        }
        wanted = [cut(0, n, below=True), cut(n, n, below=True)]
        wanted += [setting for kind in self.job.swaps for setting in settings[kind]]
        earlier = streamed(model, self._files(work.about["update"]).earlier)
        values = model.run(swapped_values, prompts, earlier, wanted, **self._options)
        before, after = values[:2]
        arrays: dict[str, np.ndarray] = {}
        begin = 2
        for kind in self.job.swaps:
            found = values[begin : begin + len(settings[kind])]
            begin += len(settings[kind])
            if kind == "cumulative":
                arrays[kind] = found.view(len(ORDERS), n + 1, -1).numpy()[None]
                continue
            effect = (found - before if kind == "insert" else after - found).T
            halves, ends = SWAPS[kind]
            arrays[halves] = effect[:, 1:-1].reshape(len(prompts), -1, len(MODULES)).numpy()[None]
            arrays[ends] = effect[:, [0, -1]].numpy()[None]
        if not self.job.execution.check_share:
            return arrays, {}
        drawn = drawn_for(self.job, work.unit.id)
        return arrays, checked(*model.run(check_swaps, prompts, earlier, wanted, values=values, **drawn))

    def run_removed(self, work: Work, model, store) -> Result:
        """Take an update out of the final weights, in shares, and measure the slope there."""
        prompts, update = self._questions(work), self._difference(work.about["update"], model)
        now = model.run(behaviour_values, prompts, **self._options)
        without = model.run(removed_values, prompts, update, alphas=self.job.alphas, **self._options)
        # At the open model the slope along any update is the same contraction.
        points = [(i, 1.0) for i in range(len(prompts))]
        slope = model.run(slopes_at, prompts, update, points, **self._options).total.float()
        return {"removed": (now - without).numpy()[None], "slope": slope.numpy()[None, None]}, {}

    def run_control(self, work: Work, model, store) -> Result:
        """Directions without a meaning taken out of the final weights."""
        prompts, update = self._questions(work), self._difference(work.about["update"], model)
        now = model.run(behaviour_values, prompts, **self._options)
        without = model.run(
            control_values,
            prompts,
            update,
            kind=work.about["control"],
            draws=self.job.controls,
            seed=f"{self.job.seed}/{work.about['update']}",
            **self._options,
        )
        return {"control_removed": (now - without).numpy()[None, None]}, {}

    def run_rounding(self, work: Work, model, store) -> Result:
        """How far the rounding of the stored weights could have moved the final stage."""
        prompts = self._questions(work)
        now = model.run(behaviour_values, prompts, **self._options)
        options = {"draws": self.job.controls, "seed": str(self.job.seed), **self._options}
        return {"rounding": (now - model.run(rounding_values, prompts, **options)).numpy()}, {}

    def cost(self, work: Work) -> Cost:
        """As planned: of a path the nodes that every prompt has."""
        if work.kind == "weights":  # read from files, each value used once for each update
            weights = sum(p.numel() for p in self.stages.structures[self.stages.names[0]].parameters())
            return Cost(0, weights * (1 + len(updates(self.job))))
        if work.kind in TRAINING:
            assert self.recipe is not None, "planned with a recipe only"
            rows = [n for stage in self.recipe.after(work.about["update"]) for n in self.recipe.rows[stage]]
            return Cost(0, int(TRAINING[work.kind] * run_cost(self.stages.shape, [0], rows).multiply_adds))
        once = run_cost(
            self.stages.shape, [0], [len(row.ids) for question in self._questions(work) for row in question]
        )
        halves = 2 * self.stages.n_layers
        n_swaps = {"insert": halves + 2, "remove": halves + 2, "cumulative": 2 * (halves + 3)}
        # A backward pass costs as much as a forward pass, and the update's own products as much again. A swap runs
        # half of the blocks on average.
        forwards, passes = {
            "values": (1, 1.0),
            "path": (NODES + 2, 4.0 * (NODES + 2)),
            "swaps": (2 + sum(n_swaps[kind] for kind in self.job.swaps),) * 2,
            "removed": (len(self.job.alphas) + 2, len(self.job.alphas) + 5.0),
            "without": (DATA_ORDERS + 4, DATA_ORDERS + 7.0),
            "control": (self.job.controls + 1,) * 2,
            "rounding": (self.job.controls + 1,) * 2,
        }[work.kind]
        if work.kind == "swaps":
            passes = 2 + (passes - 2) / 2
        cost = Cost(int(forwards) * once.forwards, int(passes * once.multiply_adds))
        # Slopes are computed both ways, each by a pass and two of gradients; a swap by a pass.
        settings, again = {"path": (1, 6), "swaps": (int(forwards), 1)}.get(work.kind, (0, 0))
        if not settings:
            return cost
        tokens = max(sum(len(row.ids) for row in question) for question in self._questions(work))
        n = settings * len(self._questions(work))
        return cost + check_cost(self.job, self.stages.shape, n, tokens) * again

    def facts(self, group: Group) -> dict[str, Any]:
        asked = self.inputs.get(group.path)
        return {
            "group": group.path,
            "prompts": len(asked.questions) if asked else 0,
            "tokens": asked.n_tokens if asked else 0,
            "updates": group.sizes["update"],
        }


def streamed(model, read) -> Streamed:
    """Return weights that `read` gives by name; where they leave too little room they are read again when needed."""
    parameters = dict(model.nn._module.named_parameters())
    size = 4 * sum(p.numel() for p in parameters.values())
    free = free_memory(model.device) if model.device.type == "cuda" else free_host_memory()
    return Streamed(read, parameters, keep=free is None or ROOM * size <= free)
