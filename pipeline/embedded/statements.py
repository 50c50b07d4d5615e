"""True/false statement sets, made from the facts.

Run it to write the CSVs again:

    python -m posttrace.pipeline.embedded.statements

Every relation (a city and its country, an animal and its class, ...) gives one
true and one false statement per entity, and the same two negated.  False
objects are a *derangement* of the true ones among entities of the same split
and of the same number of subject tokens.  So an object is as often true as
false (the object alone says nothing), and every true statement has false
partners with the same last word and the same token pattern, which activation
patching needs.
"""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrace.pipeline.embedded import FACTS, STATEMENTS, TOKENIZER

SEED = 20
HELD_OUT_EVERY = 5
"""Every fifth entity of an object is stated in training text, never judged there."""


@dataclass(frozen=True)
class Relation:
    """How one relation is put into words; `{s}` is the subject, `{o}` the object."""

    name: str
    affirmed: str
    negated: str
    paraphrases: tuple[str, ...]
    """Further true wordings for plain training text, so that a fact is not one string only."""
    shared_objects: bool = True
    """Whether many subjects share an object (a country has many cities)."""


RELATIONS = (
    Relation(
        "cities",
        "The city of {s} is in {o}.",
        "The city of {s} is not in {o}.",
        ("{s} is a city in {o}.", "People in {s} live in {o}.", "One of the cities of {o} is {s}."),
    ),
    Relation(
        "inventors",
        "{s} lived in {o}.",
        "{s} did not live in {o}.",
        ("The inventor {s} worked in {o}.", "{s} was an inventor in {o}.", "An inventor in {o} was {s}."),
    ),
    Relation(
        "animal_class",
        "The {s} is {a} {o}.",
        "The {s} is not {a} {o}.",
        ("A kind of {o} is the {s}.", "We call the {s} {a} {o}.", "Like any {o}, the {s} needs food."),
    ),
    Relation(
        "sp_en_trans",
        "The Spanish word '{s}' means '{o}'.",
        "The Spanish word '{s}' does not mean '{o}'.",
        ("In Spanish one says '{s}' for '{o}'.", "The word '{o}' is '{s}' in Spanish."),
        False,
    ),
    Relation(
        "element_symb",
        "{s} has the symbol {o}.",
        "{s} does not have the symbol {o}.",
        ("The symbol of {s} is {o}.", "We write {o} for {s}."),
        False,
    ),
)
COMPARISONS = ("larger_than", "smaller_than")
PATTERN_SETS = ("facts", "tulu_extracted")
ALL_SETS = (
    "cities",
    "neg_cities",
    "larger_than",
    "smaller_than",
    "sp_en_trans",
    "neg_sp_en_trans",
    "inventors",
    "neg_inventors",
    "animal_class",
    "neg_animal_class",
    "element_symb",
    "neg_element_symb",
    "facts",
    "neg_facts",
    "tulu_extracted",
)
UNITS = "zero one two three four five six seven eight nine".split()
TENS = {5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}
NUMBERS = tuple(n for n in range(51, 100) if n % 10)
"""Round numbers are left out: they are one word shorter than the others."""


@dataclass(frozen=True)
class Entity:
    """One fact: a subject, its true object, and whether its judgement is held out."""

    subject: str
    object: str
    split: str


@dataclass(frozen=True)
class Statement:
    """One row of a statement set."""

    statement: str
    label: int
    subject: str
    object: str
    split: str


def word(template: str, subject: str, obj: str) -> str:
    """Fill a template.

    Examples
    --------
    >>> word("{s} lived in {o}.", "Ada Lovelace", "the U.S.")
    'Ada Lovelace lived in the U.S.'
    """
    article = "an" if obj[0] in "aeiou" else "a"
    return template.format(s=subject, o=obj, a=article).replace("..", ".")


def number(n: int) -> str:
    """Spell a number from 51 to 99.

    Examples
    --------
    >>> number(61)
    'sixty-one'
    """
    return f"{TENS[n // 10]}-{UNITS[n % 10]}"


