"""Pairs lie side by side token by token, differ in the subject only, and their columns are named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.statements import Statement
from posttrace.pipeline.studies.knowledge.pairing import free_pairs, roles_within, sample, template_pairs
from posttrace.tracers import TracerError
from posttrace.tracers.prompts import answer_ids, encode
from tests.support.jobs import WORDS
from tests.support.models import word_tokenizer

SUFFIX = " This statement is:"
TOKENIZER = word_tokenizer(WORDS)


def city(subject, country, label):
    return Statement(f"The city of {subject} is in {country}.", label, "")


def test_only_the_most_common_pattern_is_kept_and_pairs_share_their_last_word():
    statements = [city(f"w{i} w9", f"w{50 + i % 2}", i % 4 < 2) for i in range(16)]
    statements += [city("w1", "w50", True), city("w1 w2 w3", "w50", False)]
    aligned = template_pairs("cities", statements, TOKENIZER, "\n", SUFFIX)
    assert aligned.labels == (
        *("The", "city", "of", "[s1]", "[s2]", "is", "in", "[o1]", "."),
        *("This", "statement", "is", ":"),
    )
    assert [r for r in aligned.roles if r != "other"] == ["subject", "subject", "object", "last"]
    assert aligned.available == len(aligned.pairs) == 8
    for clean, corrupt in aligned.pairs:
        assert clean.split()[-1] == corrupt.split()[-1] and len(clean.split()) == 8
        ids = [encode(TOKENIZER, "\n", s + SUFFIX).statement for s in (clean, corrupt)]
        differing = [role for a, b, role in zip(*ids, aligned.roles, strict=True) if a != b]
        assert set(differing) == {"subject"}


def test_the_pool_of_false_statements_is_used_up_before_one_is_used_again():
    statements = [city(f"w{i} w9", "w50", True) for i in range(5)] + [
        city(f"w{i} w8", "w50", False) for i in range(3)
    ]
    corrupt = [
        false.split()[3] for _, false in template_pairs("c", statements, TOKENIZER, "\n", SUFFIX).pairs
    ]
    assert corrupt == ["w2", "w1", "w0", "w0", "w0"]


def test_no_pair_at_all_is_an_error():
    with pytest.raises(JobError, match="no true and false one share their last word"):
        template_pairs("c", [city("w1", "w2", True), city("w3", "w4", False)], TOKENIZER, "\n", SUFFIX)


def test_free_form_pairs_of_unequal_length_are_left_out():
    rows = [
        ("w1 is w2.", True, "a"),
        ("w1 is w3.", False, "a"),
        ("w1.", True, "b"),
        ("w1 is w2.", False, "b"),
    ]
    aligned = free_pairs("f", [Statement(*r) for r in rows], TOKENIZER, "\n", SUFFIX)
    assert aligned.pairs == (("w1 is w2.", "w1 is w3."),)
    clean, corrupt = (encode(TOKENIZER, "\n", s + SUFFIX) for s in aligned.pairs[0])
    assert roles_within(clean, corrupt, 10) == ["other", "other", "knowledge", *["other"] * 4, "last", "", ""]


@given(st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_sample_keeps_the_order_and_depends_on_its_seed_alone(n, seed):
    statements = [city(f"w{i} w{i + 1}", f"w{50 + i % 2}", True) for i in range(20)]
    statements += [city("w30 w8", f"w{50 + i}", False) for i in range(2)]
    aligned = template_pairs("c", statements, TOKENIZER, "\n", SUFFIX)
    drawn = sample(aligned, n, str(seed))
    assert drawn == sample(aligned, n, str(seed)) and drawn.available == 20
    assert len(drawn.pairs) == min(n, 20)
    assert list(drawn.pairs) == [p for p in aligned.pairs if p in set(drawn.pairs)]


def test_a_statement_begins_at_its_first_character():
    prompt = encode(TOKENIZER, "w1 is w2. This statement is: TRUE\n", "The city of w3." + SUFFIX)
    assert [TOKENIZER.decode([i]) for i in prompt.statement[:2]] == ["The", " city"]
    assert prompt.spans[0] == (0, 3) and prompt.ids[: prompt.start] == prompt.prefix


def test_answers_are_single_tokens():
    assert answer_ids(TOKENIZER, "w1 is w2. This statement is:", [" TRUE", " FALSE"]) == (5, 6)
    with pytest.raises(TracerError, match="is not one token"):
        answer_ids(TOKENIZER, "w1 is w2.", [" w1 w2", " FALSE"])
    with pytest.raises(TracerError, match="same token"):
        answer_ids(TOKENIZER, "w1 is w2.", [" unknown", " words"])
