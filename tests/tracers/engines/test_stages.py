"""Path attribution, swaps and other weights against gradients of the weights and whole forward passes."""

import random
import weakref

import pytest
import torch

from posttrace.tracers.engines.behaviours import Row, behaviour_values
from posttrace.tracers.engines.path_attribution import path_attribution, slopes_at
from posttrace.tracers.engines.swaps import cut, only, swapped_values
from posttrace.tracers.engines.weights import (
    control_values,
    direction,
    last_place,
    removed_values,
    rounding_values,
)
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.models.updates import Streamed
from posttrace.tracers.models.weighted import parts_of, weighted_modules
from posttrace.tracers.oracles.stages import (
    check_slopes,
    check_swaps,
    naive_slopes,
    naive_swap,
    shapley_values,
)
from tests.support.models import CONFIGS, mostly_slow, word_tokenizer
from tests.support.updates import questions, two_stages
from tests.tracers.architectures.table import tiny_module


@pytest.fixture(scope="module")
def llama():
    return two_stages("llama")


def by_part(model, slopes, row):
    """Contracted slopes of one point by part."""
    ends = {("embed", -1): slopes.embed[row].sum(), ("unembed", -1): slopes.unembed[row]}
    halves = {
        (name, layer): slopes.modules[row, layer, m].sum()
        for layer in range(model.n_layers)
        for m, name in enumerate(("attn", "mlp"))
    }
    return {part: float(value) for part, value in {**ends, **halves}.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_contraction_equals_gradients_of_the_weights(name):
    """Per part of the model and prompt, in every architecture, to 1e-5 of the parts' size."""
    model, update, _ = two_stages(name)
    prompts = questions()
    points = [(i, 0.3) for i in range(len(prompts))]
    found = slopes_at(model, prompts, update, points)
    part_of = {
        n: one.part for one in reversed(weighted_modules(model.nn._module)) for n in one.names.values()
    }
    tied = model.config.tie_word_embeddings
    for i, prompt in enumerate(prompts):
        naive = dict.fromkeys(parts_of(model.n_layers), 0.0)
        for weight, slope in naive_slopes(model, prompt, update, 0.3).items():
            naive[part_of[weight]] += slope
        fast = by_part(model, found, i)
        if tied:  # one gradient for both places
            for slopes in (naive, fast):
                slopes["embed", -1] += slopes.pop(("unembed", -1))
        scale = sum(map(abs, naive.values()))
        for part, slope in naive.items():
            assert fast[part] == pytest.approx(slope, abs=1e-5 * scale), (name, i, part)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bloom", "opt", "falcon-new", "gemma3_text", "qwen3", "cohere", "mpt", "granite"]
)
def test_contraction_and_swaps_in_further_architectures(name):
    """Among them: one list of all rows' tokens, norms per head, fused and parallel halves, factors, ALiBi."""
    model = wrap(tiny_module(name), word_tokenizer(), name=name, check=False)
    torch.manual_seed(1)
    with torch.no_grad():
        parameters = dict(model.nn._module.named_parameters())
        update = {n: 0.1 * p.std() * torch.randn(p.shape) for n, p in parameters.items()}
        earlier = {n: p - update[n] for n, p in parameters.items()}
    prompts, n = questions(), len(parts_of(model.n_layers))
    found = slopes_at(model, prompts, update, [(i, 0.3) for i in range(len(prompts))])
    settings = [only(3, n, later=True), cut(6, n, below=False)]
    values = swapped_values(model, prompts, earlier, settings)
    for i, prompt in enumerate(prompts):
        naive = naive_slopes(model, prompt, update, 0.3).values()
        assert float(found.total[i]) == pytest.approx(sum(naive), abs=1e-5 * sum(map(abs, naive)))
        for k, setting in enumerate(settings):
            assert float(values[k, i]) == pytest.approx(naive_swap(model, prompt, earlier, setting), abs=1e-4)


