"""posttrace: `tracers.engines.patching.patch_grid`, all pairs at once."""

from __future__ import annotations

import torch

from benchmarks.shapes import tokenizer
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import patch_grid
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.prompts import Prompt

PEER = "nnsight"
SITE = "resid_post"


class Method:
    def __init__(self, load):
        self.model = wrap(load.module(), tokenizer(load.shape["vocab"]), name="random", check=False)

    @torch.no_grad()
    def logits(self, ids):
        with self.model.nn.trace(input_ids=torch.tensor([ids])):
            logits = self.model.nn.unembed.output[0, -1].save()
        return logits.float().tolist()

    def prepare(self, task):
        self.task = task
        self.prompts = [prompt(ids, task.start) for ids in task.corrupt]
        self.options = dict(site=SITE, layers=range(task.layers), answers=task.answers)
        clean = [prompt(ids, task.start) for ids in task.clean]
        self.source = read_statements(self.model, clean, **self.options).values[None]
        self.unchanged = None if task.unchanged is None else [task.unchanged]

    def run(self, cells):
        patched = self.grid().patched[0]
        return patched.flatten()[_index(cells, *patched.shape[1:])].tolist()

    def grid(self):
        return patch_grid(self.model, self.prompts, self.source, unchanged=self.unchanged, **self.options)


def prompt(ids, start: int) -> Prompt:
    return Prompt(text="", ids=tuple(ids), start=start, spans=((0, 0),) * (len(ids) - start))


def _index(cells, n_layers: int, n_tokens: int) -> torch.Tensor:
    pair, layer, token = torch.tensor(cells).T
    return (pair * n_layers + layer) * n_tokens + token
