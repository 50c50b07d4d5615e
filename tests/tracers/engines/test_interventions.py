"""Free operations give what hooks on the plain model give, in every architecture."""

import pytest
import torch

from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.interventions import run_lens, run_operations
from posttrace.tracers.operations import STREAM_SITES
from tests.support.models import CONFIGS, mostly_slow, random_model

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]
ROWS, COLUMNS = torch.tensor([0, 1]), torch.tensor([1, 2])


def plain(model, layer, site, to):
    """Last-token logits of every prompt alone, `site` changed by a hook; the stream after the last block too."""
    names, logits, streams = model.architecture, [], []
    block = model.nn._module.get_submodule(names.layers)[layer]
    for row, ids in enumerate(PROMPTS):
        column = int(COLUMNS[row])

        def change(hidden, row=row, column=column):
            hidden = hidden.clone()
            hidden[0, column] = to(hidden[0, column], row)
            return hidden

        def after(module, inputs, output, change=change):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        if site == "resid_pre":
            handle = block.register_forward_pre_hook(lambda _, inputs, c=change: (c(inputs[0]), *inputs[1:]))
        else:
            part = {"attn_out": names.attn_add, "mlp_out": names.mlp_add}.get(site, [None])[0]
            handle = (block.get_submodule(part) if part else block).register_forward_hook(after)
        kept = []
        last = model.nn._module.get_submodule(names.layers)[-1]
        second = last.register_forward_hook(lambda _, i, out, kept=kept: kept.append(out))
        with torch.no_grad():
            logits.append(model.nn._module(torch.tensor([ids])).logits[0, -1])
        handle.remove()
        second.remove()
        streams.append((kept[0][0] if isinstance(kept[0], tuple) else kept[0])[0, column])
    return torch.stack(logits).log_softmax(-1), torch.stack(streams)


@pytest.mark.parametrize("name", mostly_slow(CONFIGS))
@pytest.mark.parametrize("site", [s for s in STREAM_SITES if s != "resid_mid"])
def test_an_edit_is_a_hook(name, site):
    model = random_model(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    unit = vector / vector.norm()
    both = torch.stack([vector, -vector])
    changes = [
        (dict(mode="add", values=vector, coefficient=1.5), lambda h, _: h + 1.5 * vector),
        (dict(mode="add", values=both, coefficient=-1.5), lambda h, row: h - 1.5 * both[row]),
        (dict(mode="ablate", values=unit), lambda h, _: h - (h @ unit) * unit),
        (dict(mode="ablate", values=both / vector.norm()), lambda h, _: h - (h @ unit) * unit),
        (dict(mode="replace", values=both), lambda h, row: both[row]),
    ]
    for change, to in changes:
        edit = Edit(site=site, layers=(1,), rows=ROWS, columns=COLUMNS, **change)
        found = run_operations(
            model, PROMPTS, [edit], site="resid_post", layers=[2], rows=ROWS, columns=COLUMNS, top=300
        )
        logprob, stream = plain(model, 1, site, to)
        torch.testing.assert_close(found.values[0], stream, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.logprob, logprob.gather(1, found.top), rtol=1e-4, atol=1e-4)
        entropy = -(logprob.exp() * logprob).sum(-1)
        torch.testing.assert_close(found.entropy, entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "gpt_neox"])
def test_edits_of_one_block_add_up_in_forward_order(name):
    """attn_out and resid_mid are both written at what attention adds; each read sees its own site's edit."""
    model = random_model(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))

    def read(site, edits):
        options = dict(layers=[1], rows=ROWS, columns=COLUMNS)
        return run_operations(model, PROMPTS, edits, site=site, **options).values[0]

    where = dict(layers=(1,), rows=ROWS, columns=COLUMNS)
    edits = [
        Edit(site=site, mode="add", values=vector, **where) for site in ("resid_mid", "attn_out", "resid_pre")
    ]
    pre, attn, mid = (read(site, edits) for site in ("resid_pre", "attn_out", "resid_mid"))
    torch.testing.assert_close(pre, read("resid_pre", []) + vector)
    torch.testing.assert_close(mid, pre + attn + vector, rtol=1e-4, atol=1e-4)
    unit = vector / vector.norm()
    double = [*edits, Edit(site="resid_post", mode="ablate", values=unit, **where)]
    assert (read("resid_post", double) @ vector).abs().max() < 1e-3 * vector.norm() ** 2


@pytest.mark.parametrize("name", mostly_slow(CONFIGS))
def test_a_lens_is_a_pass_whose_last_block_gives_the_stream_of_an_earlier_one(name):
    """A hook puts the stream at a cell in place of what the last block gives there."""
    model = random_model(name)
    module = model.nn._module
    blocks = module.get_submodule(model.architecture.layers)
    edit = Edit(site="resid_pre", layers=(0,), mode="add", values=torch.ones(32), rows=ROWS, columns=COLUMNS)
    cells = dict(site="resid_post", layers=[0, 2], rows=ROWS, columns=COLUMNS)
    found = run_lens(model, PROMPTS, [edit], **cells, top=7)
    assert found.top.shape == found.logprob.shape == (2, 2, 7)
    streams = run_operations(model, PROMPTS, [edit], **cells).values
    for layer in range(2):
        for cell, column in enumerate(COLUMNS.tolist()):

            def put(_, inputs, out, value=streams[layer][cell], column=column):
                stream = (out[0] if isinstance(out, tuple) else out).clone()
                stream[0, column] = value
                return (stream, *out[1:]) if isinstance(out, tuple) else stream

            handle = blocks[-1].register_forward_hook(put)
            with torch.no_grad():
                logits = module(torch.tensor([PROMPTS[cell]])).logits[0, column]
            handle.remove()
            want = logits.log_softmax(-1).topk(7)
            assert found.top[layer, cell].tolist() == want.indices.tolist()
            torch.testing.assert_close(found.logprob[layer, cell], want.values, rtol=1e-4, atol=1e-4)
