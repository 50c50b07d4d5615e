"""Steered generation: token for token what plain PyTorch hooks give, in a batch of unequal prompts or alone."""

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrace.tracers import Steer, TracerError
from posttrace.tracers.batching.memory import batches
from posttrace.tracers.batching.padding import left_padded
from posttrace.tracers.engines.edits import edit_of
from posttrace.tracers.engines.generation import Completions, generate
from posttrace.tracers.engines.steering import ablation, necessary_edits
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.oracles.generation import check_log_odds, generate_naive
from tests.support.generation import BLOCKS, OPENINGS, plain_hooks, prompts, vector
from tests.support.models import CONFIGS, mostly_slow, random_model, word_tokenizer

NEW = 9


def ablate(model, seed=0):
    return ablation(3 * vector(seed), model.architecture.sites, model.n_layers)


def add(layer=1, coefficient=40.0, seed=0):
    steer = Steer(site="resid_pre", layers=(layer,), tokens="all", direction="r", coefficient=coefficient)
    return [edit_of(steer, vector(seed) / vector(seed).norm(), n_layers=3)]


def generated_with_hooks(model, name, edits, prompt):
    """transformers' own greedy `generate`, one prompt, hooks doing what the edits say."""
    r = edits[0].values

    def nothing(_, stream):
        return stream

    def remove(_, stream):
        return stream - (stream @ r)[..., None] * r / (r @ r)

    def shift(number, stream):
        return stream + edits[0].coefficient * r if number in edits[0].layers else stream

    hooks = (remove,) * 3 if edits[0].mode == "ablate" else (shift, nothing, nothing)
    with torch.no_grad(), plain_hooks(model.nn._module, name, *hooks):
        ids = torch.tensor([prompt])
        out = model.nn._module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
        )
        logits = model.nn._module(input_ids=ids).logits[0, -1]
    p = logits.softmax(0)
    odds = p[list(OPENINGS.refusal)].sum().log() - p[list(OPENINGS.compliant)].sum().log()
    return tuple(out[0, len(prompt) :].tolist()), float(odds)


@pytest.mark.parametrize("what", ["ablation", "addition"])
@pytest.mark.parametrize("name", mostly_slow(BLOCKS))
def test_a_batch_of_unequal_prompts_gives_what_plain_hooks_give_one_by_one(name, what):
    model = random_model(name)
    edits = ablate(model) if what == "ablation" else add()
    done = generate(model, prompts(), edits, OPENINGS, max_new_tokens=NEW)
    plain = generate(model, prompts(), [], OPENINGS, max_new_tokens=NEW)
    assert sum(a != b for a, b in zip(done.ids, plain.ids, strict=True)) >= 2, "steering hardly did anything"
    for row, prompt in enumerate(prompts()):
        ids, odds = generated_with_hooks(model, name, edits, prompt)
        assert done.ids[row] == ids
        assert float(done.log_odds[row]) == pytest.approx(odds, abs=1e-3)


@pytest.mark.parametrize("name", mostly_slow(["llama", "gpt2", "gemma2", "olmo2"]))
def test_the_fast_way_equals_the_naive_one(name):
    """Left-out changes, caches, padding and small batches change nothing."""
    model = random_model(name)
    for edits in ([], ablate(model), add()):
        slow = generate_naive(model, prompts(), edits, OPENINGS, max_new_tokens=NEW)
        for max_tokens in (None, 45):
            fast = generate(model, prompts(), edits, OPENINGS, max_new_tokens=NEW, max_tokens=max_tokens)
            assert fast.ids == slow.ids
            torch.testing.assert_close(fast.log_odds, slow.log_odds, atol=1e-3, rtol=0)


def test_no_trace_of_the_direction_is_left_in_the_stream():
    """At every layer, prompt and new tokens alike, though most of the changes are left out."""
    model, found = random_model("llama"), []

    def look(_, args):
        found.append(float((args[0] @ vector() / vector().norm()).abs().max()))

    blocks = list(model.nn._module.model.layers)
    # What enters the MLP's norm, what enters the next block, and what enters the last norm.
    seen = [b.post_attention_layernorm for b in blocks] + blocks[1:] + [model.nn._module.model.norm]
    handles = [module.register_forward_pre_hook(look) for module in seen]
    generate(model, prompts(), [], OPENINGS, max_new_tokens=NEW)
    without, found[:] = list(found), []
    generate(model, prompts(), ablate(model), OPENINGS, max_new_tokens=NEW)
    for handle in handles:
        handle.remove()
    assert len(found) == len(without) == 6 * NEW
    assert max(found) < 1e-4 < 0.1 < min(without)


def test_an_answer_ends_with_the_token_that_ends_it_and_the_others_go_on():
    model = random_model("llama")
    whole = generate(model, prompts(), [], OPENINGS, max_new_tokens=NEW).ids
    end = whole[0][2]
    cut = generate(model, prompts(), [], OPENINGS, max_new_tokens=NEW, stop=[end]).ids
    for short, long in zip(cut, whole, strict=True):
        assert short == (long[: long.index(end) + 1] if end in long else long)
    assert len(cut[0]) == whole[0].index(end) + 1 and max(map(len, cut)) == NEW
    alone = generate(model, prompts()[:1], [], OPENINGS, max_new_tokens=NEW, stop=[end]).ids
    assert alone[0] == cut[0]


