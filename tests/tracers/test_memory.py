"""How many tokens a GPU is given, counted for cards that are not there."""

from types import SimpleNamespace

import pytest
import torch

from posttrace.tracers.batching import memory
from posttrace.tracers.batching.memory import MAX_TOKENS, bytes_of_token, tokens_that_fit
from tests.support.models import random_model

SIZES = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32)
GIB = 2**30


def placed(monkeypatch, *cards, free):
    """A model of 8B shape whose blocks lie on some cards, which have so many bytes free."""
    blocks = [
        SimpleNamespace(parameters=lambda card=card: iter([SimpleNamespace(device=torch.device(card))]))
        for card in cards
    ]
    monkeypatch.setattr(memory, "free_memory", lambda card: free[str(card)])
    return SimpleNamespace(
        device=torch.device(cards[0]),
        dtype=torch.bfloat16,
        config=SimpleNamespace(**SIZES, num_key_value_heads=8),
        architecture=SimpleNamespace(layers="blocks"),
        nn=SimpleNamespace(_module=SimpleNamespace(get_submodule={"blocks": blocks}.get)),
    )


def test_heads_that_share_keys_keep_them_once():
    full, shared = (
        bytes_of_token(SimpleNamespace(**SIZES, num_key_value_heads=n), 2, n_layers=32) for n in (32, 8)
    )
    assert full - shared == 2 * 4 * 2 * 32 * 128 * (32 - 8), "bytes x copies x (keys, values) x blocks x head"


def test_sizes_that_differ_between_blocks_count_with_the_largest():
    several = SimpleNamespace(hidden_size=64, intermediate_size=[64, 128], num_attention_heads=4)
    one = SimpleNamespace(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    assert bytes_of_token(several, 2, 3) == bytes_of_token(one, 2, 3)


def test_the_fullest_card_decides_and_keeps_the_keys_of_its_own_blocks_only(monkeypatch):
    one = placed(monkeypatch, *["cuda:0"] * 32, free={"cuda:0": 12 * GIB})
    alone = tokens_that_fit(one)
    assert alone == 6 * GIB // bytes_of_token(one.config, 2, 32)
    spread = ["cuda:0"] * 16 + ["cuda:1"] * 16
    half = tokens_that_fit(placed(monkeypatch, *spread, free={"cuda:0": 12 * GIB, "cuda:1": 12 * GIB}))
    assert alone < half < 2 * alone
    full = tokens_that_fit(placed(monkeypatch, *spread, free={"cuda:0": 40 * GIB, "cuda:1": 3 * GIB}))
    assert full == 3 * GIB // 2 // bytes_of_token(one.config, 2, 16)


def test_a_model_whose_blocks_are_all_offloaded_gets_the_fewest(monkeypatch):
    model = placed(monkeypatch, "cuda:0", *["meta"] * 3, free={"cuda:0": 3 * GIB})
    model.nn._module.get_submodule("blocks").pop(0)
    assert tokens_that_fit(model) == memory.FEWEST_TOKENS


def test_what_pytorch_holds_unused_is_free(monkeypatch):
    for name, value in [
        ("mem_get_info", (GIB, 80 * GIB)),
        ("memory_reserved", 70 * GIB),
        ("memory_allocated", 16 * GIB),
    ]:
        monkeypatch.setattr(torch.cuda, name, lambda card, value=value: value)
    assert memory.free_memory(torch.device("cuda:0")) == (1 + 70 - 16) * GIB


def test_a_cpu_is_given_what_keeps_its_cores_busy():
    assert tokens_that_fit(random_model("llama")) == MAX_TOKENS


@pytest.mark.parametrize(("free", "tokens"), [(0, 1024), (10**15, 65536)])
def test_batches_stay_within_reason(monkeypatch, free, tokens):
    assert tokens_that_fit(placed(monkeypatch, "cuda:0", free={"cuda:0": free})) == tokens
