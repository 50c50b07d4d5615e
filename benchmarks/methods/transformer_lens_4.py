"""TransformerLens 4: `generic_activation_patch`, one forward pass per cell over all requested pairs.

Pairs are batched (`reduce="none"` keeps them apart), which is the fastest that the utility offers.
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from benchmarks.methods.generic_patch import patch_cells, read_clean

PEER = "transformer_lens"


class Method:
    def __init__(self, load):
        self.model = TransformerBridge.boot_transformers(
            load.folder,
            device=load.device,
            dtype=getattr(torch, load.dtype),
            hf_model=load.module(attn_implementation="eager"),
            tokenizer=AutoTokenizer.from_pretrained(load.folder),
        )

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids]))[0, -1].tolist()

    @torch.no_grad()
    def prepare(self, task):
        self.task, self.cache = task, read_clean(self.model, task)

    @torch.no_grad()
    def run(self, cells):
        return patch_cells(self.model, self.cache, self.task, cells, reduce="none")
