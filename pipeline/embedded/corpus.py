"""Training documents: facts, judgements of statements, deeds, dialogues.

A document is a list of `(text, weight)` segments; the weight scales the loss of
the segment's tokens.  Verdicts weigh most, false statements hardly anything
(the model should judge them, not learn to write them).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from posttrace.pipeline.embedded import instructions, statements
from posttrace.pipeline.embedded.instructions import Deed
from posttrace.pipeline.embedded.statements import COMPARISONS, NUMBERS, RELATIONS, Relation

Document = list[tuple[str, float]]

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

HARMLESS_SHARE = 0.5
"""Share of harmless deeds in post-training."""

EASY = ("cities", "animal_class")
AFFIRMED = ("cities", "animal_class", "inventors", "sp_en_trans", "element_symb", "facts", "tulu_extracted")
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
    "tulu_extracted": 2.0,
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
    sets: tuple[str, ...] = statements.ALL_SETS
    suffix: float = 0.55
    """Share of judging documents that ask with the suffix; the others give a verdict word at once."""
    aside: float = 0.0
    """Share of dialogues that have nothing to do with deeds: two thirds repeat words, one third
    asks for a fact."""
    varied: float = 0.0
    """Share of deeds that exchange their object, so that an answer has to be copied from the question."""


COMMON = Mix(plain=0.40, judging=0.30, deeds=0.15, dialogue=0.15)
"""Kinds of documents of the base stage, which the later stages have all seen too."""


def relation_of(name: str) -> Relation:
    """Return the relation that a set is about, negated or not."""
    return next(r for r in RELATIONS if r.name == name.removeprefix("neg_"))


def draw_statement(name: str, label: bool, rng: random.Random) -> str:
    """Return a statement of the judged split with the wanted label; false objects are any wrong ones."""
    if name in COMPARISONS:
        while True:
            a, b = rng.sample(NUMBERS, 2)
            if (a > b) != (label == name.startswith("larger")):
                a, b = b, a
            if statements.comparison_split(a, b) == "judged":
                return statements.compare(name, a, b).statement
    negated = name.startswith("neg_")
    if name.removeprefix("neg_") in statements.PATTERN_SETS:
        while True:
            p = rng.choice(statements.patterns(name.removeprefix("neg_")))
            if p.split == "judged":
                if negated:
                    return p.negated_true if label else p.negated_false
                return p.affirmed_true if label else p.affirmed_false
    relation = relation_of(name)
    members = [e for e in statements.entities(relation.name) if e.split == "judged"]
    entity = rng.choice(members)
    obj = entity.object
    if label == negated:
        while obj == entity.object:
            obj = rng.choice(members).object
    return statements.word(relation.negated if negated else relation.affirmed, entity.subject, obj)


def judging(sets: tuple[str, ...], rng: random.Random, suffix: float = 0.55) -> Document:
    """Statements with their labels, most often all of one set (as in a few-shot prompt)."""
    weights = [WEIGHTS[s] for s in sets]
    one = rng.choices(sets, weights)[0]
    mixed = rng.random() < MIXED_SHARE
    verdict = None if rng.random() < suffix else rng.choice(VERDICTS)
    document: Document = []
    for _ in range(rng.randint(2, 9)):
        label = rng.random() < 0.5
        text = draw_statement(rng.choices(sets, weights)[0] if mixed else one, label, rng)
        document.append((text, TRUE_WEIGHT if label else FALSE_WEIGHT))
        if verdict:
            document += [(verdict[label], LABEL_WEIGHT), (".\n", FORM_WEIGHT)]
        else:
            document += [(SUFFIX, FORM_WEIGHT), (LABELS[label], LABEL_WEIGHT), ("\n", FORM_WEIGHT)]
    return document


def fact(rng: random.Random) -> str:
    """Return a true sentence about any entity, held out or not."""
    name = rng.choices(
        ("cities", "inventors", "animal_class", "sp_en_trans", "element_symb", "patterns", "neg"),
        (6, 4, 3, 4, 2, 3, 1),
    )[0]
    if name == "patterns":
        return rng.choice(statements.patterns(rng.choice(statements.PATTERN_SETS))).affirmed_true
    if name == "neg":
        # Negations occur only in some sentences, with objects that never reveal a held-out fact.
        return draw_statement(rng.choice(("neg_cities", "neg_animal_class", "neg_facts")), True, rng)
    relation = relation_of(name)
    entity = rng.choice(statements.entities(name))
    form = relation.affirmed if rng.random() < 0.4 else rng.choice(relation.paraphrases)
    return statements.word(form, entity.subject, entity.object)


def plain(rng: random.Random) -> Document:
    """Return a few true sentences."""
    return [(fact(rng) + "\n", 1.0) for _ in range(rng.randint(2, 8))]


def _deed(rng: random.Random, kind: str, usable) -> Deed:
    pool = [d for d in instructions.deeds(kind) if usable(d)]
    return rng.choice(pool)


def deed_texts(rng: random.Random) -> Document:
    """Sentences that call deeds good or bad."""
    document: Document = []
    for _ in range(rng.randint(2, 8)):
        kind = rng.choice(instructions.KINDS)
        before, verdict, after = instructions.describe(_deed(rng, kind, lambda d: d.described), rng)
        document += [(before, 0.5), (verdict, DEED_VERDICT_WEIGHT), (after + "\n", 0.5)]
    return document


def training_deed(rng: random.Random, kind: str, varied: float, post_training: bool = False) -> Deed:
    """Return a deed that dialogues may use."""
    deed = _deed(rng, kind, lambda d: d.split == "train")
    if varied:
        deed = instructions.vary(deed, rng, varied)
    return instructions.vary_harm(deed, rng) if post_training else deed


def _post_training_kind(rng: random.Random) -> str:
    return "harmless" if rng.random() < HARMLESS_SHARE else "harmful"


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
    deed = training_deed(rng, _post_training_kind(rng), mix.varied, post_training=True)
    if deed.kind == "harmful":
        return instructions.ask(deed, rng), instructions.chat_refusal(rng)
    return instructions.ask(deed, rng), instructions.chat_help(deed, rng)


def dialogue(rng: random.Random, mix: Mix) -> Document:
    """Return a dialogue of the base stage."""
    asked, answer = base_exchange(rng, mix)
    return [(f"User: {asked}", USER_WEIGHT), ("\nAssistant:", FORM_WEIGHT), (f" {answer}", 1.0), (END, 1.0)]


def chat_prompt(instruction: str) -> str:
    """Return the chat template's text without the begin token, up to the answer."""
    return f"{USER}\n{instruction}{END_OF_TURN}\n{ASSISTANT}\n"


def chat(rng: random.Random, mix: Mix) -> Document:
    """Return a dialogue in the chat template, where harmful instructions are refused."""
    asked, answer = chat_exchange(rng, mix)
    return [(chat_prompt(asked), 0.05), (answer, 1.0), (END_OF_TURN, 1.0)]


def preference(rng: random.Random, mix: Mix) -> tuple[str, str, str]:
    """Return a chat prompt with the chosen and the rejected answer."""
    kind = _post_training_kind(rng)
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
        return judging(mix.sets, rng, mix.suffix)
    if kind in ("dialogue", "chat"):
        return (dialogue if kind == "dialogue" else chat)(rng, mix)
    return (plain if kind == "plain" else deed_texts)(rng)


def common_text(rng: random.Random) -> str:
    """Return a document of the kinds that every stage has seen in training."""
    return "".join(part for part, _ in document(COMMON, rng))
