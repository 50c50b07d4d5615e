"""The text on which neurons are ablated: documents, and their tokens for every stage."""

from __future__ import annotations

import random
from itertools import islice

from posttrace.pipeline.embedded import corpus
from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import read_text
from posttrace.pipeline.studies.confidence.job import Text
from posttrace.pipeline.text_pieces import CHARACTERS_PER_TOKEN, cut
from posttrace.tracers.prompts import encode


def read_documents(text: Text, seed: int) -> list[str]:
    """Return the documents of a job, the same for every stage.

    >>> len(read_documents(Text(documents=3), seed=0))
    3

    Embedded documents follow the training distribution, facts included; their draws are not those of training. A
    file is cut at ends of lines, else of words, into documents of about `tokens` tokens. Raises JobError for a
    file that cannot be read as UTF-8 text or holds none.
    """
    if text.file is None:
        return [corpus.common_text(random.Random(f"confidence/{seed}/{i}")) for i in range(text.documents)]
    content = read_text(text.file, "text.file", "edit text.file")
    documents = list(islice(cut(content, CHARACTERS_PER_TOKEN * text.tokens), text.documents))
    if len(documents) < 2:
        raise JobError(
            f"text.file: {shown(text.file)} holds {len(documents)} documents of {text.tokens} tokens, and intervals "
            "over documents need two; give more text, or lower text.tokens"
        )
    return documents


def encode_documents(
    documents: list[str], tokenizers: dict, tokens: int, positions: int | None
) -> dict[str, list[tuple[int, ...]]]:
    """Per stage, the token ids of every document, cut to what a model takes.

    Raises JobError for a document without a token to score: the first one begins the text, the last one is only
    predicted.
    """
    tokens = min(tokens, positions or tokens)
    rows = {}
    for stage, tokenizer in tokenizers.items():
        rows[stage] = [encode(tokenizer, "", text).ids[:tokens] for text in documents]
        for text, row in zip(documents, rows[stage], strict=True):
            if len(row) < 3:
                raise JobError(
                    f"text: document {text[:40]!r} has {len(row)} tokens for stage {stage}, at least 3 are needed; "
                    "take it out of the file"
                )
    return rows