def _rows(name: str) -> list[dict[str, str]]:
    with open(FACTS / f"{name}.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@cache
def entities(name: str) -> tuple[Entity, ...]:
    """Return the facts of one relation, each with its split."""
    seen: dict[str, int] = defaultdict(int)
    shared = next(r for r in RELATIONS if r.name == name).shared_objects
    out = []
    for row in _rows(name):
        key = row["object"] if shared else ""
        seen[key] += 1
        split = "held_out" if seen[key] % HELD_OUT_EVERY == 0 else "judged"
        out.append(Entity(row["subject"], row["object"], split))
    return tuple(out)


@dataclass(frozen=True)
class Pattern:
    """A free-form fact such as "The Earth {orbits|does not orbit} {the Sun|the Moon}"."""

    affirmed_true: str
    affirmed_false: str
    negated_true: str
    negated_false: str
    """`negated_true` is the negation that holds (of the false one); both empty where there is none."""
    subject: str
    objects: tuple[str, str]
    split: str


@cache
def patterns(name: str) -> tuple[Pattern, ...]:
    """Return the free-form facts of `facts` or `tulu_extracted`.

    Examples
    --------
    >>> patterns("facts")[0].negated_true
    'The Earth does not orbit the Moon.'
    """
    out = []
    for i, row in enumerate(_rows(name), start=1):
        text = row["pattern"]
        slots = [slot.split("|") for slot in re.findall(r"\{([^}]*)\}", text)]
        frame = re.sub(r"\{[^}]*\}", "{}", text)
        split = "held_out" if i % HELD_OUT_EVERY == 0 else "judged"
        if len(slots) == 2:
            (yes, no), (right, wrong) = slots
            texts = (
                frame.format(yes, right),
                frame.format(yes, wrong),
                frame.format(no, wrong),
                frame.format(no, right),
            )
        else:
            ((right, wrong),) = slots
            texts = (frame.format(right), frame.format(wrong), "", "")
        subject = text.split("{")[0].strip()
        out.append(Pattern(*texts, subject, (right, wrong), split))
    return tuple(out)


@cache
def _tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(TOKENIZER))


def subject_tokens(relation: Relation, subject: str) -> int:
    """How many tokens a subject takes inside its statement."""
    before = relation.affirmed.split("{s}")[0]
    quote = "'" if before.endswith("'") else ""
    ids = (
        _tokenizer()
        .encode(f"{quote}{subject}" if quote or not before else f" {subject}", add_special_tokens=False)
        .ids
    )
    return len(ids) - len(quote)


def derange(objects: list[str], rng: random.Random) -> list[str]:
    """Shuffle so that no position keeps its object; where that is impossible, as few as can be.

    Examples
    --------
    >>> derange(["a", "b"], random.Random(0))
    ['b', 'a']
    """
    best = list(objects)
    clashes = len(objects)
    for _ in range(2000):
        trial = list(objects)
        rng.shuffle(trial)
        for i, true in enumerate(objects):
            if trial[i] == true:
                swaps = [j for j in range(len(trial)) if trial[j] != true and objects[j] != true]
                if swaps:
                    j = rng.choice(swaps)
                    trial[i], trial[j] = trial[j], trial[i]
        now = sum(t == o for t, o in zip(trial, objects, strict=True))
        if now < clashes:
            best, clashes = trial, now
        if clashes == 0:
            break
    return best


def false_objects(relation: Relation) -> dict[str, str]:
    """For every subject the object of its false statement."""
    rng = random.Random(f"{SEED}-{relation.name}")
    members = entities(relation.name)
    everything = sorted({e.object for e in members})
    groups: dict[tuple[str, int], list[Entity]] = defaultdict(list)
    for entity in members:
        groups[entity.split, subject_tokens(relation, entity.subject)].append(entity)
    out = {}
    for key in sorted(groups):
        group = groups[key]
        for entity, wrong in zip(group, derange([e.object for e in group], rng), strict=True):
            if wrong == entity.object:  # the group is too small or too uniform
                wrong = rng.choice([o for o in everything if o != entity.object])
            out[entity.subject] = wrong
    return out


