"""pyvene: one intervened forward pass per cell, with the clean run's activations as `source_representations`.

Locations are given per example: in pyvene 0.1.8 a call with a bare integer location sets a flag on the model that makes
later per-example locations silently wrong.
"""

from __future__ import annotations

import pyvene
import torch

from benchmarks.methods import answer
from benchmarks.methods.raw_hooks import read_streams

PEER = "pyvene"


class Method:
    def __init__(self, load):
        self.model = load.module()
        self.patchers = [
            pyvene.IntervenableModel(
                pyvene.IntervenableConfig(
                    [pyvene.RepresentationConfig(layer, "block_output", "pos", 1)], pyvene.VanillaIntervention
                ),
                self.model,
            )
            for layer in range(self.model.config.num_hidden_layers)
        ]

    @torch.no_grad()
    def logits(self, ids):
        return self.model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()

    @torch.no_grad()
    def prepare(self, task):
        self.task = task
        self.source = [read_streams(self.model, ids) for ids in task.clean]

    @torch.no_grad()
    def run(self, cells):
        results = []
        for pair, layer, token in cells:
            position = self.task.start + token
            value = self.source[pair][layer][position]
            patcher = self.patchers[layer]
            _, out = patcher(
                {"input_ids": torch.tensor([self.task.corrupt[pair]])},
                unit_locations={"sources->base": (None, [[[position]]])},
                source_representations={patcher.sorted_keys[0]: value[None, None]},
            )
            results.append(answer(out.logits[0, -1], self.task.answers))
        return results
