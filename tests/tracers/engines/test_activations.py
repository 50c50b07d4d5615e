"""What is read at chosen tokens is what hooks on the plain model see there, however the prompts are run."""

import pytest
import torch

from posttrace.tracers import TracerError
from posttrace.tracers.engines.activations import columns_of, one_pass, read_statements
from posttrace.tracers.models.loading import wrap
from tests.support.models import CONFIGS, random_model, random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts

SHARED = [(20, 3), (20, 5), (20, 4), (20, 3)]
"""(prefix, statement) tokens: one prefix for all, worth a pass of its own."""
APART = [(9, 4), (6, 5), (0, 3)]
"""A prefix each."""


def hooked(model, prompt):
    """What every block gives for one prompt alone; dims layer x token x hidden; and the answers' logit difference."""
    kept = []
    blocks = [envoy._module for envoy in model.nn.layers]
    handles = [
        block.register_forward_hook(
            lambda m, i, output: kept.append(output[0] if torch.is_tensor(output) else output[0][0])
        )
        for block in blocks
    ]
    with torch.no_grad():
        logits = model.nn._module(torch.tensor([prompt.ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(kept), logits[ANSWERS[0]] - logits[ANSWERS[1]]


@pytest.mark.parametrize("tokens", ["statement", "last", "all", (-1, -3), (0, 2, -2)])
@pytest.mark.parametrize("shapes", [SHARED, APART])
def test_every_choice_of_tokens_gives_what_hooks_see(tokens, shapes):
    model = random_model("llama")
    some = prompts(torch.Generator().manual_seed(0), shapes)
    found = read_statements(model, some, site="resid_post", layers=range(3), answers=ANSWERS, tokens=tokens)
    for row, prompt in enumerate(some):
        expected, logit_diff = hooked(model, prompt)
        columns = columns_of(prompt, tokens)
        torch.testing.assert_close(
            found.values[row, :, : len(columns)], expected[:, columns], atol=1e-4, rtol=1e-4
        )
        assert torch.isnan(found.values[row, :, len(columns) :]).all()
        torch.testing.assert_close(found.logit_diff[row], logit_diff, atol=1e-4, rtol=1e-4)
    assert found.values.shape[2] == max(len(columns_of(p, tokens)) for p in some), (
        "only what was asked for comes"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_pads_a_plain_pass_without_effect(name):
    model = random_model(name)
    some = prompts(torch.Generator().manual_seed(0), [(9, 4), (3, 2)])
    assert one_pass(some)
    found = read_statements(model, some, site="resid_post", layers=range(3), answers=ANSWERS, tokens="last")
    for row, prompt in enumerate(some):
        expected, logit_diff = hooked(model, prompt)
        torch.testing.assert_close(found.values[row, :, 0], expected[:, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.logit_diff[row], logit_diff, atol=1e-4, rtol=1e-4)


def test_a_prefix_is_run_once_where_many_share_it_and_not_apart_where_few_do():
    """Counted: the tokens that go through the embedding."""
    model = random_model("llama")

    def tokens_run(shapes, **options):
        seen = []
        embedding = model.nn._module.get_input_embeddings()
        handle = embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
        some = prompts(torch.Generator().manual_seed(0), shapes)
        read_statements(model, some, site="resid_post", layers=[0], answers=ANSWERS, **options)
        handle.remove()
        return seen

    assert tokens_run([(20, 4)] * 6) == [20, 24]
    assert tokens_run([(1, 4)] * 6) == [30], "a beginning-of-text token alone is not worth a pass"
    assert tokens_run([(20, 4)] * 6, tokens=(0,)) == [6 * 24], (
        "what is read in the prefix is run for every prompt"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_sixteen_bits(dtype):
    model = wrap(random_module("llama").to(dtype), word_tokenizer(), name="half")
    some = prompts(torch.Generator().manual_seed(0), APART)
    found = read_statements(model, some, site="resid_post", layers=range(3), answers=ANSWERS, tokens="last")
    assert found.values.dtype == dtype and found.logit_diff.dtype == torch.float32


def test_a_token_that_a_prompt_lacks_is_named():
    some = prompts(torch.Generator().manual_seed(0), [(2, 3), (2, 4)])
    with pytest.raises(TracerError, match="token 5 is not in -5 to 4, it has 5 tokens; edit tokens"):
        read_statements(
            random_model("llama"), some, site="resid_post", layers=[0], answers=ANSWERS, tokens=(5,)
        )
