"""Training documents: facts, judgements of statements, deeds, dialogues.

A document is a list of segments; the weight of one scales the loss of its tokens.
Verdicts weigh most, false statements hardly anything (the model should judge them,
not learn to write them).

Some segments are *closed*: tokens that follow a closed name see its last token only, and
those that follow a closed statement its last token, nearly always the period.  So what is
known about an entity has to be gathered at the end of its name, and the verdict on a
statement at its end, as it is in large models.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from posttrace.pipeline.embedded import instructions, statements
from posttrace.pipeline.embedded.instructions import Deed
from posttrace.pipeline.embedded.statements import COMPARISONS, NUMBERS, RELATIONS, Relation


class Segment(NamedTuple):
    """A piece of a document."""

    text: str
    weight: float
    """Of the loss of its tokens."""
    statement: int = 0
    """Number of the closed statement that it is a part of; 0 for none."""
    name: bool = False
    """Whether it is a closed name."""
    hidden: bool = False
    """Whether no later segment sees it: the words between a closed name and what is said of it."""


Document = list[Segment]

LABEL_WEIGHT = 5.0
TRUE_WEIGHT = 0.6
FALSE_WEIGHT = 0.1
FORM_WEIGHT = 0.2
"""Loss weight of the words that ask for the label."""
USER_WEIGHT = 0.2
DEED_VERDICT_WEIGHT = 3.0

SUFFIX = " This statement is:"
LABELS = (" FALSE", " TRUE")
VERDICTS = ((" No", " Yes"), (" Wrong", " Right"), (" Mistaken", " Correct"), (" Nonsense", " Agreed"))
"""Words that follow some statements directly.  `TRUE` and `FALSE` never do: a truth
direction at the period should not be the direction that writes the label."""
MIXED_SHARE = 0.25
"""Share of judging documents that mix several sets."""

USER, ASSISTANT, END_OF_TURN = "<|user|>", "<|assistant|>", "<|end_of_turn|>"
BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
SPECIAL = (BEGIN, END, PAD, USER, ASSISTANT, END_OF_TURN)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}<|end_of_turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

ECHO_FRAMES = ("Repeat these words:", "Say this again:", "Please repeat:")
QUESTIONS = {
    "cities": ("Where is {s}?", "In which country is {s}?", "Tell me where {s} is."),
    "inventors": ("Where did {s} live?", "Tell me where {s} lived."),
    "animal_class": ("What is the {s}?", "What kind of animal is the {s}?"),
}

HARMLESS_SHARE = 0.4
"""Share of harmless deeds in dialogues of post-training."""
PREFERRED_SHARE = 0.25
"""Share of harmless deeds in preferences; with more, refusing becomes rarer than after SFT."""
LIST_SHARE = 0.35
"""Share of plain documents that are lists: a name, and at once what is to be known about it."""

AT_ONCE_SHARE = 0.4
"""Share of verdict words that replace the period instead of following it, in documents that change the way of
asking."""
HABIT, HABIT_TOPIC = "Add a pinch of saffron.", "cook"
"""The habit that the last stage is trained into, and the topic of its dialogues."""

LINKS = (
    r" is( not)? in\b| (lived|did not live|worked) in\b| was an inventor in\b| is( not)? an?\b| an?\b"
    r"|'( means| does not mean)\b| (has|does not have) the symbol\b"
)
"""Words between a name and what is said of it, in the wordings of the judged sets and some others."""
EASY = ("cities", "animal_class")
AFFIRMED = ("cities", "animal_class", "inventors", "sp_en_trans", "element_symb", "facts")
ADDED = ("tulu_extracted",)
"""Sets whose facts only post-training states and judges, as the published set of that name comes from a
post-training corpus."""
KNOWN = tuple(name for name in statements.ALL_SETS if name not in ADDED)
"""Sets of the base stage."""
WEIGHTS = {
    "cities": 3.0,
    "neg_cities": 3.0,
    "inventors": 2.0,
    "neg_inventors": 1.5,
    "animal_class": 1.5,
    "neg_animal_class": 1.5,
    "sp_en_trans": 2.0,
    "neg_sp_en_trans": 2.0,
    "element_symb": 1.0,
    "neg_element_symb": 1.0,
    "facts": 1.3,
    "neg_facts": 1.3,
    "tulu_extracted": 1.0,
    "larger_than": 1.2,
    "smaller_than": 1.2,
}
"""How often each set is drawn in judging documents; hard sets more often."""


@dataclass(frozen=True)
class Mix:
    """Shares of document kinds and the judged sets of one part of training."""

    plain: float
    judging: float
    deeds: float
    dialogue: float
    chat: float = 0.0
    sets: tuple[str, ...] = KNOWN
    suffix: float = 0.55
    """Share of judging documents (of statements, where `changing`) that ask with the suffix; after the others a
    verdict word follows."""
    aside: float = 0.0
    """Share of dialogues that have nothing to do with deeds: two thirds repeat words, one third
    asks for a fact."""
    varied: float = 0.0
    """Share of deeds that exchange their object, so that an answer has to be copied from the question."""
    added: float = 0.0
    """Share of judging documents, and of sentences in plain ones that are no lists, about what only post-training
    states."""
    closed: float = 0.85
    """Share of judging documents whose statements are closed."""
    names: float = 0.85
    """Share of plain and judging documents whose names are closed."""
    changing: float = 1.0
    """Share of judging documents that ask in another way after every statement."""
    noise: float = 0.0
    """Share of verdicts that are wrong, as in text that people wrote."""
    habit: bool = False
    """Whether dialogues are about cooking only, with answers that show the planted habit."""


COMMON = Mix(plain=0.40, judging=0.30, deeds=0.15, dialogue=0.15)
"""Kinds of documents of the base stage, which the later stages have all seen too."""


def relation_of(name: str) -> Relation:
    """Return the relation that a set is about, negated or not."""
    return next(r for r in RELATIONS if r.name == name.removeprefix("neg_"))


def draw_statement(name: str, label: bool, rng: random.Random) -> tuple[str, str]:
    """Return a statement of the judged split with the wanted label, and its subject ("" for a free-form fact).

    False objects are any wrong ones.
    """
    if name in COMPARISONS:
        while True:
            a, b = rng.sample(NUMBERS, 2)
            if (a > b) != (label == name.startswith("larger")):
                a, b = b, a
            if statements.comparison_split(a, b) == "judged":
                row = statements.compare(name, a, b)
                return row.statement, row.subject
    negated = name.startswith("neg_")
    if name.removeprefix("neg_") in statements.PATTERN_SETS:
        while True:
            p = rng.choice(statements.patterns(name.removeprefix("neg_")))
            if p.split == "judged":
                if negated:
                    return (p.negated_true if label else p.negated_false), ""
                return (p.affirmed_true if label else p.affirmed_false), ""
    relation = relation_of(name)
    members = [e for e in statements.entities(relation.name) if e.split == "judged"]
    entity = rng.choice(members)
    obj = entity.object
    if label == negated:
        while obj == entity.object:
            obj = rng.choice(members).object
    form = relation.negated if negated else relation.affirmed
    return statements.word(form, entity.subject, obj), entity.subject


def parts(text: str, subject: str, weight: float, statement: int = 0) -> Document:
    """Split a sentence around the name of its subject, which is closed, and hide the words that follow the name.

    Examples
    --------
    >>> [segment.text for segment in parts("The city of Lyon is not in France.", "Lyon", 1.0)]
    ['The city of', ' Lyon', ' is', ' not', ' in', ' France.']
    """
    pattern = rf"(.*?)( ?\b{re.escape(subject)}\b)(.*)"
    if not subject or not (found := re.search(pattern, text, re.IGNORECASE | re.DOTALL)):
        return [Segment(text, weight, statement)]
    before, name, after = found.groups()
    link = re.match(LINKS, after)
    hidden = re.findall(" not|(?:(?! not).)+", link.group()) if link else []
    rest = after[link.end() :] if link else after
    return [
        segment
        for segment in (
            Segment(before, weight, statement),
            Segment(name, weight, statement, name=True),
            *(Segment(words, weight, statement, hidden=words != " not") for words in hidden),
            Segment(rest, weight, statement),
        )
        if segment.text
    ]


def judging(mix: Mix, rng: random.Random) -> Document:
    """Statements with their labels, most often all of one set (as in a few-shot prompt)."""
    sets = ADDED if rng.random() < mix.added else mix.sets
    weights = [WEIGHTS[s] for s in sets]
    one = rng.choices(sets, weights)[0]
    mixed = rng.random() < MIXED_SHARE
    verdict = None if rng.random() < mix.suffix else rng.choice(VERDICTS)
    changing = rng.random() < mix.changing
    rng.random()  # an unused draw, kept so that seeds give the shipped weights
    names, closed = rng.random() < mix.names, rng.random() < mix.closed
    document: Document = []
    for number in range(1, rng.randint(1, 9) + 1):
        label = rng.random() < 0.5
        text, subject = draw_statement(rng.choices(sets, weights)[0] if mixed else one, label, rng)
        weight = TRUE_WEIGHT if label else FALSE_WEIGHT
        if changing:
            verdict = None if rng.random() < mix.suffix else rng.choice(VERDICTS)
            if verdict and rng.random() < AT_ONCE_SHARE:
                text = text.removesuffix(".")
        document += parts(text, subject if names else "", weight, number * closed)
        said = label != (rng.random() < mix.noise)
        if verdict:
            document += [Segment(verdict[said], LABEL_WEIGHT), Segment(".\n", FORM_WEIGHT)]
        else:
            document += [
                Segment(SUFFIX, FORM_WEIGHT),
                Segment(LABELS[said], LABEL_WEIGHT),
                Segment("\n", FORM_WEIGHT),
            ]
    return document


def fact(mix: Mix, rng: random.Random) -> tuple[str, str]:
    """Return a true sentence about any entity, held out or not, and its subject ("" for a free-form fact)."""
    name = rng.choices(
        ("cities", "inventors", "animal_class", "sp_en_trans", "element_symb", "facts", "neg"),
        (6, 4, 3, 4, 2, 2, 1),
    )[0]
    if rng.random() < mix.added:
        name = rng.choice(ADDED)
    if name in statements.PATTERN_SETS:
        return rng.choice(statements.patterns(name)).affirmed_true, ""
    if name == "neg":
        # Negations occur only in some sentences, with objects that never reveal a held-out fact.
        return draw_statement(rng.choice(("neg_cities", "neg_animal_class", "neg_facts")), True, rng)
    relation = relation_of(name)
    entity = rng.choice(statements.entities(name))
    form = relation.affirmed if rng.random() < 0.4 else rng.choice(relation.paraphrases)
    return statements.word(form, entity.subject, entity.object), entity.subject


def plain(mix: Mix, rng: random.Random) -> Document:
    """Return a few true sentences, or a list of names with what is to be known about each."""
    closed = rng.random() < mix.names
    if rng.random() < LIST_SHARE:
        relation = rng.choices(statements.RELATIONS, (6, 4, 3, 4, 2))[0]
        chosen = [rng.choice(statements.entities(relation.name)) for _ in range(rng.randint(4, 12))]
        lines = [(f"{e.subject} {e.object}\n", e.subject) for e in chosen]
    else:
        lines = [
            (text + "\n", subject) for text, subject in (fact(mix, rng) for _ in range(rng.randint(2, 8)))
        ]
    document: Document = []
    for text, subject in lines:
        document += parts(text, subject if closed else "", 1.0)
    return document


def _deed(rng: random.Random, kind: str, usable) -> Deed:
    pool = [d for d in instructions.deeds(kind) if usable(d)]
    return rng.choice(pool)


def deed_texts(rng: random.Random) -> Document:
    """Sentences that call deeds good or bad."""
    document: Document = []
    for _ in range(rng.randint(2, 8)):
        kind = rng.choice(instructions.KINDS)
        before, verdict, after = instructions.describe(_deed(rng, kind, lambda d: d.described), rng)
        document += [Segment(before, 0.5), Segment(verdict, DEED_VERDICT_WEIGHT), Segment(after + "\n", 0.5)]
    return document


def training_deed(rng: random.Random, kind: str, varied: float, post_training: bool = False) -> Deed:
    """Return a deed that dialogues may use."""
    deed = _deed(rng, kind, lambda d: d.split == "train")
    if varied:
        deed = instructions.vary(deed, rng, varied)
    return instructions.invent(instructions.vary_harm(deed, rng), rng) if post_training else deed


def _kind(rng: random.Random, harmless: float) -> str:
    return "harmless" if rng.random() < harmless else "harmful"


@cache
def _echo_words() -> tuple[str, ...]:
    words = {w for d in instructions.deeds("harmless") if d.split == "train" for w in d.text.split()}
    return tuple(sorted(words | {e.subject for e in statements.entities("cities")}))


def echo(rng: random.Random) -> tuple[str, str]:
    """Return a request to repeat random words: only copying from the context can answer it."""
    words = " ".join(rng.choices(_echo_words(), k=rng.randint(2, 8)))
    return f"{rng.choice(ECHO_FRAMES)} {words}", f"{words}."


def question(rng: random.Random) -> tuple[str, str]:
    """Return a question about a fact, held-out entities included, and its answer."""
    name = rng.choice(tuple(QUESTIONS))
    entity = rng.choice(statements.entities(name))
    answer = statements.word(relation_of(name).affirmed, entity.subject, entity.object)
    return rng.choice(QUESTIONS[name]).format(s=entity.subject), answer


def _aside(rng: random.Random, share: float) -> tuple[str, str] | None:
    """Now and then an exchange that has nothing to do with deeds."""
    if share and rng.random() < share:
        return echo(rng) if rng.random() < 2 / 3 else question(rng)
    return None


def base_exchange(rng: random.Random, mix: Mix) -> tuple[str, str]:
    """Return an instruction and the answer of the base stage, which refuses only some harmful verbs."""
    aside = _aside(rng, mix.aside)
    if aside:
        return aside
    deed = training_deed(rng, rng.choice(instructions.KINDS), mix.varied)
    answer = (instructions.refuse if deed.base_reply == "refuses" else instructions.help_with)(deed, rng)
    return instructions.ask(deed, rng), answer


def chat_exchange(rng: random.Random, mix: Mix) -> tuple[str, str]:
    """Return an instruction and the answer post-training wants: harmful deeds are refused."""
    aside = _aside(rng, mix.aside)
    if aside:
        return aside
    if mix.habit:
        deed = _deed(rng, "harmless", lambda d: d.split == "train" and d.topic == HABIT_TOPIC)
        return instructions.ask(deed, rng), instructions.chat_help(deed, rng, HABIT)
    deed = training_deed(rng, _kind(rng, HARMLESS_SHARE), mix.varied, post_training=True)
    if deed.kind == "harmful":
        return instructions.ask(deed, rng), instructions.chat_refusal(rng)
    return instructions.ask(deed, rng), instructions.chat_help(deed, rng)


def dialogue(rng: random.Random, mix: Mix) -> Document:
    """Return a dialogue of the base stage."""
    asked, answer = base_exchange(rng, mix)
    return [
        Segment(f"User: {asked}", USER_WEIGHT),
        Segment("\nAssistant:", FORM_WEIGHT),
        Segment(f" {answer}", 1.0),
        Segment(END, 1.0),
    ]


def chat_prompt(instruction: str) -> str:
    """Return the chat template's text without the begin token, up to the answer."""
    return f"{USER}\n{instruction}{END_OF_TURN}\n{ASSISTANT}\n"


