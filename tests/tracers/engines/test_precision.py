"""In 16 bits, logits of answers are as exact as the hidden states that they come from."""

import pytest
import torch

from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.generation import Openings, generate
from posttrace.tracers.engines.interventions import run_operations
from posttrace.tracers.engines.steered_answers import steered_answers
from posttrace.tracers.models.loading import wrap
from tests.support.models import random_module, word_tokenizer
from tests.support.prompts import ANSWERS, prompts

FIRST, SECOND = ANSWERS
OPENINGS = Openings(refusal=(FIRST,), compliant=(SECOND,))


class Case:
    """A model in bfloat16, and the logits of its own last hidden states in float64."""

    def __init__(self, name):
        self.module = random_module(name).to(torch.bfloat16)
        with torch.no_grad():  # large logits, where bfloat16 is coarse
            self.module.lm_head.weight.mul_(4)
        self.model = wrap(self.module, word_tokenizer(), name=name)
        self.prompts = prompts(torch.Generator().manual_seed(0), [(4, 5)] * 6)
        self.module.model.norm.register_forward_hook(lambda m, args, out: setattr(self, "hidden", out))

    def logits(self):
        """Of the run that was last; dims prompt x vocabulary."""
        logits = self.hidden[:, -1].double() @ self.module.lm_head.weight.double().T
        cap = getattr(self.module.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def odds(self):
        return (self.logits()[:, FIRST] - self.logits()[:, SECOND]).float()


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def case(request):
    return Case(request.param)


def test_the_model_s_own_logits_are_rounded(case):
    with torch.no_grad():
        own = case.module(torch.tensor([p.ids for p in case.prompts])).logits[:, -1]
    assert (own.double() - case.logits()).abs().max() > 1e-2


def test_differences_of_two_answers(case):
    found = read_statements(case.model, case.prompts, site="resid_post", layers=[0], answers=ANSWERS)
    torch.testing.assert_close(found.logit_diff, case.odds(), atol=1e-4, rtol=1e-4)
    found = read_answers(case.model, case.prompts, answers=ANSWERS)
    torch.testing.assert_close(found.logit_diff, case.odds(), atol=1e-4, rtol=1e-4)


def test_probabilities_after_steering(case):
    found = steered_answers(case.model, case.prompts, [[None]] * len(case.prompts), answers=ANSWERS)
    p = case.logits().softmax(-1).float()
    torch.testing.assert_close(found[:, 0], p[:, FIRST] - p[:, SECOND], atol=1e-5, rtol=1e-3)


def test_log_odds_of_openings(case):
    ids = [p.ids for p in case.prompts]
    odds = generate(case.model, ids, [], OPENINGS, max_new_tokens=1).log_odds
    torch.testing.assert_close(odds, case.odds(), atol=1e-4, rtol=1e-4)


def test_probabilities_of_next_tokens(case):
    found = run_operations(case.model, [p.ids for p in case.prompts], top=1)
    expected = case.logits().log_softmax(-1).max(-1).values.float()
    torch.testing.assert_close(found.logprob[:, 0], expected, atol=1e-4, rtol=1e-3)
