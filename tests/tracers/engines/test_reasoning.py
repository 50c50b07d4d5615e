"""Where a reasoning block ends, the answer begins: against plain generation, token by token."""

import random

import pytest
import torch

from posttrace.tracers.checked import scored_completions
from posttrace.tracers.engines.generation import Openings, generate
from posttrace.tracers.engines.reasoning import Reasoning, answer_starts, reasoning_blocks
from tests.support.models import random_model

PROMPTS = [[1, 20, 31, 7], [1, 50, 9]]
CLOSE, EMPTY = (201, 202), (203, 204, 205)


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def said(model, prompt, n=12):
    """What the model says next, by transformers alone."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, model.nn._module(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def marked(begin, end, blank=(), max_tokens=10):
    return Reasoning(begin=begin, end=end, close=CLOSE, empty=EMPTY, blank=blank, max_tokens=max_tokens)


def test_a_block_goes_on_to_its_end_and_the_blanks_after_it(model):
    first = said(model, PROMPTS[0])
    end = next(n for n in range(2, 10) if first[n] not in first[:n])
    reasoning = marked(first[0], first[end], blank=(first[end + 1],))
    blocks = reasoning_blocks(model, PROMPTS, [], reasoning)
    blanks = 1 + (first[end + 2] == first[end + 1])
    assert blocks.ids[0][: end + 2] == tuple(first[: end + 2]) and len(blocks.ids[0]) >= end + 1 + blanks
    assert blocks.cut == (False, False)
    other = said(model, PROMPTS[1])
    assert other[0] != first[0] and blocks.ids[1] == (), "the other answer begins without a block"


def test_a_block_that_is_too_long_or_ends_the_answer_is_closed(model):
    first = said(model, PROMPTS[0])
    blocks = reasoning_blocks(model, PROMPTS[:1], [], marked(first[0], 299, max_tokens=3))
    assert blocks.ids == ((*first[:4], *CLOSE),) and blocks.cut == (True,)
    none = reasoning_blocks(model, PROMPTS[:1], [], marked(first[0], 299, max_tokens=0))
    assert none.ids == ((first[0], *CLOSE),)
    stop = next(n for n in range(2, 10) if first[n] not in first[:n])
    ended = reasoning_blocks(model, PROMPTS[:1], [], marked(first[0], 299), stop=(first[stop],))
    assert ended.ids == ((*first[:stop], *CLOSE),) and ended.cut == (True,)


def test_a_prompt_may_leave_a_block_open(model):
    prompt = [*PROMPTS[0], 210]
    first = said(model, prompt)
    blocks = reasoning_blocks(model, [prompt, [*prompt, 299]], [], marked(210, 299, max_tokens=4))
    assert blocks.ids == ((*first[:4], *CLOSE), ()), "the second prompt has closed its own"
    assert answer_starts(model, [prompt], marked(210, 299)) == [(*prompt, *CLOSE)]


def test_answers_and_log_odds_are_taken_after_the_block(model):
    first = said(model, PROMPTS[0])
    reasoning, openings = marked(first[0], 299, max_tokens=3), Openings(refusal=(5, 6), compliant=(7,))
    done = scored_completions(
        model,
        PROMPTS[:1],
        [],
        openings,
        max_new_tokens=4,
        reasoning=reasoning,
        share=1.0,
        rng=random.Random(0),
    )
    whole = [*PROMPTS[0], *first[:4], *CLOSE]
    assert (
        done.ids
        == generate(model, [whole], [], openings, max_new_tokens=4).ids
        == (tuple(said(model, whole, 4)),)
    )
    with torch.no_grad():
        logits = model.nn._module(torch.tensor([whole])).logits[0, -1]
    wanted = logits[[5, 6]].logsumexp(0) - logits[7]
    torch.testing.assert_close(done.log_odds, wanted[None], rtol=1e-4, atol=1e-4)
    assert done.reasoning == (6,) and done.cut == (True,) and done.checked == 1
    assert answer_starts(model, PROMPTS, marked(first[0], 299)) == [(*PROMPTS[0], *EMPTY), tuple(PROMPTS[1])]
