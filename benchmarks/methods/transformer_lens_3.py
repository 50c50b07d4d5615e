"""TransformerLens 3, the last with `HookedTransformer`: its `generic_activation_patch`, one forward pass per cell.

Weights are converted by the library (`convert_llama_weights`) without folding or centring, so the same random model
runs offline without a hub name.
"""

from __future__ import annotations

import torch
from transformer_lens import HookedTransformer
from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

from benchmarks.methods.generic_patch import patch_cells, read_clean

PEER = "transformer_lens"


class Method:
    def __init__(self, load):
        self.model = hooked(load.module(), load)

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids]))[0, -1].tolist()

    @torch.no_grad()
    def prepare(self, task):
        self.task, self.cache = task, read_clean(self.model, task)

    @torch.no_grad()
    def run(self, cells):
        results = []
        for pair in sorted({pair for pair, _, _ in cells}):
            results += patch_cells(
                self.model, self.cache, self.task, [cell for cell in cells if cell[0] == pair]
            )
        return results


def hooked(module, load) -> HookedTransformer:
    """Return a HookedTransformer with the weights of a transformers Llama."""
    c = module.config
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        d_head=c.hidden_size // c.num_attention_heads,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=c.max_position_embeddings,
        act_fn="silu",
        normalization_type="RMS",
        eps=c.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=c.hidden_size // c.num_attention_heads,
        rotary_base=c.rope_parameters["rope_theta"],
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        original_architecture="LlamaForCausalLM",
        device=load.device,
        dtype=getattr(torch, load.dtype),
        init_weights=False,
    )
    model = HookedTransformer(cfg)
    missing = model.load_state_dict(convert_llama_weights(module, cfg), strict=False).missing_keys
    weights = [key for key in missing if "W_" in key or key.endswith(".w")]
    if weights:
        raise RuntimeError(f"TransformerLens: weights without a value: {weights}")
    return model.eval()
