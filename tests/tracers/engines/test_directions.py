"""Class means, effects on the first new token and likelihood of texts, against plain PyTorch."""

import pytest
import torch

from posttrace.tracers import Read, TracerError
from posttrace.tracers.engines.directions import direction_effects, mean_nll, mean_streams
from tests.support.generation import OPENINGS, plain_hooks, prompts, vector
from tests.support.models import random_model

ARCHITECTURES = ("llama", "gpt2", "gemma2")


def plain_logits(model, ids):
    with torch.no_grad():
        return model.nn._module(input_ids=torch.tensor([list(ids)])).logits[0].float()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_means_at_the_last_tokens_are_those_of_the_prompts_one_by_one(name):
    model, texts = random_model(name), prompts(lengths=(3, 12, 7, 5))
    with torch.no_grad():
        streams = [
            torch.stack(model.nn._module(torch.tensor([t]), output_hidden_states=True).hidden_states[:3])
            for t in texts
        ]
    expected = torch.stack([s[:, 0, [-3, -1]] for s in streams]).mean(0)
    for max_tokens in (None, 10):
        found = mean_streams(model, texts, Read(site="resid_pre", tokens=(-3, -1)), max_tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_position_that_a_prompt_lacks_is_named():
    with pytest.raises(TracerError, match="from -1 "):
        mean_streams(random_model("llama"), prompts(), Read(site="resid_pre", tokens=(-2,)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_effects_are_those_of_plain_hooks(name):
    model = random_model(name)
    harmful, harmless = prompts(1, (4, 9)), prompts(2, (6, 2, 5))
    directions = torch.stack([vector(0), 5 * vector(1)])
    found = direction_effects(
        model,
        harmful,
        harmless,
        layer=1,
        directions=directions,
        coefficients=[40.0, 3.0],
        openings=OPENINGS,
        max_tokens=20,
    )
    for which, (seed, coefficient) in enumerate([(0, 40.0), (1, 3.0)]):
        r = vector(seed) / vector(seed).norm()

        def remove(_, stream, r=r):
            return stream - (stream @ r)[..., None] * r

        def shift(number, stream, r=r, c=coefficient):
            return stream + c * r if number == 1 else stream

        def same(_, stream):
            return stream

        for row, ids in enumerate(harmful):
            with plain_hooks(model.nn._module, name, remove, remove, remove):
                assert float(found.bypass[which, row]) == pytest.approx(
                    odds(plain_logits(model, ids)), abs=1e-3
                )
        for row, ids in enumerate(harmless):
            plain = plain_logits(model, ids)[-1]
            with plain_hooks(model.nn._module, name, shift, same, same):
                assert float(found.induce[which, row]) == pytest.approx(
                    odds(plain_logits(model, ids)), abs=1e-3
                )
            with plain_hooks(model.nn._module, name, remove, remove, remove):
                ablated = plain_logits(model, ids)[-1]
            kl = torch.nn.functional.kl_div(
                ablated.log_softmax(0), plain.log_softmax(0), log_target=True, reduction="sum"
            )
            assert float(found.kl[which, row]) == pytest.approx(float(kl), abs=1e-3)


def odds(logits):
    p = logits[-1].softmax(0)
    return float(p[list(OPENINGS.refusal)].sum().log() - p[list(OPENINGS.compliant)].sum().log())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_text_is_as_unlikely_as_one_by_one(name):
    model, before = random_model(name), prompts(3, (4, 9, 2, 6))
    texts = [(5, 9, 14), (8,), (30, 31, 32, 33, 2), ()]
    found = mean_nll(model, before, texts, max_tokens=25)
    for row in (0, 2):
        ids = [*before[row], *texts[row]]
        logp = plain_logits(model, ids).log_softmax(-1)
        n = len(before[row])
        expected = [-float(logp[n + i - 1, texts[row][i]]) for i in range(1, len(texts[row]))]
        assert float(found[row]) == pytest.approx(sum(expected) / len(expected), abs=1e-3)
    assert found[[1, 3]].isnan().all(), "nothing follows the first token"
