"""Ablation equals whole forward passes with plain hooks, and what is not run again does not matter."""

import random
from dataclasses import replace

import pytest
import torch

from posttrace.tracers.engines import neuron_ablation
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.neuron_ablation import ablate_neurons, read_text
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.oracles.neuron_ablation import check_ablation
from posttrace.tracers.prompts import encode
from posttrace.tracers.remote.shipping import shipped
from tests.support.models import mostly_slow, random_module, varied_module, word_tokenizer

ROWS = (7, 12, 4)
ABLATIONS = [[3], [1, 5, 9], list(range(20))]


def rows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (n,), generator=generator).tolist() for n in ROWS]


def by_hooks(module, neurons, row, chosen, mean, direct):
    """Entropy and loss of one row by a whole forward pass of the plain module; oracle."""
    ids, between = torch.tensor([row]), slice(1, len(row) - 1)
    norm, down = module.get_submodule(neurons.norm), module.get_submodule(f"{neurons.block}.{neurons.down}")
    seen, hooks = [], [norm.register_forward_hook(lambda m, a, out: seen.append(a[0]))]
    with torch.no_grad():
        module(ids)
        hooks.pop().remove()

        def hold(m, arguments):
            hidden = arguments[0].clone()
            hidden[0, between, chosen] = mean[chosen]
            return (hidden,)

        def freeze(m, arguments, out):
            """The norm written out, with the scale of the unablated run."""
            moved, plain = arguments[0], seen[0]
            if isinstance(m, torch.nn.LayerNorm):
                scale = (plain.var(-1, unbiased=False, keepdim=True) + m.eps).sqrt()
                return (moved - moved.mean(-1, keepdim=True)) / scale * m.weight + m.bias
            eps = getattr(m, "variance_epsilon", None) or m.eps
            gain = m.weight + (1 if "Gemma" in type(m).__name__ else 0)
            return moved / (plain.square().mean(-1, keepdim=True) + eps).sqrt() * gain

        hooks.append(down.register_forward_pre_hook(hold))
        if direct:
            hooks.append(norm.register_forward_hook(freeze))
        log_p = module(ids).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
    entropy = -(log_p.exp() * log_p).sum(-1)[between].mean()
    loss = -log_p[range(1, len(row) - 1), row[2:]].mean()
    return float(entropy), float(loss)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("name", mostly_slow(["llama", "gpt2", "gpt_neox", "gemma2", "olmo2"]))
def test_effects_equal_whole_passes_with_hooks(name, layer):
    module = varied_module(name)
    model = wrap(module, word_tokenizer(), name=name)
    neurons = find_neurons(module, layer)
    mean = torch.linspace(-1, 2, neurons.n_neurons)
    found = ablate_neurons(model, rows(), neurons=neurons, mean=mean, ablations=ABLATIONS)
    moved = 0.0
    for a, chosen in enumerate(ABLATIONS):
        for r, row in enumerate(rows()):
            for direct, how in ((False, "total"), (True, "direct")):
                entropy, loss = by_hooks(module, neurons, row, chosen, mean, direct)
                assert getattr(found, f"entropy_{how}")[a, r] == pytest.approx(entropy, abs=2e-5)
                assert getattr(found, f"loss_{how}")[a, r] == pytest.approx(loss, abs=2e-5)
            moved = max(moved, float((found.entropy_total - found.entropy_direct)[a, r].abs()))
    assert moved > 1e-3, "the frozen norm makes a difference here, or the test would not see it"


def test_reading_gives_the_activations_that_go_into_the_projection(monkeypatch):
    module = varied_module("llama")
    neurons, given = find_neurons(module), []
    hook = module.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda m, a: given.append(a[0][0]))
    with torch.no_grad():
        logits = [module(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows()]
    hook.remove()
    found = read_text(wrap(module, word_tokenizer(), name="llama"), rows(), neurons=neurons)
    expected = sum(hidden[1:-1].double().sum(0) for hidden in given)
    torch.testing.assert_close(found.activation, expected, rtol=1e-4, atol=1e-4)
    assert found.n_tokens.tolist() == [n - 2 for n in ROWS]
    for r, (row, log_p) in enumerate(zip(rows(), logits, strict=True)):
        assert found.loss[r] == pytest.approx(-float(log_p[range(1, len(row) - 1), row[2:]].mean()), abs=1e-5)
    # Every row and every token in a forward pass of its own.
    monkeypatch.setattr(neuron_ablation, "MAX_VALUES", 1)
    model = wrap(module, word_tokenizer(), name="llama")
    alone = read_text(model, rows(), neurons=neurons)
    torch.testing.assert_close(alone.entropy, found.entropy, rtol=0, atol=1e-5)


def test_neurons_held_at_what_they_are_change_nothing():
    module = varied_module("llama")
    model, neurons = wrap(module, word_tokenizer(), name="llama"), find_neurons(module)
    row = [rows()[0][:3]]  # one scored token: its activation is the mean
    plain = read_text(model, row, neurons=neurons)
    found = ablate_neurons(
        model, row, neurons=neurons, mean=plain.activation.float(), ablations=[list(range(64))]
    )
    for values, expected in ((found.entropy_total, plain.entropy), (found.loss_direct, plain.loss)):
        torch.testing.assert_close(values[0], expected, rtol=0, atol=1e-5)


def test_answers_are_those_of_the_whole_distribution():
    module = varied_module("gemma2")  # its logits are capped after the unembedding
    model = wrap(module, word_tokenizer(), name="gemma2")
    prompts = [encode(model.tokenizer, "w1 w2 TRUE\n", text) for text in ("w3 w4", "w5 w6 w7 w8")]
    answers = tuple(model.tokenizer.convert_tokens_to_ids([" TRUE", " FALSE"]))
    found = read_answers(model, prompts, answers=answers)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            log_p = module(torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
        assert found.logit_diff[i] == pytest.approx(float(log_p[answers[0]] - log_p[answers[1]]), abs=1e-5)
        assert found.answer_mass[i] == pytest.approx(float(log_p[list(answers)].exp().sum()), rel=1e-4)
        assert found.entropy[i] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-4)


def test_a_wrong_effect_is_noticed_by_the_whole_passes():
    module = varied_module("olmo2")
    model, neurons = wrap(module, word_tokenizer(), name="olmo2"), find_neurons(module)
    same = dict(neurons=neurons, mean=torch.linspace(-1, 2, neurons.n_neurons), ablations=ABLATIONS)
    found = ablate_neurons(model, rows(), **same)
    n, largest = check_ablation(model, rows(), effects=found, share=1.0, rng=random.Random(0), **same)
    assert n == 8 and largest < 1e-4
    wrong = replace(found, loss_direct=found.loss_direct + torch.tensor([[0.0], [0.0], [0.01]]))
    with pytest.raises(TracerError, match=r"loss \(direct\): .* a whole forward pass"):
        check_ablation(model, rows(), effects=wrong, share=1.0, rng=random.Random(0), **same)


@pytest.mark.parametrize("engine", [read_text, ablate_neurons, check_ablation, read_answers])
def test_the_engines_run_where_this_project_is_not(engine):
    blob, sources = shipped((engine, find_neurons(random_module("llama"))))
    assert f"{engine.__module__}.{engine.__name__}" in sources and len(blob) < 50_000
    # There, values of weights may be withheld, without an error: modules are called instead.
    assert not any(
        ".weight" in s
        for name, s in sources.items()
        if name.startswith("posttrace.tracers.engines.neuron_ablation")
    )