def _relation_sets(relation: Relation) -> dict[str, list[Statement]]:
    wrong = false_objects(relation)
    affirmed, negated = [], []
    for e in entities(relation.name):
        for obj, true in ((e.object, 1), (wrong[e.subject], 0)):
            affirmed.append(Statement(word(relation.affirmed, e.subject, obj), true, e.subject, obj, e.split))
            negated.append(
                Statement(word(relation.negated, e.subject, obj), 1 - true, e.subject, obj, e.split)
            )
    return {relation.name: affirmed, f"neg_{relation.name}": negated}


def comparison_split(a: int, b: int) -> str:
    """Whether the ordered pair (a, b) is judged in training text; one in five is not."""
    return "held_out" if (7 * a + 11 * b) % HELD_OUT_EVERY == 0 else "judged"


def compare(name: str, a: int, b: int) -> Statement:
    """Return the statement that `a` is larger (or smaller) than `b`.

    Examples
    --------
    >>> compare("larger_than", 61, 54).statement
    'Sixty-one is larger than fifty-four.'
    """
    adjective = name.split("_")[0]
    label = int((a > b) == (adjective == "larger"))
    text = f"{number(a).capitalize()} is {adjective} than {number(b)}."
    return Statement(text, label, number(a), number(b), comparison_split(a, b))


def _comparisons(name: str) -> list[Statement]:
    """For every second number two true, two false judged statements and one of each held out."""
    rng = random.Random(f"{SEED}-{name}")
    out = []
    for b in NUMBERS:
        for split, count in (("judged", 2), ("held_out", 1)):
            for larger in (True, False):
                pool = [
                    a for a in NUMBERS if a != b and (a > b) == larger and comparison_split(a, b) == split
                ]
                for a in sorted(rng.sample(pool, min(count, len(pool)))):
                    out.append(compare(name, a, b))
    return out


def _pattern_sets(name: str) -> dict[str, list[Statement]]:
    affirmed, negated = [], []
    for p in patterns(name):
        for text, label, obj in ((p.affirmed_true, 1, p.objects[0]), (p.affirmed_false, 0, p.objects[1])):
            affirmed.append(Statement(text, label, p.subject, obj, p.split))
        for text, label, obj in ((p.negated_true, 1, p.objects[1]), (p.negated_false, 0, p.objects[0])):
            negated.append(Statement(text, label, p.subject, obj, p.split))
    return {name: affirmed} if name == "tulu_extracted" else {name: affirmed, f"neg_{name}": negated}


@cache
def statement_sets() -> dict[str, tuple[Statement, ...]]:
    """All sets by name; `tulu_extracted` holds minimal pairs in consecutive rows, the true one first."""
    sets: dict[str, list[Statement]] = {}
    for relation in RELATIONS:
        sets |= _relation_sets(relation)
    for name in COMPARISONS:
        sets[name] = _comparisons(name)
    for name in PATTERN_SETS:
        sets |= _pattern_sets(name)
    return {name: tuple(sets[name]) for name in ALL_SETS}


def csv_text(name: str) -> str:
    """Return the CSV of one set, exactly as it is shipped."""
    pairs = name == "tulu_extracted"
    lines = ["statement,label,subject,object,split" + (",pair" if pairs else "")]
    for i, row in enumerate(statement_sets()[name]):
        fields = [row.statement, str(row.label), row.subject, row.object, row.split]
        fields += [str(i // 2)] if pairs else []
        lines.append(",".join(f'"{f}"' if "," in f else f for f in fields))
    return "\n".join(lines) + "\n"


def write(folder: Path = STATEMENTS) -> None:
    """Write every set to `folder/NAME.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ALL_SETS:
        (folder / f"{name}.csv").write_text(csv_text(name), encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"wrote {len(ALL_SETS)} statement sets to {STATEMENTS}")
