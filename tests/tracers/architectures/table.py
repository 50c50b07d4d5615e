"""The architectures that are verified, a row each: its name in transformers, and what its configuration needs to be
tiny. What each offers is in `tracers/models/verified.json`, written by `python -m tests.tracers.architectures.record`.
"""

from __future__ import annotations

import inspect

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZES = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=64, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, head_dim=8,
    n_layer=4, n_head=4, n_embd=32, n_inner=64, num_layers=4, num_heads=4, ffn_dim=64, rotary_dim=8,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    shared_expert_intermediate_size=16, n_group=1, topk_group=1, moe_num_experts=4, moe_k=2, moe_topk=2,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, lru_width=32,
    state_size=8, mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_expand=2, mamba_n_groups=1, mamba_d_ssm=64,
    n_groups=1, ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=16, hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=300,
)  # fmt: skip
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
)
INDEXED = dict(**LATENT, index_n_heads=2, index_head_dim=16, index_topk=64)
MIXED = ["linear_attention", "full_attention"] * 2
HALF = dict(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=100)
SHORT = dict(HALF, sliding_window=6)
"""A window that the prompts outgrow."""

ROWS = {
    "afmoe": {},
    "afmoe-window": dict(sliding_window=6),
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": LATENT,
    "axk2": LATENT,
    "bamba": dict(attn_layer_indices=[1, 3]),
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {},
    "cohere2": HALF,
    "cohere2-window": SHORT,
    "cohere2_moe": {},
    "ctrl": {},
    "cwm": HALF,
    "cwm-window": SHORT,
    "deepseek_v2": dict(**LATENT, first_k_dense_replace=2),
    "deepseek_v3": dict(**LATENT, first_k_dense_replace=2),
    "deepseek_v32": dict(**INDEXED, first_k_dense_replace=2),
    "diffllama": {},
    "doge": {},
    "dots1": dict(n_shared_experts=1),
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": HALF,
    "exaone4-window": SHORT,
    "exaone_moe": {},
    "falcon": {},
    "falcon-alibi": dict(alibi=True, parallel_attn=False),
    "falcon-new": dict(new_decoder_architecture=True, num_kv_heads=2),
    "falcon_h1": {},
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": {},
    "gemma": {},
    "gemma-one_key": dict(num_key_value_heads=1),
    "gemma2": HALF,
    "gemma2-window": SHORT,
    "gemma3_text": HALF,
    "gemma3_text-window": SHORT,
    "gemma3n_text": dict(**HALF, num_kv_shared_layers=2),
    "gemma4_text": dict(**HALF, num_kv_shared_layers=2, global_head_dim=8),
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": INDEXED,
    "gpt2": {},
    "gpt2-scaled": dict(scale_attn_by_inverse_layer_idx=True),
    "gpt_bigcode": {},
    "gpt_bigcode-many_keys": dict(multi_query=False),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]], window_size=6),
    "gpt_neox": {},
    "gpt_neox-sequential": dict(use_parallel_residual=False),
    "gpt_neox_japanese": {},
    "gpt_oss": HALF,
    "gpt_oss-window": SHORT,
    "gptj": {},
    "granite": dict(residual_multiplier=0.22),
    "granite_swa": {},
    "granitemoe": dict(residual_multiplier=0.22),
    "granitemoe_swa": {},
    "granitemoehybrid": dict(
        residual_multiplier=0.22, layer_types=["mamba", "attention"] * 2, shared_intermediate_size=64
    ),
    "granitemoehybrid-attention": dict(
        layer_types=["attention"] * 4, num_local_experts=0, shared_intermediate_size=64
    ),
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hyperclovax": dict(residual_multiplier=0.22, use_post_norm=True),
    "inkling2_text": {},
    "inkling_text": {},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "jetmoe": {},
    "kimi_linear": dict(**LATENT, linear_head_dim=8, linear_num_heads=4, layer_types=MIXED),
    "kolibri1": {},
    "laguna": {},
    "laguna-window": dict(sliding_window=6),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm3": {},
    "llama": {},
    "llama-biases": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama4_text": dict(attention_chunk_size=6, interleave_moe_layer_step=2, intermediate_size_mlp=64),
    "mamba": {},
    "mamba2": dict(num_heads=4, head_dim=16),
    "mellum": {},
    "mimo_v2_flash": {},
    "mimo_v2_flash-window": dict(sliding_window=6),
    "minicpm3": dict(**LATENT, scale_depth=1.4),
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "ministral": {},
    "ministral-window": dict(sliding_window=6),
    "ministral3": {},
    "mistral": dict(sliding_window=100),
    "mistral-window": dict(sliding_window=6),
    "mixtral": {},
    "mixtral-window": dict(sliding_window=6),
    "modernbert-decoder": {},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": dict(moe_shared_expert_intermediate_size=16),
    "olmo": {},
    "olmo-clipped": dict(clip_qkv=0.5),
    "olmo2": {},
    "olmo3": HALF,
    "olmo3-window": SHORT,
    "olmo_hybrid": {},
    "olmoe": {},
    "opt": dict(word_embed_proj_dim=32),
    "opt-post_norm": dict(word_embed_proj_dim=16, do_layer_norm_before=False),
    "persimmon": {},
    "phi": {},
    "phi-norms": dict(qk_layernorm=True),
    "phi3": {},
    "phi3-window": dict(sliding_window=6),
    "phi4_multimodal": dict(
        vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
        audio_config=dict(hidden_size=32, intermediate_size=64, num_blocks=1, num_attention_heads=2),
    ),
    "phimoe": {},
    "qwen2": {},
    "qwen2-mixed": dict(use_sliding_window=True, sliding_window=100, max_window_layers=2),
    "qwen2-window": dict(use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_moe_text": {},
    "qwen3_5_text": {},
    "qwen3_moe": {},
    "qwen3_moe-dense": dict(mlp_only_layers=[0, 2]),
    "qwen3_next": {},
    "recurrent_gemma": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "stablelm-norms": dict(qk_layernorm=True),
    "stablelm-parallel": dict(use_parallel_residual=True),
    "starcoder2": {},
    "starcoder2-window": dict(sliding_window=6),
    "vaultgemma": HALF,
    "vaultgemma-window": SHORT,
    "xglm": {},
    "youtu": LATENT,
    "zamba2": dict(layers_block_type=["mamba", "hybrid"] * 2, num_mem_blocks=1),
    "zaya": dict(num_experts_per_tok=1),
}
"""Name (that of a model type, perhaps with a variant after a dash) -> what its configuration needs beyond `SIZES`."""


SCALES = {"mamba": 2, "minicpm3": 3, "youtu": 3}
"""Factors of the weights, of those that rounding would drown with the usual one."""


def tiny_config(name: str):
    """The tiny configuration of a row."""
    kind = CONFIG_MAPPING[name if name in CONFIG_MAPPING else name.partition("-")[0]]
    taken = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    sizes = {key: value for key, value in SIZES.items() if key in taken}
    for ours, theirs in kind.attribute_map.items():
        if ours in sizes:
            sizes.pop(theirs, None)
    return kind(**{**sizes, **ROWS[name]})


def tiny_module(name: str):
    """A random model of a row, large enough for logits to differ visibly, its norms of weights that matter."""
    import torch

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SCALES.get(name, 6))
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return module
