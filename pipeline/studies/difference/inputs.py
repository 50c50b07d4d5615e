"""What a `difference` job runs: documents, tokenised and aligned, the slots of their tokens, and the samples."""

from __future__ import annotations

import random
from dataclasses import dataclass

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.studies.difference.documents import (
    Rendered,
    read_documents,
    render,
    render_plainly,
)
from posttrace.pipeline.studies.difference.job import DifferenceJob, Texts
from posttrace.pipeline.study import blocks
from posttrace.tracers.prompts import encode, has_unknown

UNITS = 32
"""Blocks of documents of a set, about: the units of work, and of the bootstrap. More where they would be too large."""
UNIT_VALUES = 2**26
"""Values of one stage's streams in a block: 128 MiB in 16 bits."""
FIRST, BEFORE, ANSWER = 5, 4, 3
"""Tokens at the beginning, before the first answer and of it that have a slot of their own."""
SLOTS = (
    "all",
    *(str(i) for i in range(1, FIRST + 1)),
    f"{FIRST + 1}+",
    *(f"before-answer-{i}" for i in range(BEFORE, 0, -1)),
    *(f"answer-{i}" for i in range(ANSWER)),
)
"""Over which tokens a mean is taken: all but the first, each of the next, those beyond, around the first answer."""


@dataclass(frozen=True)
class Document:
    """One document as every stage runs it; a place is an index into the tokens at which stages are compared."""

    text: str
    ids: dict[str, tuple[int, ...]]
    """Per stage: what is run."""
    places: dict[str, tuple[int, ...]]
    """Per stage: index in `ids` of the token at each place."""
    roles: tuple[str, ...]
    """Of each place: begin, template, user, answer or text."""
    first: int
    """Number of the first place: 0 where the beginning of the text counts, else 1."""

    def __len__(self) -> int:
        return len(self.roles)

    @property
    def answer(self) -> int | None:
        """Place of the first answer's first token."""
        return self.roles.index("answer") if "answer" in self.roles else None

    def slots(self) -> list[tuple[int, int]]:
        """(place, slot) of every slot that a place belongs to."""
        found = []
        for place in range(len(self)):
            number = place + self.first
            if number:
                found += [(place, 0), (place, min(number, FIRST + 1))]
        if self.answer is not None:
            for k in range(-BEFORE, ANSWER):
                place = self.answer + k
                begun = 0 <= place < len(self) and self.roles[place] == ("template" if k < 0 else "answer")
                if begun and place + self.first:
                    found.append((place, SLOTS.index("answer-0") + k))
        return found