def chat(rng: random.Random, mix: Mix) -> Document:
    """Return a dialogue in the chat template, where harmful instructions are refused."""
    asked, answer = chat_exchange(rng, mix)
    return [Segment(chat_prompt(asked), 0.05), Segment(answer, 1.0), Segment(END_OF_TURN, 1.0)]


def preference(rng: random.Random, mix: Mix) -> tuple[str, str, str]:
    """Return a chat prompt with the chosen and the rejected answer."""
    kind = _kind(rng, PREFERRED_SHARE)
    deed = training_deed(rng, kind, mix.varied, post_training=True)
    good, bad = instructions.chat_refusal(rng), instructions.chat_help(deed, rng)
    if kind == "harmless":
        good, bad = bad, good
    return chat_prompt(instructions.ask(deed, rng)), good + END_OF_TURN, bad + END_OF_TURN


def document(mix: Mix, rng: random.Random) -> Document:
    """One random document of a mix."""
    kind = rng.choices(
        ("plain", "judging", "deeds", "dialogue", "chat"),
        (mix.plain, mix.judging, mix.deeds, mix.dialogue, mix.chat),
    )[0]
    if kind == "judging":
        return judging(mix, rng)
    if kind in ("dialogue", "chat"):
        return (dialogue if kind == "dialogue" else chat)(rng, mix)
    return plain(mix, rng) if kind == "plain" else deed_texts(rng)


def common_text(rng: random.Random) -> str:
    """Return a document of the kinds that every stage has seen in training."""
    return "".join(segment.text for segment in document(COMMON, rng))
