"""TransformerLens 3 at its best: the cells of a layer as one batch, started above the patch (`start_at_layer`).

The library has no such utility, but a user can write this with its hooks.
"""

from __future__ import annotations

import torch

from benchmarks.methods import transformer_lens_3

PEER = transformer_lens_3.PEER


class Method(transformer_lens_3.Method):
    @torch.no_grad()
    def run(self, cells):
        found = {}
        for pair in sorted({pair for pair, _, _ in cells}):
            ids = torch.tensor(self.task.corrupt[pair])[None]
            _, own = self.model.run_with_cache(
                ids, names_filter=lambda name: name.endswith("hook_resid_post")
            )
            for layer in range(self.task.layers):
                tokens = [token for p, at, token in cells if (p, at) == (pair, layer)]
                if tokens:
                    logits = self._layer(own, pair, layer, tokens)
                    found |= {
                        (pair, layer, token): value for token, value in zip(tokens, logits, strict=True)
                    }
        return [found[cell] for cell in cells]

    def _layer(self, own, pair, layer, tokens):
        name = f"blocks.{layer}.hook_resid_post"
        positions = self.task.start + torch.tensor(tokens)
        stream = own[name].repeat(len(tokens), 1, 1)
        stream[torch.arange(len(tokens)), positions] = self.cache[name][pair, positions]
        if layer + 1 < self.task.layers:
            logits = self.model(stream, start_at_layer=layer + 1)[:, -1]
        else:
            logits = self.model.unembed(self.model.ln_final(stream))[:, -1]
        return (logits[:, self.task.answers[0]] - logits[:, self.task.answers[1]]).tolist()
