"""The batched grid against the naive one, and both against plain PyTorch."""

import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrace.tracers import SITES, TracerError
from posttrace.tracers.batching.packing import pack
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import PatchGrid, patch_grid
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.oracles.patching import check_sample, patch_grid_naive
from posttrace.tracers.prompts import Prompt
from tests.support.models import CONFIGS, mostly_slow, random_model, random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts


def grids(name, site, shapes, n_sources=2, seed=0, **kwargs):
    model = random_model(name, seed)
    rng = torch.Generator().manual_seed(seed)
    layers = range(model.n_layers)
    corrupt = prompts(rng, shapes)
    sources = torch.stack(
        [
            read_statements(model, prompts(rng, shapes), site=site, layers=layers, answers=ANSWERS).values
            for _ in range(n_sources)
        ]
    )
    fast = patch_grid(model, corrupt, sources, site=site, layers=layers, answers=ANSWERS, **kwargs)
    slow = patch_grid_naive(model, corrupt, sources, site=site, layers=layers, answers=ANSWERS)
    return fast, slow


def assert_equal_grids(fast, slow, flat_is_fine=False):
    scale = slow.patched.nan_to_num().abs().max()
    assert flat_is_fine or slow.patched[~slow.patched.isnan()].std() > 0.05 * scale, (
        "the grid is flat: nothing is tested"
    )
    torch.testing.assert_close(fast.patched, slow.patched, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(fast.unpatched, slow.unpatched, atol=1e-4, rtol=0)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", mostly_slow(CONFIGS, fast=["llama"]))
def test_grid_equals_one_forward_per_cell(name, site):
    if site == "resid_mid" and site not in random_model(name).architecture.patchable:
        pytest.skip(f"{name} runs its halves in parallel: it has no {site}")
    assert_equal_grids(*grids(name, site, [(9, 4), (9, 4), (7, 4)]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_statements_of_unequal_length_are_padded_without_effect(name):
    fast, slow = grids(name, "resid_post", [(9, 5), (6, 3), (9, 4)])
    assert torch.isnan(fast.patched[:, 1, :, 3:]).all()
    assert_equal_grids(fast, slow)


@pytest.mark.parametrize("shapes", [[(0, 4), (0, 4)], [(1, 3)], [(5, 1), (5, 1)]])
def test_edges_of_prefix_and_statement(shapes):
    assert_equal_grids(*grids("llama", "resid_post", shapes))


@pytest.mark.parametrize("max_tokens", [1, 9, 100_000])
def test_batch_size_changes_nothing(max_tokens):
    assert_equal_grids(*grids("llama", "resid_post", [(9, 4), (7, 3)], max_tokens=max_tokens))


def test_source_of_another_shape_is_refused():
    model = random_model("llama")
    corrupt = prompts(torch.Generator().manual_seed(0), [(3, 4)])
    with pytest.raises(TracerError, match="equal token lengths"):
        patch_grid(
            model, corrupt, torch.zeros(1, 1, 3, 3, 32), site="resid_post", layers=range(3), answers=ANSWERS
        )


def test_tokens_that_both_runs_share_need_no_run():
    """Within one model a patch before the first differing token changes nothing, so it may be left out."""
    model = random_model("llama")
    rng = torch.Generator().manual_seed(0)
    corrupt = prompts(rng, [(9, 5)])
    clean = [Prompt("", (*corrupt[0].ids[:-3], *(7, 8, 9)), corrupt[0].start, corrupt[0].spans)]
    options = dict(site="resid_post", layers=range(model.n_layers), answers=ANSWERS)
    source = read_statements(model, clean, **options).values[None]
    fast = patch_grid(model, corrupt, source, unchanged=[[2]], **options)
    assert torch.equal(fast.patched[0, 0, :, :2], fast.unpatched[0].expand(3, 2))
    assert_equal_grids(fast, patch_grid_naive(model, corrupt, source, **options))


def windowed(name, window):
    module = random_module(name)
    module.config.sliding_window = window
    for block in module.model.layers:
        if getattr(block.self_attn, "sliding_window", None):
            block.self_attn.sliding_window = window
    return wrap(module, word_tokenizer(), name=f"{name}-window", check=False)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_sliding_window_shorter_than_the_prompt(name):
    """In all blocks (Mistral), or in some of them (Gemma 2)."""
    model = windowed(name, 4)
    rng = torch.Generator().manual_seed(0)
    options = dict(site="resid_post", layers=range(model.n_layers), answers=ANSWERS)
    shapes = [(9, 5), (6, 3)]
    corrupt = prompts(rng, shapes)
    source = read_statements(model, prompts(rng, shapes), **options).values[None]
    fast, slow = (grid(model, corrupt, source, **options) for grid in (patch_grid, patch_grid_naive))
    assert_equal_grids(fast, slow)
    assert not torch.allclose(
        fast.unpatched, patch_grid(windowed(name, 99), corrupt, source, **options).unpatched
    )


def test_a_wrong_grid_is_caught_by_the_sample():
    model = random_model("llama")
    rng = torch.Generator().manual_seed(0)
    options = dict(site="resid_post", layers=range(model.n_layers), answers=ANSWERS)
    corrupt = prompts(rng, [(9, 4), (9, 4)])
    source = read_statements(model, prompts(rng, [(9, 4), (9, 4)]), **options).values[None]
    grid = patch_grid(model, corrupt, source, **options)
    n, largest = check_sample(
        model, corrupt, source, grid, share=0.5, at_most=99, rng=random.Random(0), **options
    )
    assert n == 12 and largest < 1e-3
    wrong = PatchGrid(grid.patched + 0.01 * grid.patched.abs().max(), grid.unpatched)
    with pytest.raises(TracerError, match="a whole forward pass"):
        check_sample(model, corrupt, source, wrong, share=0.01, rng=random.Random(0), **options)


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    """The device refuses batches of more than 20 tokens: the grid is the same, in smaller pieces.

    A refused batch is given back before its halves are tried, or they would find the memory still taken.
    """
    from posttrace.tracers.engines import patching

    model = random_model("llama")
    rng = torch.Generator().manual_seed(0)
    options = dict(site="resid_post", layers=range(model.n_layers), answers=ANSWERS)
    corrupt = prompts(rng, [(9, 4)] * 4)
    source = read_statements(model, prompts(rng, [(9, 4)] * 4), **options).values[None]
    whole, sizes, trace = patch_grid(model, corrupt, source, **options), [], patching.trace_cells

    refused = []

    def limited(nn, inputs, *rest, **skipped):
        sizes.append(inputs["input_ids"].numel())
        assert not any(batch() is not None for batch in refused)
        if sizes[-1] > 20:
            refused.append(weakref.ref(inputs["input_ids"]))
            raise torch.OutOfMemoryError("out of memory")
        return trace(nn, inputs, *rest, **skipped)

    monkeypatch.setattr(patching, "trace_cells", limited)
    pieces = patch_grid(model, corrupt, source, **options)
    assert max(sizes) == 40 and sizes[-1] <= 20 and refused
    torch.testing.assert_close(pieces.patched, whole.patched, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(1, 60),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(shapes, n_sources, max_tokens):
    assert_equal_grids(
        *grids("llama", "resid_post", shapes, n_sources, max_tokens=max_tokens), flat_is_fine=True
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 5)),
        min_size=1,
        max_size=30,
        unique=True,
    ),
    st.integers(1, 50),
)
def test_packing_runs_every_segment_once_and_nothing_else(cells, max_tokens):
    lengths = [6, 8, 200]
    seen = []
    for batch in pack(cells, lengths, max_tokens):
        assert batch.token.numel() <= max_tokens or len(batch.prompt) == 1
        for (source, prompt, token), row, first, last in zip(
            batch.cells.tolist(), batch.row, batch.first, batch.last, strict=True
        ):
            assert batch.prompt[row] == prompt
            assert batch.token[row, first : last + 1].tolist() == list(range(token, lengths[prompt]))
            assert set(batch.begin[row, first : last + 1].tolist()) == {token}
            seen.append((source, prompt, token))
        assert int((batch.token >= 0).sum()) == sum(lengths[p] - t for _, p, t in batch.cells.tolist())
    assert sorted(seen) == sorted(cells)
