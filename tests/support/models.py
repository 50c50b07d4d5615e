"""Small random models of real architectures, and a tokenizer over a handful of words."""

from copy import deepcopy

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from posttrace.tracers.models.loading import wrap

SIZE = dict(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
EDGE = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)

CONFIGS = {
    "llama": LlamaConfig(**SIZE, **EDGE, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, **EDGE),
    "mistral": MistralConfig(**SIZE, **EDGE, num_key_value_heads=2, sliding_window=100),
    "qwen2": Qwen2Config(**SIZE, **EDGE, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SIZE, **EDGE, num_key_value_heads=2, head_dim=16),
    "olmo2": Olmo2Config(**SIZE, **EDGE),
    "gpt_neox": GPTNeoXConfig(**SIZE, **EDGE),
    "gpt_neox_sequential": GPTNeoXConfig(**SIZE, **EDGE, use_parallel_residual=False),
}


def mostly_slow(names, fast=("llama", "gpt2")):
    """Names to parametrize with (of architectures, but for others), all but the `fast` ones slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def random_module(name, seed=0):
    """A transformers model with random weights, large enough for logits to differ visibly."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name])).eval()  # a model keeps its config
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return module


def varied_module(name):
    """A random model whose norms have weights and biases that matter."""
    module = random_module(name)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return module


def random_model(name, seed=0):
    return wrap(random_module(name, seed), word_tokenizer(), name=f"random-{name}")


def word_tokenizer(words=()):
    """One token per word or punctuation mark; a leading space belongs to the word."""
    known = ["<pad>", "<s>", "</s>", "<unk>", "\n", " TRUE", " FALSE", *words]
    known += [f"w{i}" for i in range(100)] + [f" w{i}" for i in range(100)]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(known))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\n|[^\w\s]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def probability_difference(module, ids, true, false):
    """P(true) - P(false) of the next token, by plain transformers."""
    with torch.no_grad():
        p = module(ids).logits[0, -1].softmax(-1)
    return float(p[true] - p[false])
