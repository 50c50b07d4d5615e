"""Attribution patching is the slope of the exact grid, no more: both halves of that are held here."""

from functools import cache

import pytest
import torch

from posttrace import tracers
from posttrace.tracers import SITES, TracerError
from posttrace.tracers.engines import attribution
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.attribution import attribution_grid
from posttrace.tracers.engines.patching import patch_grid
from posttrace.tracers.models.loading import wrap
from tests.support.models import CONFIGS, mostly_slow, random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts

SHAPES = [(9, 4), (6, 3), (9, 4)]
"""(prefix, statement) tokens: one prefix shared, one shorter, one statement shorter."""


@cache
def model_of(name, dtype=torch.float64):
    return wrap(random_module(name).to(dtype), word_tokenizer(), name=f"random-{name}")


def runs(model, site, shapes=SHAPES, seed=0):
    """Corrupt prompts, their activations, those of other prompts (prompt x layer x token x hidden), and options."""
    rng = torch.Generator().manual_seed(seed)
    corrupt, clean = prompts(rng, shapes), prompts(rng, shapes)
    options = dict(site=site, layers=range(model.n_layers), answers=ANSWERS)
    own, source = (read_statements(model, some, **options).values for some in (corrupt, clean))
    return corrupt, own, source, options


def effects(grid):
    return grid.patched - grid.unpatched[None, :, None, None]


def slopes_of_exact_grid(model, corrupt, own, source, options, step=0.01):
    """Change per whole patch, from patches of a small part of it: central differences, Richardson's extrapolation."""
    moves = torch.stack([own + part * step * (source - own) for part in (1, -1, 2, -2)])
    up, down, far_up, far_down = patch_grid(model, corrupt, moves, **options).patched
    near, far = (up - down) / (2 * step), (far_up - far_down) / (4 * step)
    return (4 * near - far) / 3


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", mostly_slow(CONFIGS))
def test_the_estimate_is_the_slope_of_the_exact_grid(name, site):
    model = model_of(name)
    if site == "resid_mid" and site not in model.architecture.patchable:
        pytest.skip(f"{name} runs its halves in parallel: it has no {site}")
    corrupt, own, source, options = runs(model, site)
    estimate = attribution_grid(model, corrupt, source[None], **options)
    slopes = slopes_of_exact_grid(model, corrupt, own, source, options)
    scale = slopes.nan_to_num().abs().max()
    assert slopes[~slopes.isnan()].std() > 0.05 * scale, "the slopes are flat: nothing is tested"
    torch.testing.assert_close(effects(estimate)[0], slopes, atol=2e-4 * scale, rtol=0, equal_nan=True)
    exact = patch_grid(model, corrupt, source[None], **options)
    torch.testing.assert_close(estimate.unpatched, exact.unpatched)


def test_arguments_and_result_are_those_of_the_exact_grid():
    model = model_of("llama")
    corrupt, own, source, options = runs(model, "resid_post")
    sources = torch.stack([source, own]).nan_to_num()  # no help from the padding of what is given
    estimate, exact = (grid(model, corrupt, sources, **options) for grid in (attribution_grid, patch_grid))
    assert estimate.patched.shape == exact.patched.shape == (2, 3, 3, 4)
    assert estimate.patched.dtype == estimate.unpatched.dtype == torch.float32
    assert torch.equal(estimate.patched.isnan(), exact.patched.isnan())
    assert torch.isnan(estimate.patched[:, 1, :, 3:]).all()
    assert tracers.attribution_grid is attribution_grid


def test_it_is_an_estimate_and_a_whole_patch_misses():
    """A hundredth of a patch is nearly linear; a whole one goes through norms and softmaxes, and is not."""
    model = model_of("llama")
    corrupt, own, source, options = runs(model, "resid_pre")

    def worst_miss(part):
        moved = (own + part * (source - own))[None]
        estimate, exact = (
            effects(g(model, corrupt, moved, **options)) for g in (attribution_grid, patch_grid)
        )
        return float((estimate - exact).nan_to_num().abs().max() / exact.nan_to_num().abs().max())

    assert worst_miss(0.01) < 0.05
    assert worst_miss(1) > 0.5


def test_a_patch_that_cannot_reach_the_answer_is_no_change_at_all():
    model = model_of("llama")
    corrupt, own, source, options = runs(model, "resid_post", [(9, 4)])
    estimate = attribution_grid(model, corrupt, torch.stack([source, own]), **options)
    assert torch.equal(estimate.patched[0, 0, -1, :-1], estimate.unpatched.expand(3)), (
        "after the last attention"
    )
    assert torch.equal(estimate.patched[1, 0], estimate.unpatched.expand(3, 4)), "its own activations"
    assert effects(estimate)[0, 0, -1, -1] != 0


