"""Batched steering against one whole forward pass each, both against plain PyTorch; reading chosen tokens."""

import random

import pytest
import torch

from posttrace.tracers import TracerError
from posttrace.tracers.engines import steered_answers as engine
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.edits import Edit, edit_of
from posttrace.tracers.engines.steered_answers import steered_answers
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.operations import Steer
from posttrace.tracers.oracles.steered_answers import (
    check_steered_answers,
    steered_answers_naive,
    steered_completions,
)
from tests.support.models import CONFIGS, mostly_slow, random_model, random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def add(vector, site="resid_post", layers=(0,), columns=(-1,), coefficient=1.0):
    return Edit(site=site, layers=layers, mode="add", values=vector, columns=columns, coefficient=coefficient)


def ablate(vector, site, layers, columns):
    unit = vector / vector.norm()
    return Edit(site=site, layers=layers, mode="ablate", values=unit, columns=columns)


def variants(model, site, rng):
    """Nothing, then edits of every mode over ranges of blocks, at one token and at two."""
    vectors = torch.randn(4, model.hidden_size, generator=rng) * 3
    return [
        None,
        add(vectors[0], site, (0, 1), (-3, -2), 1.0),
        add(vectors[1], site, (0, 1), (-2, -1), -0.5),
        ablate(vectors[2], site, (0, 1), (-3, -2)),
        ablate(vectors[1], site, (1, 2), (-2, -1)),
        add(vectors[3], site, (2,), (-1,), 2.0),
    ]


def both(name, site, shapes, **options):
    model, rng = random_model(name), torch.Generator().manual_seed(1)
    some = prompts(rng, shapes)
    steers = [variants(model, site, rng) for _ in some]
    fast = steered_answers(model, some, steers, answers=ANSWERS, **options)
    slow = steered_answers_naive(model, some, steers, answers=ANSWERS)
    return fast, slow


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", mostly_slow(CONFIGS))
def test_steered_answers_equal_one_forward_each(name, site):
    if site == "resid_mid" and site not in random_model(name).architecture.sites:
        pytest.skip(f"{name} runs its halves in parallel: it has no {site}")
    fast, slow = both(name, site, [(9, 4), (9, 6), (7, 5)])
    assert (slow[:, 1:] - slow[:, :1]).abs().max() > 1e-3, "no steer has an effect: nothing is tested"
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=0)


@pytest.mark.parametrize("max_tokens", [1, 20, 100_000])
def test_batch_size_changes_nothing(max_tokens):
    torch.testing.assert_close(
        *both("llama", "resid_post", [(9, 4), (0, 5)], max_tokens=max_tokens), atol=2e-5, rtol=0
    )


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    sizes, trace = [], engine.trace_cells

    def limited(nn, inputs, *rest, **skipped):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("out of memory")
        return trace(nn, inputs, *rest, **skipped)

    monkeypatch.setattr(engine, "trace_cells", limited)
    torch.testing.assert_close(*both("llama", "resid_mid", [(9, 4)] * 4), atol=2e-5, rtol=0)
    assert max(sizes) > 8 > min(sizes)


