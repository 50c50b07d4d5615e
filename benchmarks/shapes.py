"""The task: sizes of a random Llama, and pairs of prompts to patch.

>>> SHAPES["small"].layers, SHAPES["small"].cells_per_pair
(8, 120)
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ANSWERS = (5, 6)
"""Token ids of the two answers; no prompt contains them."""
FIRST_WORD = 10
"""Smallest token id in a prompt."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of a batch of pairs."""

    layers: int = 8
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 8
    intermediate: int = 1024
    vocab: int = 1024
    spread: float = 0.06
    """Standard deviation of the random weights."""
    prefix: int = 65
    """Tokens before the statement: beginning of text and few-shot block."""
    statement: int = 15
    first_difference: int = 3
    """Leading statement tokens that the two prompts of a pair have in common."""
    pairs: int = 16
    shared_prefix: bool = True
    """Whether all pairs share one prefix, as few-shot prompts do; otherwise each pair has its own."""
    use_unchanged: bool = True
    """Whether the method knows the first difference; otherwise it computes every cell, as it must across models."""

    @property
    def cells_per_pair(self) -> int:
        return self.layers * self.statement

    @property
    def kv_size(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    def but(self, **changes) -> Shape:
        """Return the shape with some fields changed; MLP and heads keep their proportion to the hidden size."""
        if "hidden" in changes:
            factor = changes["hidden"] / self.hidden
            changes = (
                dict(
                    intermediate=round(self.intermediate * factor),
                    heads=max(1, round(self.heads * factor)),
                    kv_heads=max(1, round(self.kv_heads * factor)),
                    spread=self.spread / factor**0.5,
                )
                | changes
            )
        return replace(self, **changes)


SHAPES = {
    "small": Shape(),
    "tiny": Shape(
        layers=3,
        hidden=32,
        heads=4,
        kv_heads=2,
        intermediate=48,
        vocab=64,
        spread=0.2,
        prefix=6,
        statement=5,
        pairs=3,
    ),
    "hidden-2048": Shape(
        layers=12, hidden=2048, heads=32, kv_heads=8, intermediate=8192, vocab=32000, spread=0.02
    ),
    "llama-3.1-8b-shape": Shape(
        layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocab=128256, spread=0.02, pairs=238
    ),
}


@dataclass(frozen=True)
class Task:
    """Prompts to patch, as token ids: activations of `clean` are patched into `corrupt`."""

    clean: list[list[int]]
    corrupt: list[list[int]]
    start: int
    """Index of the first statement token."""
    layers: int
    answers: tuple[int, int]
    unchanged: list[int] | None
    """Per pair, the number of leading statement tokens without a difference; None to compute every cell."""

    @property
    def cells(self) -> list[tuple[int, int, int]]:
        """Every (pair, layer, statement token)."""
        return [
            (pair, layer, token)
            for pair, ids in enumerate(self.corrupt)
            for layer in range(self.layers)
            for token in range(len(ids) - self.start)
        ]


def make_task(shape: Shape, seed: int = 0) -> Task:
    """Return random pairs that differ in two tokens, from `first_difference` on.

    Examples
    --------
    >>> task = make_task(SHAPES["tiny"])
    >>> [a == b for a, b in zip(task.clean[0], task.corrupt[0])].index(False) - task.start
    3
    """
    rng = random.Random(seed)

    def words(n):
        return [rng.randrange(FIRST_WORD, shape.vocab) for _ in range(n)]

    prefix, clean, corrupt = words(shape.prefix), [], []
    for _ in range(shape.pairs):
        before = prefix if shape.shared_prefix else words(shape.prefix)
        statement = words(shape.statement)
        other = list(statement)
        for token in range(shape.first_difference, min(shape.first_difference + 2, shape.statement)):
            other[token] = (statement[token] - FIRST_WORD + 1) % (shape.vocab - FIRST_WORD) + FIRST_WORD
        clean.append(before + statement)
        corrupt.append(before + other)
    unchanged = [shape.first_difference] * shape.pairs if shape.use_unchanged else None
    return Task(clean, corrupt, shape.prefix, shape.layers, ANSWERS, unchanged)


def random_module(shape: Shape, *, device: str = "cpu", dtype: str = "float32", seed: int = 0):
    """Return a transformers Llama with random weights, made on `device`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        initializer_range=shape.spread,
        max_position_embeddings=max(2048, shape.prefix + shape.statement),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def save_random(shape: Shape, folder: Path) -> None:
    """Write the random Llama as a checkpoint (safetensors, with a tokenizer) that every method can load."""
    random_module(shape).save_pretrained(folder)
    tokenizer(shape.vocab).save_pretrained(folder)


def tokenizer(vocab: int):
    """Return a placeholder tokenizer for wrapping a model; the benchmarks use token ids directly."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocab)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w3"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w3"
    )


def to_json(shape: Shape) -> dict:
    return asdict(shape)