@pytest.mark.parametrize("site", SITES)
def test_some_layers_alone_give_what_they_give_among_all(site):
    model = model_of("gpt2")
    corrupt, _, source, options = runs(model, site)
    whole = attribution_grid(model, corrupt, source[None], **options)
    first = source.shape[1] // 3  # of three layers, or of three times the heads
    some = attribution_grid(model, corrupt, source[None, :, first:], **{**options, "layers": [1, 2]})
    torch.testing.assert_close(some.patched, whole.patched[:, :, first:], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_patch_add_up_because_products_are_summed_in_float32(dtype):
    """Summed in bfloat16, the 32 parts would miss their sum by three digits."""
    model = model_of("llama", dtype)
    corrupt, own, source, options = runs(model, "resid_post", [(9, 4)])
    parts = own.repeat(own.shape[-1] + 1, 1, 1, 1, 1)
    for component in range(own.shape[-1]):
        parts[component, ..., component] = source[..., component]
    parts[-1] = source[0]
    found = effects(attribution_grid(model, corrupt, parts, **options))
    scale = found[-1].abs().max()
    torch.testing.assert_close(found[:-1].sum(0), found[-1], atol=1e-4 * scale, rtol=0)


def test_tokens_that_both_runs_share_are_no_change_although_rounding_differs():
    model = model_of("llama", torch.float32)
    corrupt, own, _, options = runs(model, "resid_post", [(9, 4)])
    rounded = (own + 1e-4 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0)))[None]
    estimate = attribution_grid(model, corrupt, rounded, unchanged=[[2]], **options)
    assert torch.equal(estimate.patched[0, 0, :, :2], estimate.unpatched.expand(3, 2))
    assert (effects(estimate)[0, 0, :-1, 2:] != 0).all()


def test_gradients_are_kept_only_where_they_are_needed():
    """None for parameters, none before the first wanted block; and the model is left as it was."""
    model = model_of("llama", torch.float32)
    corrupt, _, source, options = runs(model, "resid_post")

    def kept(layers):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            picked = source[None, :, list(layers)]
            attribution_grid(model, corrupt, picked, **{**options, "layers": layers})
        return len(sizes)

    assert 0 < kept([2]) < 0.5 * kept([0, 1, 2])
    parameters = list(model.nn._module.parameters())
    assert all(p.requires_grad and p.grad is None for p in parameters)


def test_it_runs_where_gradients_are_switched_off():
    model = model_of("llama")
    corrupt, _, source, options = runs(model, "mlp_out")
    usual = attribution_grid(model, corrupt, source[None], **options)
    with torch.no_grad():
        again = attribution_grid(model, corrupt, source[None], **options)
    assert torch.equal(usual.patched.nan_to_num(), again.patched.nan_to_num())


def test_one_pass_for_all_prompts_and_pieces_when_memory_runs_out(monkeypatch):
    """The device refuses more than two prompts at once: the grid is the same, in smaller pieces."""
    model = model_of("llama")
    corrupt, _, source, options = runs(model, "resid_post", [(9, 4), (6, 3), (9, 2), (9, 4), (3, 3)])
    rows, limit, trace = [], 99, attribution._trace_slopes

    def limited(nn, inputs, *rest):
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > limit:
            raise torch.OutOfMemoryError("out of memory")
        return trace(nn, inputs, *rest)

    monkeypatch.setattr(attribution, "_trace_slopes", limited)
    whole = attribution_grid(model, corrupt, source[None].repeat(2, 1, 1, 1, 1), **options)
    assert rows == [5], "two sources, five prompts, one pass"
    limit, rows[:] = 2, []
    pieces = attribution_grid(model, corrupt, source[None].repeat(2, 1, 1, 1, 1), **options)
    assert rows == [5, 2, 3, 1, 2]
    torch.testing.assert_close(pieces.patched, whole.patched, equal_nan=True)
    rows.clear()
    few = attribution_grid(model, corrupt, source[None], max_tokens=8, **options)
    assert rows == [2, 2, 1]
    torch.testing.assert_close(few.patched, whole.patched[:1], equal_nan=True)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        attribution_grid(model, corrupt, source[None], **options)


@pytest.mark.parametrize(
    ("name", "shape", "changed", "words"),
    [
        ("llama", (1, 1, 3, 3, 32), {}, "equal token lengths"),
        ("llama", (1, 1, 2, 4, 32), {"layers": [2, 0]}, "in increasing order"),
        ("gpt_neox", (1, 1, 3, 4, 32), {"site": "resid_mid"}, "choose one of resid_pre, z, attn_out"),
    ],
)
def test_a_mistake_is_told(name, shape, changed, words):
    model = model_of(name)
    corrupt = prompts(torch.Generator().manual_seed(0), [(3, 4)])
    options = dict(site="resid_post", layers=range(3), answers=ANSWERS) | changed
    with pytest.raises(TracerError, match=words):
        attribution_grid(model, corrupt, torch.zeros(shape), **options)