@pytest.mark.parametrize("mode", ["add", "subtract", "ablate"])
def test_a_steer_equals_a_forward_hook_of_plain_pytorch(mode):
    module = random_module("llama")
    model = wrap(module, word_tokenizer(), name="llama")
    rng = torch.Generator().manual_seed(0)
    (prompt,) = prompts(rng, [(6, 5)])
    vector = torch.randn(model.hidden_size, generator=rng)
    unit = vector / vector.norm()

    def steer(_module, _inputs, output):
        output = output.clone()
        here = output[0, [-5, -4]]
        removed = (here @ unit)[:, None] * unit
        output[0, [-5, -4]] += {"add": 1.5 * vector, "subtract": -1.5 * vector, "ablate": -removed}[mode]
        return output

    ids = torch.tensor(prompt.ids)[None]
    handles = [module.model.layers[i].register_forward_hook(steer) for i in (0, 1)]
    with torch.no_grad():
        p = module(ids).logits[0, -1].softmax(-1)
        [handle.remove() for handle in handles]
        before = module(ids).logits[0, -1].softmax(-1)
    operation = Steer(direction="d", layers=(0, 1), tokens=(-5, -4), mode=mode, coefficient=1.5)
    steers = [[None, edit_of(operation, vector, model.n_layers)]]
    found = steered_answers(model, [prompt], steers, answers=ANSWERS)[0]
    expected = [float(q[ANSWERS[0]] - q[ANSWERS[1]]) for q in (before, p)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[0] != found[1]


def test_a_wrong_fast_answer_stops_the_run():
    model, rng = random_model("llama"), torch.Generator().manual_seed(1)
    some = prompts(rng, [(4, 4)])
    steers = [variants(model, "resid_post", rng)]
    fast = steered_answers(model, some, steers, answers=ANSWERS)
    options = dict(answers=ANSWERS, share=1.0, rng=random.Random(0))
    n, largest = check_steered_answers(model, some, steers, fast, **options)
    assert n == 6 and largest < 1e-4
    with pytest.raises(TracerError, match=r"variant \d.*a whole forward pass"):
        check_steered_answers(model, some, steers, fast + 0.01, **options)


def test_completions_are_what_transformers_generates():
    module = random_module("llama")
    model = wrap(module, word_tokenizer(), name="llama")
    some = prompts(torch.Generator().manual_seed(2), [(6, 5), (0, 4)])
    vector = torch.full((model.hidden_size,), 3.0)
    found = steered_completions(model, some, [[None, add(vector)]] * 2, n_tokens=4)
    for prompt, (plain, moved) in zip(some, found, strict=True):
        ids = torch.tensor(prompt.ids)[None]
        own = module.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, len(prompt.ids) :]
        assert plain.tolist() == own.tolist()
        assert moved.tolist() != plain.tolist()


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (dict(columns=(-5,)), "token -5 is not in -4 to -1"),
        (dict(columns=None), "edited at every token; give positions from the end"),
        (dict(site="z"), "z is no place in its stream"),
        (dict(layers=(3,)), r"layers: \[3\] are not numbers from 0 to 2"),
        (dict(vector=torch.ones(5)), r"shape \(5,\), must be \(32,\)"),
    ],
)
def test_an_edit_that_does_not_fit_is_named(edit, match):
    model = random_model("llama")
    some = prompts(torch.Generator().manual_seed(2), [(6, 4)])
    with pytest.raises(TracerError, match=match):
        steered_answers(model, some, [[add(**{"vector": torch.ones(32), **edit})]], answers=ANSWERS)


def test_an_operation_becomes_an_edit_of_a_model_that_has_its_layers():
    steer = Steer(direction="truth", layers=(1, 2), tokens=(-6, -5), mode="subtract", coefficient=2.0)
    found = edit_of(steer, torch.ones(4), n_layers=3)
    assert (found.layers, found.columns, found.mode, found.coefficient) == ((1, 2), (-6, -5), "add", -2.0)
    ablated = edit_of(steer.model_copy(update={"mode": "ablate"}), torch.ones(4), n_layers=3)
    assert ablated.mode == "ablate" and ablated.values.tolist() == [0.5] * 4
    with pytest.raises(TracerError, match="2 is not in 0-1"):
        edit_of(steer, torch.ones(4), n_layers=2)
    with pytest.raises(TracerError, match="positions from the end"):
        edit_of(steer.model_copy(update={"tokens": "last"}), torch.ones(4), n_layers=3)


@pytest.mark.parametrize("name", CONFIGS)
def test_chosen_tokens_are_those_of_plain_transformers(name):
    """Prompts of unequal length, the last token and the one before; no code of ours on the other side."""
    module = random_module(name)
    model = wrap(module, word_tokenizer(), name=name)
    some = prompts(torch.Generator().manual_seed(3), [(1, 5), (1, 3), (0, 4)])
    found = read_statements(model, some, site="resid_post", layers=[0, 1], tokens=(-1, -2)).values
    for row, prompt in zip(found, some, strict=True):
        with torch.no_grad():
            states = module(torch.tensor(prompt.ids)[None], output_hidden_states=True).hidden_states
        for layer in (0, 1):
            torch.testing.assert_close(row[layer], states[layer + 1][0, [-1, -2]], atol=2e-4, rtol=1e-4)