def test_only_changes_without_effect_are_left_out():
    sites = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

    def edits(*steers):
        vectors = {"r": vector(), "s": vector(1)}
        found = [edit_of(steer, vectors[steer.direction], 3) for steer in steers]
        return [(*e.layers, e.site) for e in necessary_edits(found)]

    stream = [site for site in sites if site.startswith("resid")]
    whole = [Steer(site=site, direction="r", mode="ablate", tokens="all") for site in stream]
    assert edits(*whole) == [(0, "resid_pre")] + [
        (layer, site) for layer in range(3) for site in ("attn_out", "resid_post")
    ]
    one = Steer(site="resid_pre", direction="r", mode="ablate", tokens="all", layers=(1,))
    assert edits(one) == [(1, "resid_pre")]
    mid = replace_site(one, "resid_mid")
    assert edits(mid) == [(1, "resid_mid")], "what enters the block still holds the direction"
    assert edits(replace_site(one, "resid_post", layers=(0,)), one) == [(0, "resid_post")]
    other = Steer(site="resid_post", direction="s", mode="ablate", tokens="all", layers=(0,))
    assert edits(other, one) == [(0, "resid_post"), (1, "resid_pre")]
    shift = Steer(site="resid_pre", direction="s", tokens="all", layers=(1,))
    assert (1, "resid_pre") in edits(*whole, shift) and (1, "resid_mid") in edits(*whole, shift)


def replace_site(steer, site, **changes):
    return Steer(**{**steer.model_dump(), "site": site, **changes})


@pytest.mark.parametrize(
    ("steer", "direction", "words"),
    [
        (dict(tokens="last"), vector(), "give `all`, or positions from the end"),
        (dict(tokens=(-1,)), vector(), "only `all` has a meaning"),
        (dict(layers=(3,)), vector(), "3 is not in 0-2"),
        (dict(site="z"), vector(), "z is no place in its stream"),
        (dict(), vector()[:7], r"shape \(7,\)"),
        (dict(), torch.zeros(32), "not be zero"),
        (dict(mode="ablate"), torch.zeros(32), "not zero"),
    ],
)
def test_steering_that_does_not_fit_is_named(steer, direction, words):
    steer = Steer(**{"direction": "r", "tokens": "all", **steer})
    with pytest.raises(TracerError, match=words):
        generate(
            random_model("llama"),
            [[3]],
            [edit_of(steer, direction, n_layers=3)],
            OPENINGS,
            max_new_tokens=1,
        )


def test_a_share_is_computed_again_and_a_wrong_value_stops_the_run():
    model = random_model("llama")
    done = generate(model, prompts(), ablate(model), OPENINGS, max_new_tokens=2)
    n, largest = check_log_odds(
        model, prompts(), ablate(model), OPENINGS, done.log_odds, share=0.5, rng=random.Random(0)
    )
    assert n == 3 and largest < 1e-3
    wrong = replace(done, log_odds=done.log_odds + 1)
    assert isinstance(wrong, Completions)
    with pytest.raises(TracerError, match=r"log-odds of prompt \d: .* a whole forward pass"):
        check_log_odds(
            model, prompts(), ablate(model), OPENINGS, wrong.log_odds, share=0.1, rng=random.Random(0)
        )


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    from posttrace.tracers.engines import generation

    model, whole = random_model("llama"), generation._generate_batch
    expected = generate(model, prompts(), ablate(model), OPENINGS, max_new_tokens=3)
    sizes = []

    def scarce(model, prompts, *others):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *others)

    monkeypatch.setattr(generation, "_generate_batch", scarce)
    found = generate(model, prompts(), ablate(model), OPENINGS, max_new_tokens=3)
    assert found.ids == expected.ids and sizes[0] == 6 and max(sizes[2:]) <= 3


def test_batches_hold_every_row_once_and_keep_to_the_limit():
    lengths = [random.Random(i).randrange(1, 30) for i in range(40)]
    found = batches(lengths, 64)
    assert sorted(row for rows in found for row in rows) == list(range(40))
    assert all(len(rows) == 1 or len(rows) * max(lengths[r] for r in rows) <= 64 for rows in found)
    padded = left_padded([[5, 6, 7], [8]])
    assert padded["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_window_shorter_than_the_prompt_slides_as_it_does_in_transformers(name):
    """Mistral slides it in every block, Gemma 2 in every other; prompts of 3, 20 and 9 tokens, a window of 6."""
    config = deepcopy(CONFIGS[name])
    config.sliding_window = 6
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model = wrap(module, word_tokenizer(), name=name, check=False)
    texts = prompts(lengths=(3, 20, 9))
    done = generate(model, texts, ablate(model), OPENINGS, max_new_tokens=NEW)
    for row, prompt in enumerate(texts):
        assert done.ids[row] == generated_with_hooks(model, name, ablate(model), prompt)[0]
