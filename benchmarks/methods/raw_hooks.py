"""Plain PyTorch: one forward pass per cell over the whole prompt, with a forward hook that writes the patch."""

from __future__ import annotations

import torch

from benchmarks.methods import answer

PEER = "torch"


class Method:
    def __init__(self, load):
        self.model = load.module()
        self.blocks = self.model.model.layers

    @torch.no_grad()
    def logits(self, ids):
        return self._forward(ids).tolist()

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

            def patch(_module, _inputs, output, position=position, value=value):
                output[0, position] = value

            hook = self.blocks[layer].register_forward_hook(patch)
            results.append(answer(self._forward(self.task.corrupt[pair]), self.task.answers))
            hook.remove()
        return results

    def _forward(self, ids):
        return self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0, -1].float()


def read_streams(model, ids) -> list[torch.Tensor]:
    """Return the output of each block of a Llama (dims token x hidden), in order."""
    streams: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: streams.append(output[0]))
        for block in model.model.layers
    ]
    model(input_ids=torch.tensor([ids], device=model.device))
    for hook in hooks:
        hook.remove()
    return streams
