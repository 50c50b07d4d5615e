"""Text becomes the tokens that were meant: one beginning of the text, no token that the model does not embed."""

import pytest
from tokenizers import AddedToken, processors

from posttrace.tracers import TracerError
from posttrace.tracers.models.loading import load_tokenizer
from posttrace.tracers.prompts import answer_ids, encode, text_ids
from tests.support.models import random_module, word_tokenizer


def test_the_beginning_of_the_text_stands_once_whoever_writes_it():
    tokenizer = word_tokenizer()
    assert tokenizer("<s>w1")["input_ids"][:2] == [1, 1], "left alone, the tokenizer doubles it"
    written, added = encode(tokenizer, "", "<s>w1 w2"), encode(tokenizer, "", "w1 w2")
    assert written.ids == added.ids and written.start == added.start == 1
    assert text_ids(tokenizer, "<s>w1", special=False) == text_ids(tokenizer, "w1")
    assert encode(tokenizer, "<s>w1.\n", "w2").statement == encode(tokenizer, "w1.\n", "w2").statement
    assert answer_ids(tokenizer, "<s>w2.", (" TRUE", " FALSE")) == (5, 6)


def test_what_a_text_doubles_itself_is_left_alone():
    assert encode(word_tokenizer(), "", "<s><s>w1").ids == encode(word_tokenizer(), "", "<s>w1").ids[:1] + (
        encode(word_tokenizer(), "", "<s>w1").ids
    )


def test_several_tokens_may_begin_a_text():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> <s> $A", special_tokens=[("<s>", 1), ("<pad>", 0)]
    )
    written = encode(tokenizer, "", "<pad><s>w1")
    assert written.ids == encode(tokenizer, "", "w1").ids and written.start == 2


def test_a_tokenizer_that_adds_nothing_is_left_alone_and_what_the_text_writes_is_no_statement():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    assert encode(tokenizer, "", "w1").start == 0
    assert encode(tokenizer, "", "<s>w1").start == 1 and len(encode(tokenizer, "", "<s>w1").ids) == 2


def test_a_token_without_an_embedding_is_named_once_a_prompt_has_it(tmp_path):
    random_module("llama").save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<x{i}>") for i in range(100)])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert len(loaded) > 300, "the model embeds 300"
    assert encode(loaded, "", "w1 <x0>")
    with pytest.raises(
        TracerError, match=r"token '<x99>' has the id 30\d, but the model embeds ids 0-299 only"
    ):
        encode(loaded, "", "w1 <x99>")