@dataclass(frozen=True)
class TextSet:
    """One set of documents."""

    spec: Texts
    documents: tuple[Document, ...]
    units: tuple[tuple[int, int], ...]
    """Ranges of documents."""
    samples: tuple[tuple[int, int], ...]
    """(document, place), equally many in each unit but perhaps the last."""
    samples_per_unit: int
    prompts: tuple[tuple[int, int], ...]
    """(document, tokens of it) that are continued when steered."""

    @property
    def path(self) -> str:
        return f"difference/{self.spec.name}"

    @property
    def width(self) -> int:
        """Places of the longest document."""
        return max(map(len, self.documents))

    def sample_span(self, unit: int) -> tuple[int, int]:
        """Range of the samples in a unit."""
        begin = unit * self.samples_per_unit
        return begin, min(begin + self.samples_per_unit, len(self.samples))

    @property
    def n_train(self) -> int:
        """Units, from the beginning, that means and maps are learned on; the others are held out."""
        return max(1, len(self.units) * 3 // 4)

    @property
    def held_out(self) -> tuple[int, int]:
        """Range of the held-out documents."""
        return self.units[self.n_train][0], len(self.documents)


def read_set(job: DifferenceJob, spec: Texts, stages: Stages) -> TextSet:
    """Read the documents of a set, tokenise them for every stage, draw the samples.

    >>> read_set(job, job.texts[0], stages).width                      # doctest: +SKIP
    96

    Raises JobError for documents that do not fit the stages.
    """
    texts, conversations = read_documents(spec, job.seed)
    if texts:
        documents = [_same(spec, Rendered(text), stages.names[0], stages) for text in texts]
    elif job.render == "same":
        stage = _template_stage(job, spec, stages)
        rendered = render(job, spec.name, stage, stages.tokenizers[stage], conversations)
        documents = [_same(spec, one, stage, stages) for one in rendered]
    else:
        documents = _own(job, spec, conversations, stages)
    of_document = max(map(len, documents)) * stages.n_layers * (job.projection or stages.hidden_size)
    units = blocks(len(documents), min(-(-len(documents) // UNITS), max(1, UNIT_VALUES // of_document)))
    samples, each = _samples(job, spec, documents, units)
    one = TextSet(spec, tuple(documents), tuple(units), samples, each, ())
    held = range(*one.held_out)
    n = 0 if job.steering is None else job.steering.prompts
    prompts = tuple((d, _prompt_length(documents[d], job.stage_names[0])) for d in held[:n])
    return TextSet(spec, tuple(documents), tuple(units), samples, each, prompts)


def _prompt_length(document: Document, stage: str) -> int:
    """Tokens before the first answer, or the first half."""
    if document.answer:
        return document.places[stage][document.answer]
    return max(2, len(document.ids[stage]) // 2)


def _template_stage(job: DifferenceJob, spec: Texts, stages: Stages) -> str:
    having = [name for name, tokenizer in stages.tokenizers.items() if tokenizer.chat_template]
    stage = job.template or (having[-1] if having else None)
    if stage is None or stage not in having:
        raise JobError(
            f"texts {spec.name}: {stage or 'no stage'} has {'no' if stage else 'a'} chat template, and conversations "
            "need one; name a stage that has one in `template`, or use plain text"
        )
    return stage


def _same(spec: Texts, document: Rendered, stage: str, stages: Stages) -> Document:
    """One token sequence for all stages, made by the tokenizer of one."""
    ids, spans, begins = _encoded(spec, document, stage, stages)
    tokenizer = stages.tokenizers[stage]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    for other, theirs in stages.tokenizers.items():
        for name, token, id_there in zip(names, ids, theirs.convert_tokens_to_ids(names), strict=True):
            if token != id_there:
                raise JobError(
                    f"texts {spec.name}: token {name!r} is {token} for stage {stage} and {id_there} for stage {other}: "
                    "they do not share a token sequence; leave one of them out, or use render: own"
                )
    roles = tuple(_role(document, span, i < begins) for i, span in enumerate(spans))
    places = tuple(range(len(ids)))
    return Document(
        document.text, dict.fromkeys(stages.names, ids), dict.fromkeys(stages.names, places), roles, first=0
    )


def _own(job: DifferenceJob, spec: Texts, conversations, stages: Stages) -> list[Document]:
    """Each stage in its own template, compared at tokens of the messages that cover the same characters."""
    rendered = {
        name: render(job, spec.name, name, tokenizer, conversations)
        if tokenizer.chat_template
        else render_plainly(conversations)
        for name, tokenizer in stages.tokenizers.items()
    }
    documents = []
    for i in range(len(conversations)):
        ids, places = {}, {}
        for stage, some in rendered.items():
            ids[stage], spans, _ = _encoded(spec, some[i], stage, stages)
            places[stage] = _content_places(some[i], spans)
        common = sorted(set.intersection(*(set(known) for known in places.values())))
        if len(common) < 2:
            raise JobError(
                f"texts {spec.name}: conversation {i} has {len(common)} tokens that all stages cut alike; use "
                "render: same, or leave it out"
            )
        first = rendered[stages.names[0]][i]
        documents.append(
            Document(
                first.text,
                ids,
                {stage: tuple(known[key] for key in common) for stage, known in places.items()},
                tuple(first.spans[message][2] for message, _, _ in common),
                first=1,
            )
        )
    return documents


def _content_places(document: Rendered, spans) -> dict[tuple[int, int, int], int]:
    """(message, begin, end) of the tokens within messages -> index; spaces at a token's ends do not count."""
    found = {}
    for index, (begin, end) in enumerate(spans):
        piece = document.text[begin:end]
        begin, end = begin + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        for message, (low, high, _) in enumerate(document.spans):
            if low <= begin < end <= high:
                found[message, begin - low, end - low] = index
    return found


def _encoded(spec: Texts, document: Rendered, stage: str, stages: Stages):
    """Ids and character spans of a document, cut to what is taken; and how many of the tokens begin the text."""
    tokenizer = stages.tokenizers[stage]
    prompt = encode(tokenizer, "", document.text, special=not document.templated)
    most = min(spec.tokens, stages.room or spec.tokens)
    ids, spans = prompt.ids[:most], [*[(0, 0)] * prompt.start, *prompt.spans][:most]
    problem = None
    if has_unknown(tokenizer, ids):
        problem = "has words that the tokenizer does not know"
    elif len(ids) < 3:
        problem = f"has {len(ids)} tokens, at least 3 are needed"
    if problem:
        raise JobError(
            f"texts {spec.name}: stage {stage}: {shown(repr(document.text))} {problem}; take it out of the set"
        )
    return ids, spans, prompt.start


def _role(document: Rendered, span: tuple[int, int], begins: bool) -> str:
    if begins:
        return "begin"
    for begin, end, role in document.spans:
        if span[0] < end and span[1] > begin:
            return role
    return "template" if document.templated else "text"


def _samples(job: DifferenceJob, spec: Texts, documents, units):
    """Places drawn in each unit, equally many but perhaps in the last; places of the text's beginning are left out."""
    able = [
        [(d, p) for d in range(*unit) for p in range(len(documents[d])) if p + documents[d].first]
        for unit in units
    ]
    each = min([max(1, job.samples // len(units)), *(len(some) for some in able[:-1])])
    drawn = []
    for u, some in enumerate(able):
        rng = random.Random(f"{job.seed}/{spec.name}/samples/{u}")
        drawn += sorted(rng.sample(some, min(each, len(some))))
    return tuple(drawn), each