def test_each_token_has_what_its_own_output_moves(llama):
    """By finite differences: the behaviour as a module's output moves at one token along what its update adds there."""
    model, update, _ = llama
    prompts = questions()[:1]
    found = slopes_at(model, prompts, update, [(0, 1.0)])
    down = model.nn._module.model.layers[1].mlp.down_proj
    others = {n: torch.zeros_like(u) for n, u in update.items() if n != "model.layers.1.mlp.down_proj.weight"}
    alone = slopes_at(model, prompts, update | others, [(0, 1.0)])
    for token in (2, 5):

        def moved(size, token=token):
            def hook(module, inputs, output):
                output = output.clone()
                output[:, token] += (
                    size * (inputs[0] @ update["model.layers.1.mlp.down_proj.weight"].T)[:, token]
                )
                return output

            handle = down.register_forward_hook(hook)
            value = float(behaviour_values(model, prompts)[0])
            handle.remove()
            return value

        slope = (moved(0.02) - moved(-0.02)) / 0.04
        assert float(alone.modules[0, 1, 1, token]) == pytest.approx(slope, abs=2e-3)
    assert not torch.allclose(found.modules, alone.modules)


def test_a_row_gives_what_it_gives_alone(llama):
    model, update, _ = llama
    prompts = questions()
    points = [(i, s) for i in range(5) for s in (0.1, 0.9)]
    together = slopes_at(model, prompts, update, points)
    for k, (i, s) in enumerate(points):
        alone = slopes_at(model, [prompts[i]], update, [(0, s)], max_tokens=1)
        length = alone.embed.shape[1]
        torch.testing.assert_close(together.modules[k, ..., :length], alone.modules[0], rtol=1e-4, atol=1e-5)
        assert not together.modules[k, ..., length:].any()


