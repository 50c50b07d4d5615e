"""The study `trace`: any operations on any prompts, for questions that the other studies do not ask."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.studies.trace.arrays import (
    activation_group,
    completion_group,
    lens_group,
    output_group,
)
from posttrace.pipeline.studies.trace.inputs import TraceInputs, read_inputs
from posttrace.pipeline.studies.trace.job import TraceJob
from posttrace.pipeline.studies.trace.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.pipeline.tensors import as_stored, filled, from_stored
from posttrace.stores import Group
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.activations import columns_of
from posttrace.tracers.engines.edits import Edit, edit_of
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.interventions import MAX_CELLS, run_lens, run_operations
from posttrace.tracers.operations import Lens, Patch, Read, Steer
from posttrace.tracers.prompts import Prompt


class Trace(Study[TraceJob, TraceInputs]):
    """A `trace` job, planned."""

    gaps = frozenset({"activation", "projection", "lens_logprob"})
    """Prompts are of unequal length."""

    def check(self, job: TraceJob) -> None:
        self.stages.check_one_size(fix="trace within one size")
        for i, operation in enumerate(job.operations):
            self.stages.check_site(operation.site, f"operations.{i}: site")
        self.layers = {i: _layers(job, i, self.stages) for i in range(len(job.operations))}
        lenses = [(i, o) for i, o in enumerate(job.operations) if isinstance(o, Lens)]
        for name in job.stage_names:
            vocabulary = self.stages.configs[name].get_text_config().vocab_size
            for place, top in [("top", job.top), *((f"operations.{i}: top", o.top) for i, o in lenses)]:
                if top > vocabulary:
                    raise JobError(
                        f"{place}: {top} is not in 1-{vocabulary}: stage {name} has {vocabulary} tokens; lower top"
                    )

    def read_inputs(self) -> TraceInputs:
        return read_inputs(self.job, self.stages)

    def chats(self) -> tuple[str, ...]:
        return self.stages.names if self.job.has_chats else ()

    def input_content(self) -> dict[str, Any]:
        vectors = self.inputs.vectors.items()
        return {"directions": {name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in vectors}}

    def arrays(self) -> Iterator[Group]:
        yield output_group(self.job)
        if self.job.generate:
            yield completion_group(self.job)
        job, first = self.job, self.job.stage_names[0]
        kept: list[tuple[int, Read | Lens | Patch]] = [
            *enumerate(job.reads), *enumerate(job.lenses), *enumerate(job.patches)
        ]  # fmt: skip
        for number, operation in kept:
            layers = self.layers[self.job.operations.index(operation)]
            tokens = self.inputs.token_axis(operation)
            stage, prompts = self.inputs.runs(operation, first)
            found = [[p.ids[c] for c in columns_of(p, operation.tokens)] for p in prompts]
            decode = self.stages.tokenizers[stage].decode
            texts = [filled([str(decode([i])) for i in row], len(tokens), "") for row in found]
            ids = [filled(row, len(tokens), -1) for row in found]
            if isinstance(operation, Lens):
                yield lens_group(job, operation, number, layers, tokens, texts, ids)
            else:
                hidden_size = self.stages.hidden_size
                yield activation_group(job, operation, number, layers, tokens, texts, ids, hidden_size)

    def units(self) -> Iterator[Work]:
        return planned(self.job, {group.path: group for group in self.groups}, self.stages.names)

    def _prompts(self, work: Work) -> list[Prompt]:
        runs = self.inputs.sources if work.kind == "source" else self.inputs.prompts
        return runs[work.open_stage][slice(*work.unit.region["prompt"])]

    def run_next_token(self, work: Work, model, store) -> Result:
        """Compute the next token of every prompt, with and without the operations."""
        prompts = self._prompts(work)
        outcomes = [
            model.run(run_operations, [p.ids for p in prompts], edits, top=self.job.top)
            for edits in self._edits(work, store, prompts)
        ]
        tokenizer = self.stages.tokenizers[work.open_stage]
        texts = [[[tokenizer.decode([i]) for i in row] for row in o.top.tolist()] for o in outcomes]
        return {
            "logprob": torch.stack([o.logprob for o in outcomes]).numpy()[None],
            "entropy": torch.stack([o.entropy for o in outcomes]).numpy()[None],
            "next_token": np.array(texts, dtype=object)[None],
            "next_token_id": torch.stack([o.top for o in outcomes]).to(torch.int32).numpy()[None],
        }, {}

    def run_generate(self, work: Work, model, store) -> Result:
        """How every prompt goes on, with and without the patches and steers."""
        prompts = self._prompts(work)
        tokenizer = self.stages.tokenizers[work.open_stage]
        texts, ids = [], []
        for edits in self._edits(work, store, prompts, generating=True):
            found = model.run(
                generate,
                [p.ids for p in prompts],
                edits,
                None,
                max_new_tokens=self.job.generate,
                stop=self.stages.end_tokens[work.open_stage],
                max_tokens=self.job.execution.max_tokens,
            )
            check_finite(work.unit.id, self.job.dtype, {"logits": found.peak})
            texts.append([tokenizer.decode(row, skip_special_tokens=True) for row in found.ids])
            ids.append([filled(row, self.job.generate, -1) for row in found.ids])
        return {
            "completion": np.array(texts, dtype=object)[None],
            "completion_id": np.array(ids, dtype="int32")[None],
        }, {}

    def _steered(self, operation: Steer, layers: Sequence[int], dtype: torch.dtype) -> list[Edit]:
        """Return a steer's edits of every token: one per layer, as each may have its own vector."""
        vectors = torch.from_numpy(self.inputs.vectors[operation.direction]).to(dtype)
        return [
            edit_of(
                operation.model_copy(update={"layers": (layer,), "tokens": "all"}),
                vectors if vectors.ndim == 1 else vectors[layer],
                self.stages.n_layers,
            )
            for layer in layers
        ]

    def run_read(self, work: Work, model, store) -> Result:
        """Compute the activations that a read asks for, with and without the operations."""
        number = int(work.unit.group.removeprefix("trace/read-"))
        operation = self.job.reads[number]
        found, spans = self._activations(
            work, model, operation, self._edits(work, store, self._prompts(work))
        )
        if self.inputs.vectors:
            layers = self.layers[self.job.operations.index(operation)]
            values = from_stored(found["activation"][0], self.job.dtype).float()
            found["projection"] = self._projections(values, layers).numpy()[None]
        return found, spans

    def _projections(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Compute the component along every declared direction; dims of values, the last one direction."""
        columns = []
        for vector in map(torch.from_numpy, self.inputs.vectors.values()):
            units = vector / vector.norm(dim=-1, keepdim=True)
            along = units if units.ndim == 1 else units[list(layers)][:, None]  # layer x 1 x hidden
            columns.append((values * along).sum(-1))
        return torch.stack(columns, dim=-1)

    def _lens_of(self, work: Work) -> tuple[Lens, tuple[int, ...]]:
        """Return the lens that a unit applies, and its layers."""
        operation = self.job.lenses[int(work.unit.group.removeprefix("trace/lens-"))]
        return operation, self.layers[self.job.operations.index(operation)]

    def run_lens(self, work: Work, model, store) -> Result:
        """Compute what the stream would say next at a lens's cells, with and without the operations."""
        operation, layers = self._lens_of(work)
        prompts = self._prompts(work)
        edits = self._edits(work, store, prompts)
        rows, columns, places = _cells(operation, prompts)
        shape = (
            len(edits), len(prompts), len(layers), len(self.inputs.token_axis(operation)), operation.top
        )  # fmt: skip
        logprob, ids = torch.full(shape, torch.nan), torch.full(shape, -1, dtype=torch.int32)
        texts = np.full(shape, "", dtype=object)
        decode = self.stages.tokenizers[work.open_stage].decode
        for i, edit in enumerate(edits):
            where = dict(site=operation.site, layers=layers, rows=rows, columns=columns, top=operation.top)
            outcome = model.run(run_lens, [p.ids for p in prompts], edit, **where)
            for k in range(len(layers)):
                logprob[i, rows, k, places] = outcome.logprob[k]
                ids[i, rows, k, places] = outcome.top[k].to(torch.int32)
                texts[i, rows, k, places] = [[decode([t]) for t in row] for row in outcome.top[k].tolist()]
        check_finite(work.unit.id, self.job.dtype, {"lens_logprob": logprob[:, rows, :, places]})
        return {
            "lens_logprob": logprob.numpy()[None],
            "lens_token": texts[None],
            "lens_token_id": ids.numpy()[None],
        }, {}

    def run_source(self, work: Work, model, store) -> Result:
        """Compute the activations that a patch puts in."""
        number = int(work.unit.group.removeprefix("trace/source-"))
        return self._activations(work, model, self.job.patches[number], [[]])

    def _activations(self, work: Work, model, operation: Read | Patch, runs: list[list[Edit]]) -> Result:
        """Activations at an operation's cells; runs: the edits of each run."""
        prompts = self._prompts(work)
        layers = self.layers[self.job.operations.index(operation)]
        rows, columns, places = _cells(operation, prompts)
        shape = (len(prompts), len(layers), len(self.inputs.token_axis(operation)), self.stages.hidden_size)
        values = torch.full((len(runs), *shape), torch.nan, dtype=self.stages.dtype)
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
        return {"activation": as_stored(values)[None]}, {}

    def _edits(self, work, store, prompts, generating: bool = False) -> list[list[Edit]]:
        """Per intervention of the job: what is changed in the run of these prompts.

        While generating, steers at all tokens are at work in the new ones, too.
        """
        edits: list[Edit] = []
        for i, operation in enumerate(self.job.operations):
            if isinstance(operation, Read | Lens):
                continue
            rows, columns, places = _cells(operation, prompts)
            if isinstance(operation, Steer) and generating and operation.tokens == "all":
                edits += self._steered(operation, self.layers[i], torch.float32)
                continue
            if isinstance(operation, Steer):
                # The vector is rounded to the model's dtype first, then normalised.
                edits += [
                    replace(edit, rows=rows, columns=columns)
                    for edit in self._steered(operation, self.layers[i], self.stages.dtype)
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
        prompts = self._prompts(work)
        lengths = [len(p.ids) for p in prompts]
        shape = self.stages.shapes[work.open_stage]
        once, times = run_cost(shape, [0], lengths), len(self.job.interventions)
        if work.kind == "source":
            return once
        if work.kind == "generate":
            new = run_cost(shape, [0], [self.job.generate] * len(lengths))
            return Cost(times * self.job.generate, times * (once.multiply_adds + new.multiply_adds))
        if work.kind == "lens":
            operation, layers = self._lens_of(work)
            cells = len(layers) * sum(len(columns_of(p, operation.tokens)) for p in prompts)
            config = self.stages.configs[work.open_stage].get_text_config()
            once += Cost(math.ceil(cells / MAX_CELLS), cells * config.hidden_size * config.vocab_size)
        return once * times

    def facts(self, group: Group) -> dict[str, Any]:
        return {
            "group": group.path,
            "prompts": len(self.job.prompts),
            "layers": group.sizes.get("layer", 0),
            "tokens": group.sizes.get("token", 1),
        }


def _layers(job: TraceJob, i: int, stages: Stages) -> tuple[int, ...]:
    try:
        return job.operations[i].layers_of(stages.n_layers)
    except ValueError as error:
        raise JobError(f"operations.{i}: {error}") from None


def _cells(operation, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the cells that an operation means: row and column of each, and its place on the operation's token axis."""
    cells = [
        (row, column, place)
        for row, prompt in enumerate(prompts)
        for place, column in enumerate(columns_of(prompt, operation.tokens))
    ]
    rows, columns, places = torch.tensor(cells).T.clone()
    return rows, columns, places
