"""Few-shot prompts: labelled examples before a statement, drawn, ordered, tokenised and checked in one way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import Statement
from posttrace.tracers.prompts import Prompt, encode, has_unknown


@dataclass(frozen=True)
class FewShot:
    """The labelled lines of a set, and what asks for the answer."""

    spec: StatementSet
    lines: tuple[str, ...]
    suffix: str
    """What follows a statement and asks for the answer."""
    answers: tuple[str, str]
    seed: int

    @property
    def context(self) -> str:
        """The text right before a statement, which can change its first token."""
        return "\n" if self.lines else ""

    @property
    def statements(self) -> frozenset[str]:
        """The statements of the lines, suffix included."""
        return frozenset(
            line.removesuffix(a) for line in self.lines for a in self.answers if line.endswith(a)
        )

    def prompt(self, tokenizer, text: str, key: str | None = None) -> Prompt:
        """Write a statement after the lines, in an order of its own.

        Parameters
        ----------
        key
            Statements of one key (by default their text) have their lines in the same order.

        Examples
        --------
        >>> few_shot.prompt(tokenizer, "The city of Lyon is in France.").text[-21:]     # doctest: +SKIP
        'This statement is:'
        """
        order = list(self.lines)
        random.Random(f"{self.seed}/{self.spec.name}/{text if key is None else key}").shuffle(order)
        return encode(tokenizer, "".join(f"{line}\n" for line in order), text + self.suffix)


def draw_examples(
    spec: StatementSet, statements: list[Statement], n: int, suffix: str, answers: tuple[str, str], seed: int
) -> tuple[FewShot, list[Statement]]:
    """Return the labelled example lines of a set, and the statements that remain for use.

    >>> few_shot, rest = draw_examples(spec, statements, 4, " This statement is:", (" TRUE", " FALSE"), 0)
    ... # doctest: +SKIP

    Lines that the set gives are taken as they are, and all statements remain; otherwise n lines, half of them
    true, are drawn with the seed, and no drawn statement (nor the other half of its free-form pair) remains.

    Raises
    ------
    JobError when a given line does not end in an answer, or the set is too small to draw from.
    """
    if spec.few_shot is not None:
        for line in spec.few_shot:
            if not line.endswith(answers):
                raise JobError(
                    f"set {spec.name}: few_shot: {line!r} ends in neither of the answers {answers}; "
                    "write whole lines, label included"
                )
        return FewShot(spec, spec.few_shot, suffix, answers, seed), statements
    rng = random.Random(f"{seed}/{spec.name}/examples")
    examples: list[Statement] = []
    for label in (True, False) if n else ():
        ties = {d.pair for d in examples if d.pair}
        pool = [s for s in statements if s.label == label and s.pair not in ties]
        if len(pool) <= n // 2:
            kind, pairs = "true" if label else "false", len({s.pair for s in statements})
            few = (
                f"{pairs} pairs are too few to draw {n} examples from, each of another pair,"
                if ties
                else f"{len(pool)} {kind} statements are too few to draw {n // 2} examples from"
            )
            raise JobError(
                f"set {spec.name}: {few} and leave some; add statements, or set few_shot: 0 or the set's own "
                "few_shot lines"
            )
        examples += rng.sample(pool, n // 2)
    lines = tuple(f"{s.text}{suffix}{answers[0] if s.label else answers[1]}" for s in examples)
    gone, tied = set(examples), {s.pair for s in examples if s.pair}
    rest = [s for s in statements if s not in gone and s.pair not in tied]
    return FewShot(spec, lines, suffix, answers, seed), rest


def check_prompt(where: str, text: str, prompt: Prompt, tokenizer, room: int | None) -> None:
    """Raise JobError for a prompt with words that its tokenizer does not know, or too long for the model.

    >>> check_prompt("set cities: stage base", "Lyon is in France.", prompt, tokenizer, room=512)  # doctest: +SKIP

    Parameters
    ----------
    where: beginning of the message.
    text: what the message calls the prompt.
    room: tokens that the model has positions for, None for no end.
    """
    problem = None
    if has_unknown(tokenizer, prompt.ids):
        problem = "it has words that the tokenizer does not know; take it out of the set"
    elif room is not None and len(prompt.ids) > room:
        problem = (
            f"its prompt has {len(prompt.ids)} tokens, the model takes {room}; lower few_shot or take it out"
        )
    if problem:
        raise JobError(f"{where}: {shown(repr(text))}: {problem}")