def test_attribution_is_complete_and_nodes_are_added_where_it_is_not(llama):
    model, update, earlier = llama
    prompts = questions()
    found = path_attribution(model, prompts, update)
    value = swapped_values(model, prompts, earlier, [cut(0, 8, below=True), cut(8, 8, below=True)])
    effect = value[1] - value[0]
    total = found.modules.nansum((1, 2, 3)) + found.embed.nansum(1) + found.unembed
    torch.testing.assert_close(total - effect, found.residual, rtol=0, atol=2e-4)
    assert (found.residual.abs() <= 0.02 * effect.abs() + 0.01).all()
    coarse = path_attribution(model, prompts, update, nodes=1, tolerance=0.0, most_nodes=1)
    finer = path_attribution(model, prompts, update, nodes=1, tolerance=0.0, most_nodes=32)
    assert (finer.nodes > coarse.nodes).any() and (finer.nodes <= 32).all()
    assert finer.residual.abs().mean() < 0.2 * coarse.residual.abs().mean()
    strict = path_attribution(model, prompts, update, nodes=2, of_mean=1e-3)
    loose = path_attribution(model, prompts, update, nodes=2)
    assert (strict.nodes >= loose.nodes).all() and (strict.nodes > loose.nodes).any()
    assert strict.residual.abs().max() <= 1e-3 * effect.abs().mean() < loose.residual.abs().max()
    slope = sum(naive_slopes(model, prompts[0], update, 0.0).values())
    assert float(found.slope[0, 0]) == pytest.approx(slope, rel=1e-3, abs=1e-3)
    assert found.modules[0, 0, 0, 6:].isnan().all() and found.modules[0, 0, 0, :6].isfinite().all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_second_checkpoint_is_in_memory_one_module_at_a_time(name):
    """Also in the backward pass, and for gpt2, whose linear maps are the other way round and whose ends are tied."""
    model, update, earlier = two_stages(name)
    parameters, prompts, n = dict(model.nn._module.named_parameters()), questions(), len(parts_of(3))
    alive, most = [], 0

    def making(weights):
        def make(key):
            nonlocal most, alive
            made = weights[key].clone()
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(made)]
            most = max(most, len(alive))
            return made

        return Streamed(make, parameters)

    found = path_attribution(model, prompts, making(update))
    wanted = path_attribution(model, prompts, update)
    assert torch.equal(found.modules.nan_to_num(), wanted.modules.nan_to_num())
    assert torch.equal(found.embed.nan_to_num(), wanted.embed.nan_to_num())
    assert torch.equal(found.residual, wanted.residual)
    settings = [cut(c, n, below=True) for c in range(n + 1)]
    values = swapped_values(model, prompts, making(earlier), settings)
    assert torch.equal(values, swapped_values(model, prompts, earlier, settings))
    assert most <= 4, "a weight and a bias, of a module and of the one before it"
    kept = Streamed(lambda key: update[key].clone(), parameters, keep=True)
    assert len(kept) == len(parameters) and all(kept[key] is kept[key] for key in kept)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_weights_in_16_bits_give_what_the_same_weights_in_32_give(name):
    """All is computed in float32, whatever is swapped, removed or attributed."""
    model, update, earlier = two_stages(name)
    prompts, n = questions(), len(parts_of(model.n_layers))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model.nn._module.to(dtype)  # rounded first, then as rounded
        swaps = swapped_values(model, prompts, earlier, [cut(3, n, below=True), only(2, n, later=False)])
        slopes = slopes_at(model, prompts, update, [(i, 0.3) for i in range(len(prompts))])
        options = dict(kind="gaussian", draws=1, seed="x")
        found.append(
            [
                behaviour_values(model, prompts),
                swaps,
                slopes.modules,
                slopes.unembed,
                removed_values(model, prompts, update, alphas=[0.5]),
                control_values(model, prompts, update, **options),
                rounding_values(model, prompts, draws=1, seed="x"),
            ]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", mostly_slow(["llama", "gpt2", "gemma2", "gpt_neox"], fast=["llama"]))
def test_swaps_equal_whole_passes_and_cumulative_ones_end_at_the_stages(name):
    """gpt2 is tied: its embeddings are swapped in one place, its unembedding in the other."""
    model, update, earlier = two_stages(name)
    prompts, n = questions(), len(parts_of(model.n_layers))
    settings = [only(g, n, later=later) for g in range(n) for later in (True, False)]
    settings += [cut(c, n, below=below) for c in range(n + 1) for below in (True, False)]
    values = swapped_values(model, prompts, earlier, settings)
    for k, setting in enumerate(settings):
        for i in (0, 4):
            assert float(values[k, i]) == pytest.approx(
                naive_swap(model, prompts[i], earlier, setting), abs=2e-4
            )
    now = behaviour_values(model, prompts)
    before = removed_values(model, prompts, update, alphas=[1.0])[0]
    for below in (True, False):
        whole, none = (values[settings.index(cut(c, n, below=below))] for c in (n, 0))
        assert torch.equal(whole, now)
        torch.testing.assert_close(none, before, rtol=0, atol=1e-4)
    assert not torch.allclose(values[0], values[1]), "swaps do something"
    assert torch.equal(behaviour_values(model, prompts), now), "the model is as it was"


@pytest.mark.slow
def test_small_updates_have_one_credit_whatever_the_method():
    """To first order attribution, Shapley values, insert and remove agree; Shapley values sum to the effect."""
    model, update, earlier = two_stages("llama", size=1e-3)
    prompt, n = questions()[0], len(parts_of(model.n_layers))
    exact = torch.tensor(shapley_values(model, prompt, earlier))
    found = path_attribution(model, [prompt], update)
    path = torch.cat([found.embed.nansum(1), found.modules[0].nansum(-1).flatten(), found.unembed])
    ends = swapped_values(model, [prompt], earlier, [cut(0, n, below=True), cut(n, n, below=True)])[:, 0]
    assert float(exact.sum()) == pytest.approx(float(ends[1] - ends[0]), abs=1e-5)
    torch.testing.assert_close(path, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    insert = (
        swapped_values(model, [prompt], earlier, [only(g, n, later=True) for g in range(n)])[:, 0] - ends[0]
    )
    torch.testing.assert_close(insert, exact, rtol=0.02, atol=0.05 * float(exact.abs().max()))


def test_controls_are_as_long_as_the_update_in_each_tensor_and_are_drawn_anew(llama):
    model, update, _ = llama
    tensor = update["lm_head.weight"]
    for kind in ("gaussian", "permuted"):
        rng = torch.Generator().manual_seed(0)
        drawn = [direction(tensor, kind, rng) for _ in range(2)]
        for one in drawn:
            assert float(one.norm()) == pytest.approx(float(tensor.norm()), rel=1e-5)
        assert not torch.equal(*drawn)
    assert torch.equal(drawn[0].flatten().sort().values, tensor.flatten().sort().values)
    prompts, now = questions(), behaviour_values(model, questions())
    options = dict(kind="gaussian", draws=2, seed="x")
    values = control_values(model, prompts, update, **options)
    assert torch.equal(values, control_values(model, prompts, update, **options))
    assert not torch.allclose(values[0], values[1]) and not torch.allclose(values[0], now)
    assert torch.equal(behaviour_values(model, prompts), now)


def test_rounding_moves_less_than_half_a_last_place():
    weights = torch.tensor([1.0, 1.5, -3.0, 0.75, 0.0])
    assert torch.equal((weights + 0.49 * last_place(weights)).bfloat16(), weights.bfloat16())
    assert (weights + 0.51 * last_place(weights))[0].bfloat16() != weights[0].bfloat16()
    model, _, _ = two_stages("llama")
    values = rounding_values(model, questions(), draws=3, seed="x")
    now = behaviour_values(model, questions())
    assert 0 < float((values - now).abs().max()) < 0.5


def test_wrong_values_are_found_by_the_spot_checks(llama):
    model, update, earlier = llama
    prompts, n = questions(), len(parts_of(model.n_layers))
    settings = [only(g, n, later=True) for g in range(n)]
    values = swapped_values(model, prompts, earlier, settings)
    common = dict(share=1.0, rng=random.Random(0))
    assert check_swaps(model, prompts, earlier, settings, values=values, **common)[0] == 8
    with pytest.raises(TracerError, match="swap"):
        check_swaps(model, prompts, earlier, settings, values=values + 0.01, **common)
    assert check_slopes(model, prompts, update, **common)[0] == 5


def test_a_module_that_is_not_linear_in_its_weights_is_refused(llama):
    model = llama[0].nn._module
    model.model.layers[0].mlp.extra = torch.nn.PReLU()
    with pytest.raises(TracerError, match=r"layers.0.mlp.extra \(PReLU\) has weights"):
        weighted_modules(model)
    del model.model.layers[0].mlp.extra


def test_scores_are_what_plain_pytorch_gives(llama):
    model, _, _ = llama
    prompts = questions()
    found = behaviour_values(model, prompts)

    def log_p(row: Row):
        with torch.no_grad():
            return model.nn._module(torch.tensor([row.ids])).logits[0].log_softmax(-1)

    first, second, text, entropy, (one, two) = (
        log_p(p[0]) if len(p) == 1 else map(log_p, p) for p in prompts
    )
    ids = prompts[2][0].ids
    expected = [
        float((first[-1, [5, 9]].exp().sum() / first[-1, 6].exp()).log()),
        float(second[-1, 6] - second[-1, 5]),
        float(-text[range(4), ids[1:]].mean()),
        float(-(entropy.exp() * entropy).sum(-1)[:6].mean()),
        float(one[6, 11] + one[7, 12] - two[6, 13] - two[7, 14]),
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
