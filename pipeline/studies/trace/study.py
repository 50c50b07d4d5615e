"""The study `trace`: any operations on any prompts, for questions that the other studies do not ask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.plan import Work
from posttrace.pipeline.stages import SIZES, check_one_size
from posttrace.pipeline.studies.trace.arrays import activation_group, completion_group, output_group
from posttrace.pipeline.studies.trace.directions import load_direction
from posttrace.pipeline.studies.trace.job import TraceJob
from posttrace.pipeline.tensors import as_stored, from_stored
from posttrace.stores import Unit
from posttrace.tracers.cost import Cost, run_cost, shape_of
from posttrace.tracers.engines.activations import columns_of
from posttrace.tracers.engines.edits import Edit, edit_of
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.interventions import run_operations
from posttrace.tracers.models.architecture import recognise
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, load_config, load_tokenizer, resolve_dtype
from posttrace.tracers.operations import Patch, Read, Steer, Tokens
from posttrace.tracers.prompts import Prompt, encode


class Trace:
    """A `trace` job, prepared (see pipeline.plan.Study)."""

    gaps = frozenset({"activation"})
    """Prompts are of unequal length."""

    def __init__(self, job: TraceJob):
        sources = [p.source for p in job.patches]
        names = [name for name in job.family.stages if name in job.stage_names or name in sources]
        stages = {name: job.family.stages[name] for name in names}
        self.configs = {name: load_config(s.model, s.revision) for name, s in stages.items()}
        self.tokenizers = {name: load_tokenizer(s.model, s.revision) for name, s in stages.items()}
        first = stages[names[0]]
        self.dtype = resolve_dtype(job.dtype, job.execution.device, first.model, first.revision)
        self.job = job.model_copy(update={"dtype": str(self.dtype).removeprefix("torch.")})
        check_one_size(job.family, self.configs, SIZES, "; trace within one size")
        config = self.configs[names[0]]
        self.n_layers, self.hidden_size = config.num_hidden_layers, config.hidden_size
        self.shapes = {name: self._shape(name, stage) for name, stage in stages.items()}
        self.vectors = {
            name: load_direction(name, spec, self.hidden_size, self.n_layers)
            for name, spec in job.directions.items()
        }
        self.prompts = {name: self._encoded(name, [p.prompt for p in job.prompts]) for name in names}
        self.sources = {
            name: self._encoded(name, [p.source or p.prompt for p in job.prompts]) for name in set(sources)
        }
        self.layers = {i: self._layers(i) for i in range(len(job.operations))}
        self._check_tokens()
        self._check_top()
        self.content = {
            "models": {name: model_identity(s.model, s.revision) for name, s in stages.items()},
            "directions": {
                name: hashlib.sha256(vector.tobytes()).hexdigest() for name, vector in self.vectors.items()
            },
        }
        completions = (completion_group(self.job),) if job.generate else ()
        self.groups = (output_group(self.job), *completions, *self._activation_groups())
        self.work = tuple(self._work())

    def _shape(self, name: str, stage):
        structure = empty_model(stage.model, stage.revision)
        for i, operation in enumerate(self.job.operations):
            available = recognise(structure).sites
            if operation.site not in available:
                raise JobError(
                    f"operations.{i}: site {operation.site} is no site of {stage.model} "
                    f"({type(structure).__name__} has {', '.join(available)}); edit site"
                )
        return shape_of(structure)

    def _encoded(self, stage: str, texts: list[str]) -> list[Prompt]:
        prompts = [encode(self.tokenizers[stage], "", text) for text in texts]
        room = getattr(self.configs[stage], "max_position_embeddings", None)
        for i, prompt in enumerate(prompts):
            if room and len(prompt.ids) > room:
                raise JobError(
                    f"prompts.{i}: {len(prompt.ids)} tokens, stage {stage} takes {room}; shorten the prompt"
                )
        return prompts

    def _layers(self, i: int) -> tuple[int, ...]:
        try:
            return self.job.operations[i].layers_of(self.n_layers)
        except ValueError as error:
            raise JobError(f"operations.{i}: {error}") from None

    def _check_tokens(self) -> None:
        for i, operation in enumerate(self.job.operations):
            runs = [(stage, self.prompts[stage]) for stage in self.job.stage_names]
            if isinstance(operation, Patch):
                runs.append((operation.source, self.sources[operation.source]))
            for stage, prompts in runs:
                for number, prompt in enumerate(prompts):
                    self._check_positions(i, operation, stage, number, prompt)
                    if isinstance(operation, Patch):
                        self._check_source(i, operation, stage, number, prompt)

    def _check_top(self) -> None:
        for name in self.job.stage_names:
            vocabulary = self.configs[name].get_text_config().vocab_size
            if self.job.top > vocabulary:
                raise JobError(
                    f"top: {self.job.top} is not in 1-{vocabulary}: stage {name} has {vocabulary} tokens; lower top"
                )

    def _check_positions(self, i, operation, stage: str, number: int, prompt: Prompt) -> None:
        n = len(prompt.ids)
        if not isinstance(operation.tokens, str):
            beyond = [t for t in operation.tokens if not -n <= t < n]
            if beyond or len({t % n for t in operation.tokens}) < len(operation.tokens):
                raise JobError(
                    f"operations.{i}: tokens {list(operation.tokens)}: prompt {number} has {n} tokens for stage "
                    f"{stage}, so positions are {-n} to {n - 1}, each once; edit tokens"
                )

    def _check_source(self, i, operation: Patch, stage: str, number: int, prompt: Prompt) -> None:
        given, wanted = len(self.sources[operation.source][number].ids), len(prompt.ids)
        if given != wanted and operation.tokens in ("statement", "all"):
            raise JobError(
                f"operations.{i}: prompt {number}: its source has {given} tokens for {operation.source}, the prompt "
                f"itself {wanted} for {stage}; give texts of equal length, or positions (tokens: [-1])"
            )

    def _activation_groups(self):
        for kind in (Read, Patch):
            of_kind = [(i, o) for i, o in enumerate(self.job.operations) if isinstance(o, kind)]
            for number, (i, operation) in enumerate(of_kind):
                stage = self.job.stage_names[0] if kind is Read else operation.source
                prompts = (self.prompts if kind is Read else self.sources)[stage]
                tokens = self._axis(operation)
                yield activation_group(
                    self.job,
                    operation,
                    number,
                    self.layers[i],
                    tokens,
                    [self._texts(stage, operation, p, len(tokens)) for p in prompts],
                    self.hidden_size,
                )

    def _axis(self, operation) -> list[int]:
        """Labels of the token axis: the positions asked for, or those of the longest prompt."""
        tokens: Tokens = operation.tokens
        if not isinstance(tokens, str):
            return list(tokens)
        if tokens == "last":
            return [-1]
        runs = [*self.prompts.values(), *self.sources.values()]
        return list(range(max(len(columns_of(p, tokens)) for prompts in runs for p in prompts)))

    def _texts(self, stage: str, operation, prompt: Prompt, width: int) -> list[str]:
        texts = [
            str(self.tokenizers[stage].decode([prompt.ids[c]])) for c in columns_of(prompt, operation.tokens)
        ]
        return texts + [""] * (width - len(texts))

    def _work(self):
        """Source runs first, then everything that may need them, stage by stage."""
        job, step = self.job, self.job.prompts_per_unit
        blocks = [(b, min(b + step, len(job.prompts))) for b in range(0, len(job.prompts), step)]
        groups = {group.path: group for group in self.groups}
        patches = sorted(enumerate(job.patches), key=lambda item: list(self.configs).index(item[1].source))
        runs = {block: [] for block in blocks}
        for number, patch in patches:
            for block in blocks:
                unit = _unit(f"trace/source-{number}", patch.source, 0, block, groups)
                runs[block].append(unit.id)
                yield Work(unit=unit, kind="source", stage=patch.source, cells=block[1] - block[0])
        for stage in reversed(job.stage_names):
            model = job.stage_names.index(stage)
            for path in groups:
                for block in blocks if not path.startswith("trace/source") else ():
                    yield Work(
                        unit=_unit(path, stage, model, block, groups),
                        kind="run",
                        stage=stage,
                        cells=(block[1] - block[0]) * len(job.interventions),
                        needs=tuple(runs[block]),
                    )

    def run(self, work: Work, model, store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Do one unit with its stage's model open (see pipeline.plan.Study)."""
        path = work.unit.group
        begin, end = work.unit.region["prompt"]
        runs = self.sources if path.startswith("trace/source") else self.prompts
        prompts = runs[work.open_stage][begin:end]
        if path == "trace/output":
            arrays = self._output(work, model, store, prompts)
        elif path == "trace/completion":
            arrays = self._completions(work, model, prompts)
        else:
            arrays = self._activations(work, model, store, prompts)
        return arrays, {}

    def _output(self, work, model, store, prompts):
        outcomes = [
            model.run(run_operations, [p.ids for p in prompts], edits, top=self.job.top)
            for edits in self._edits(work, store, prompts)
        ]
        tokenizer = self.tokenizers[work.open_stage]
        texts = [[[tokenizer.decode([i]) for i in row] for row in o.top.tolist()] for o in outcomes]
        return {
            "logprob": torch.stack([o.logprob for o in outcomes]).numpy()[None],
            "entropy": torch.stack([o.entropy for o in outcomes]).numpy()[None],
            "next_token": np.array(texts, dtype=object)[None],
        }

    def _completions(self, work, model, prompts):
        tokenizer = self.tokenizers[work.open_stage]
        ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        texts = []
        steered = [
            edit
            for operation, layers in zip(self.job.operations, self.layers.values(), strict=True)
            if isinstance(operation, Steer)
            for edit in self._steered(operation, layers, torch.float32)
        ]
        for edits in ([], steered)[: len(self.job.interventions)]:
            found = model.run(
                generate,
                [p.ids for p in prompts],
                edits,
                None,
                max_new_tokens=self.job.generate,
                stop=ends,
                max_tokens=self.job.execution.max_tokens,
            )
            check_finite(work.unit.id, self.job.dtype, {"logits": found.peak})
            texts.append([tokenizer.decode(ids, skip_special_tokens=True) for ids in found.ids])
        return {"completion": np.array(texts, dtype=object)[None]}

    def _steered(self, operation: Steer, layers: Sequence[int], dtype: torch.dtype) -> list[Edit]:
        """What a steer does to every token: an edit per layer, as each may have its own vector."""
        vectors = torch.from_numpy(self.vectors[operation.direction]).to(dtype)
        return [
            edit_of(
                operation.model_copy(update={"layers": (layer,), "tokens": "all"}),
                vectors if vectors.ndim == 1 else vectors[layer],
                self.n_layers,
            )
            for layer in layers
        ]

    def _activations(self, work, model, store, prompts):
        kind, number = work.unit.group.removeprefix("trace/").split("-")
        operation = (self.job.reads if kind == "read" else self.job.patches)[int(number)]
        layers = self.layers[self.job.operations.index(operation)]
        rows, columns, places = _cells(operation, prompts)
        shape = (len(prompts), len(layers), len(self._axis(operation)), self.hidden_size)
        runs = self._edits(work, store, prompts) if kind == "read" else [[]]
        values = torch.full((len(runs), *shape), torch.nan, dtype=self.dtype)
        for i, edits in enumerate(runs):
            outcome = model.run(
                run_operations,
                [p.ids for p in prompts],
                edits,
                site=operation.site,
                layers=layers,
                rows=rows,
                columns=columns,
            )
            for k, at_cells in enumerate(outcome.values):
                check_finite(work.unit.id, self.job.dtype, {"activation": at_cells})
                values[i, rows, k, places] = at_cells
        return {"activation": as_stored(values)[None]}

    def _edits(self, work, store, prompts) -> list[list[Edit]]:
        """Per intervention of the job: what is changed in the run of these prompts."""
        edits: list[Edit] = []
        for i, operation in enumerate(self.job.operations):
            if isinstance(operation, Read):
                continue
            rows, columns, places = _cells(operation, prompts)
            if isinstance(operation, Steer):
                # The vector is rounded to the model's dtype first, then normalised.
                edits += [
                    replace(edit, rows=rows, columns=columns)
                    for edit in self._steered(operation, self.layers[i], self.dtype)
                ]
                continue
            values = self._source(operation, store, work.unit.region["prompt"])
            edits += [
                Edit(
                    site=operation.site,
                    layers=(layer,),
                    mode="replace",
                    values=values[rows, k, places],
                    rows=rows,
                    columns=columns,
                )
                for k, layer in enumerate(self.layers[i])
            ]
        return [[], edits] if len(self.job.interventions) == 2 else [[]]

    def _source(self, operation: Patch, store, block: tuple[int, int]) -> torch.Tensor:
        """Activations of the source prompts; dims prompt x layer x token x hidden."""
        path = f"trace/source-{self.job.patches.index(operation)}"
        return from_stored(store.read(path, "activation", {"prompt": block})[0, 0], self.job.dtype)

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit (see pipeline.plan.Study)."""
        begin, end = work.unit.region["prompt"]
        source = work.unit.group.startswith("trace/source")
        prompts = (self.sources if source else self.prompts)[work.open_stage][begin:end]
        once = run_cost(self.shapes[work.open_stage], [0], [len(p.ids) for p in prompts])
        times = 1 if source else len(self.job.interventions)
        if work.unit.group == "trace/completion":
            new = run_cost(self.shapes[work.open_stage], [0], [self.job.generate] * len(prompts))
            return Cost(times * self.job.generate, times * (once.multiply_adds + new.multiply_adds))
        return Cost(times * once.forwards, times * once.multiply_adds)

    def summary(self) -> list[dict[str, Any]]:
        """A row per group: units, prompts, cost (see pipeline.plan.Study)."""
        rows = []
        for group in self.groups:
            work = [w for w in self.work if w.unit.group == group.path]
            cost = sum(map(self.cost, work), Cost())
            rows.append(
                {
                    "group": group.path,
                    "prompts": len(self.job.prompts),
                    "layers": group.sizes.get("layer", 0),
                    "tokens": group.sizes.get("token", 1),
                    "forwards": cost.forwards,
                    "multiply-adds": f"{cost.multiply_adds:.2e}",
                }
            )
        return rows


def _unit(path: str, stage: str, model: int, block: tuple[int, int], groups) -> Unit:
    return Unit(
        id=f"{path}/run/{stage}/{block[0]:04d}",
        group=path,
        region={"model": (model, model + 1), "prompt": block},
        arrays=tuple(array.name for array in groups[path].arrays),
    )


def _cells(operation, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cells that an operation means: row and column of each, and its place on the operation's token axis."""
    cells = [
        (row, column, place)
        for row, prompt in enumerate(prompts)
        for place, column in enumerate(columns_of(prompt, operation.tokens))
    ]
    rows, columns, places = torch.tensor(cells).T.clone()
    return rows, columns, places
