"""Single attention heads: the site is where a head's own output is, and patching one leaves the others alone."""

import random
from dataclasses import replace

import nnsight
import pytest
import torch

from posttrace.tracers import TracerError, sites
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import PatchGrid, Place, patch_grid, places
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.models.validation import check_sites
from posttrace.tracers.oracles.patching import check_sample, naive_cell
from tests.support.models import CONFIGS, random_model, random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts

IDS = torch.tensor([[7, 31, 150, 9, 42, 88]])


def read(model, site, layers, ids=IDS):
    with torch.no_grad(), model.nn.trace(input_ids=ids):
        values = nnsight.save([])
        for layer in layers:
            values.append(sites.get(model.nn.layers[layer], site))
    return values


def values_per_head(name, module):
    """Value vectors of the first block as each query head uses them; dims head x token x size."""
    kept = []
    layers = getattr(module, {"llama": "model", "gpt2": "transformer", "gpt_neox": "gpt_neox"}[name])
    block = layers.h[0] if name == "gpt2" else layers.layers[0]
    source = {"llama": "self_attn.v_proj", "gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value"}
    handle = block.get_submodule(source[name]).register_forward_hook(lambda m, i, o: kept.append(o[0]))
    with torch.no_grad():
        attention = module(IDS, output_attentions=True).attentions[0][0]
    handle.remove()
    if name == "llama":  # two query heads share each of two key-value heads
        values = kept[0].unflatten(-1, (2, 8)).transpose(0, 1).repeat_interleave(2, dim=0)
    elif name == "gpt2":
        values = kept[0].chunk(3, dim=-1)[2].unflatten(-1, (4, 8)).transpose(0, 1)
    else:
        values = kept[0].unflatten(-1, (4, 24))[..., 16:].transpose(0, 1)
    return attention, values


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_head_gives_its_attention_times_its_values(name):
    """Computed from the attention weights that transformers itself gives, head by head."""
    module = random_module(name)
    module.set_attn_implementation("eager")
    attention, values = values_per_head(name, module)
    found = read(random_model(name), "z", [0])[0][0].unflatten(-1, (4, 8))
    torch.testing.assert_close(found.transpose(0, 1), attention @ values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_through_their_parts_of_the_projection_add_up_to_attention(name):
    """One after the other; where a norm follows, it follows the sum."""
    model = random_model(name)
    (found,), (expected,) = (read(model, site, [1]) for site in ("z", "attn_out"))
    heads, width = site_shape(model.config, "z")
    block = model.nn.layers[1]
    projection = block.heads._module
    weight = projection.weight if name == "gpt2" else projection.weight.T  # its Conv1D is input x output
    total = 0 if projection.bias is None else projection.bias
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        total = total + found[..., part] @ weight[part]
    if model.architecture.attn_norm:
        total = block.attn_add._module(total)
    torch.testing.assert_close(total, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_patched_head_is_what_a_plain_hook_on_the_projection_gives():
    """PyTorch alone: a pre-hook on one block's o_proj that overwrites one head at one token."""
    module, model = random_module("llama"), random_model("llama")
    (prompt,) = prompts(torch.Generator().manual_seed(0), [(4, 3)])
    value = torch.randn(8, generator=torch.Generator().manual_seed(1))

    def overwrite(_module, args):
        hidden = args[0].clone()
        hidden[0, prompt.start + 1, 16:24] = value
        return (hidden,)

    handle = module.model.layers[1].self_attn.o_proj.register_forward_pre_hook(overwrite)
    with torch.no_grad():
        logits = module(torch.tensor([prompt.ids])).logits[0, -1]
    handle.remove()
    found = naive_cell(model, prompt, 1, value, site="z", layer=1, head=2, answers=ANSWERS)
    torch.testing.assert_close(found, logits[ANSWERS[0]] - logits[ANSWERS[1]])


def test_the_layer_axis_runs_over_heads_within_layers():
    model = random_model("gemma2")
    some = prompts(torch.Generator().manual_seed(0), [(9, 4), (6, 3)])
    options = dict(site="z", layers=[0, 2], answers=ANSWERS)
    found = read_statements(model, some, **options).values
    assert places(model.config, "z", [0, 2])[3:5] == [Place(0, 3), Place(2, 0)]
    assert found.shape == (2, 8, 4, 16), (
        "4 heads of 16 in each of two blocks, wider than the stream of 32 together"
    )
    assert torch.isnan(found[1, :, 3:]).all() and not torch.isnan(found[1, :, :3]).any()
    whole = torch.tensor([some[0].ids])
    for i, value in enumerate(read(model, "z", [0, 2], whole)):
        for head in range(4):
            expected = value[0, some[0].start :, head * 16 : (head + 1) * 16]
            torch.testing.assert_close(found[0, 4 * i + head], expected, atol=1e-4, rtol=1e-4)


def test_a_wrong_head_is_caught_by_the_sample_and_named():
    model = random_model("llama")
    rng = torch.Generator().manual_seed(0)
    options = dict(site="z", layers=range(3), answers=ANSWERS)
    corrupt = prompts(rng, [(9, 4), (7, 4), (9, 4)])
    source = read_statements(model, prompts(rng, [(9, 4), (7, 4), (9, 4)]), **options).values[None]
    grid = patch_grid(model, corrupt, source, **options)
    n, largest = check_sample(
        model, corrupt, source, grid, share=1, at_most=999, rng=random.Random(0), **options
    )
    assert n == 3 * 12 * 4 and largest < 1e-4
    swapped = grid.patched.clone()
    swapped[:, :, [0, 1]] = swapped[:, :, [1, 0]]
    wrong = PatchGrid(swapped, grid.unpatched)
    with pytest.raises(TracerError, match=r"layer 0, head [01], token"):
        check_sample(model, corrupt, source, wrong, share=1, at_most=999, rng=random.Random(0), **options)


def test_a_projection_that_is_not_the_attentions_is_found_out():
    """As wide as the heads together, and something else."""
    model = random_model("llama")
    wrong = replace(model.architecture, heads="self_attn.q_proj")
    nn = nnsight.TransformersModel(
        random_module("llama"), tokenizer=word_tokenizer(), task="text-generation", rename=wrong.rename
    )
    with pytest.raises(TracerError, match="site z: projected, its heads are not what attention adds"):
        check_sites(replace(model, nn=nn, architecture=wrong))


def test_heads_of_another_number_are_refused():
    model = random_model("llama")
    corrupt = prompts(torch.Generator().manual_seed(0), [(3, 4)])
    with pytest.raises(TracerError, match=r"\(1, 3, 4, 32\).*do not fit the target's \(1, 12, 4, 8\)"):
        patch_grid(model, corrupt, torch.zeros(1, 1, 3, 4, 32), site="z", layers=range(3), answers=ANSWERS)
