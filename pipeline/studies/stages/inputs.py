"""The behaviours of a `stages` job: prompts tokenised once, as the final stage reads them, for all stages alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrace.pipeline.chat import TemplateFails, written_chats
from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.few_shot import check_prompt, draw_examples
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.statements import check_number, read_set, sampled
from posttrace.pipeline.studies.confidence.text import encode_documents, read_documents
from posttrace.pipeline.studies.refusal.instructions import PUBLISHED, read_splits
from posttrace.pipeline.studies.refusal.templates import encoder, openings_after
from posttrace.pipeline.studies.stages.job import OF_SETS, OF_TEXT, Behaviour, StagesJob
from posttrace.pipeline.tensors import filled
from posttrace.tracers.engines.behaviours import Entropy, LogOdds, LogProbability, Question, Row, n_tokens
from posttrace.tracers.prompts import Prompt, answer_ids, encode

PATH = "stages"
UNITS = {
    "refusal": "log-odds, nats: log P(refusal opening) - log P(compliant opening) at the first answer token",
    "verdict": "logit difference, nats: logit(right answer) - logit(other answer)",
    "loss": "loss, nats a token",
    "entropy": "entropy of the next token, nats, mean over tokens",
    "answer": "log P(right answer), nats",
}
"""Behaviour -> what its values are."""
SMOOTH = {UNITS["verdict"]: 0.001, UNITS["loss"]: 0.001}
"""Unit of behaviours that change smoothly along an update -> share of the mean effect that attributions may miss."""


@dataclass(frozen=True)
class Asked:
    """One behaviour, on one set of prompts."""

    path: str
    """Of its group."""
    behaviour: str
    unit: str
    texts: tuple[str, ...]
    """The prompts, as text."""
    kinds: tuple[str, ...]
    """What tells prompts apart: harmful or harmless, true or false; else empty."""
    questions: tuple[Question, ...]
    at_end: bool
    """Whether a prompt is read after its last token only, so that tokens are comparable counted from there."""
    labels: tuple[tuple[str, ...], ...]
    """Per prompt: its tokens as text."""

    @property
    def n_tokens(self) -> int:
        """Length of the token axis."""
        return n_tokens(self.questions)

    def token_labels(self) -> list[list[str]]:
        """Tokens as text, filled up to the longest prompt."""
        return [filled(row, self.n_tokens, "") for row in self.labels]


def read_inputs(job: StagesJob, stages: Stages) -> dict[str, Asked]:
    """Path of the group -> the behaviour that it is about.

    Raises JobError for prompts that do not fit the models or have words that the final stage's tokenizer does not know.
    """
    reader = _Reader(job, stages)
    found = [asked for one in job.behaviours for asked in reader.read(one)]
    return {asked.path: asked for asked in found}


class _Reader:
    """Reads the behaviours of one job."""

    def __init__(self, job: StagesJob, stages: Stages):
        self.job, self.final, self.room = job, stages.names[-1], stages.room
        self.tokenizer = stages.tokenizers[self.final]

    def read(self, one: str | Behaviour) -> list[Asked]:
        if isinstance(one, Behaviour):
            return [self._texts(one, one.texts) if one.texts else self._answers(one)]
        if one in OF_SETS:
            return [self._statements(one, spec) for spec in self.job.sets]
        return [self._documents(one) if one in OF_TEXT else self._refusal()]

    def _asked(self, name: str, texts, kinds, questions, *, unit: str, at_end: bool) -> Asked:
        rows = [max((row.ids for row in question), key=len) for question in questions]
        labels = tuple(tuple(self.tokenizer.decode([token]) for token in row) for row in rows)
        behaviour = name.split("/")[0]
        return Asked(
            f"{PATH}/{name}", behaviour, unit, tuple(texts), tuple(kinds), tuple(questions), at_end, labels
        )

    def _check(self, where: str, text: str, ids: Sequence[int], *, template: bool = False) -> None:
        """Whether a prompt is known and fits; of a template only what is put into it has to be known."""
        where = f"{where}: stage {self.final}"
        prompt = encode(self.tokenizer, "", text) if template else Prompt(text, tuple(ids), start=0, spans=())
        check_prompt(where, text, prompt, self.tokenizer, None)
        if self.room is not None and len(ids) > self.room:
            raise JobError(
                f"{where}: {shown(repr(text))}: its prompt has {len(ids)} tokens, the model takes {self.room}; take it "
                "out, or shorten what stands before it"
            )

    def _chats(self, instructions: Sequence[str]) -> list[str]:
        """Instructions as the final stage is asked them."""
        if self.job.template != "chat":
            return [self.job.template.replace("{instruction}", text) for text in instructions]
        fix = r"give a text with {instruction}, e.g. template: 'User: {instruction}\nAssistant:'"
        if not self.tokenizer.chat_template:
            raise JobError(f"template: the tokenizer of stage {self.final} has no chat template; {fix}")
        try:
            return written_chats(self.job, self.tokenizer, [[("user", text)] for text in instructions])
        except TemplateFails as error:
            raise JobError(
                f"template: the chat template of stage {self.final} {shown(error, 300)}; {fix}"
            ) from None

    def _refusal(self) -> Asked:
        sizes = {"direction": 0, "validation": 0, "test": self.job.max_prompts // 2}
        some = {
            kind: read_splits(kind, getattr(self.job, kind), sizes, self.job.seed).test for kind in PUBLISHED
        }
        kinds = [kind for kind, texts in some.items() for _ in texts]
        texts = [text for texts in some.values() for text in texts]
        prompts, encoded = self._chats(texts), encoder(self.job.template, self.tokenizer)
        openings = openings_after(encoded, prompts[0], self.job.openings, self.final)
        score = LogOdds(openings.refusal, openings.compliant)
        questions = []
        for text, prompt in zip(texts, prompts, strict=True):
            ids = encoded(prompt)
            self._check("refusal", text, ids, template=True)
            questions.append((Row(ids, (len(ids) - 1,), score),))
        return self._asked("refusal", texts, kinds, questions, unit=UNITS["refusal"], at_end=True)

    def _statements(self, name: str, spec: StatementSet) -> Asked:
        job = self.job
        few_shot, statements = draw_examples(
            spec, read_set(spec), job.few_shot, job.suffix, job.answers, job.seed
        )
        statements = sampled(statements, job.max_prompts, f"{job.seed}/{spec.name}/statements")
        check_number(spec, statements, "max_prompts")
        prompts = [few_shot.prompt(self.tokenizer, s.text) for s in statements]
        true, false = answer_ids(self.tokenizer, prompts[0].text, job.answers)
        questions = []
        for s, prompt in zip(statements, prompts, strict=True):
            self._check(f"set {spec.name}", s.text, prompt.ids)
            score: LogOdds | LogProbability
            if name == "verdict":
                score = LogOdds((true,), (false,), 1.0 if s.label else -1.0)
            else:
                score = LogProbability((true if s.label else false,))
            questions.append((Row(prompt.ids, (len(prompt.ids) - 1,), score),))
        kinds, texts = ["true" if s.label else "false" for s in statements], [s.text for s in statements]
        return self._asked(f"{name}/{spec.name}", texts, kinds, questions, unit=UNITS[name], at_end=True)

    def _documents(self, name: str) -> Asked:
        text = self.job.text.read_as(self.job.max_prompts)
        documents = read_documents(text, self.job.seed)
        rows = encode_documents(documents, {self.final: self.tokenizer}, text.tokens, self.room)[self.final]
        questions = []
        for ids in rows:
            at = tuple(range(len(ids) - 1))
            score = _loss(ids) if name == "loss" else Entropy()
            questions.append((Row(ids, at, score),))
        return self._asked(name, documents, [""] * len(documents), questions, unit=UNITS[name], at_end=False)

    def _texts(self, one: Behaviour, texts: Sequence[str]) -> Asked:
        questions = []
        for text in texts:
            ids = encode(self.tokenizer, "", text).ids
            self._check(f"behaviour {one.name}", text, ids)
            if len(ids) < 2:
                raise JobError(
                    f"behaviour {one.name}: {shown(repr(text))} has one token, nothing to predict; give a longer text"
                )
            questions.append((Row(ids, tuple(range(len(ids) - 1)), _loss(ids)),))
        return self._asked(one.name, texts, [""] * len(texts), questions, unit=one.unit, at_end=False)

    def _answers(self, one: Behaviour) -> Asked:
        prompts = self._chats(one.prompts) if one.chat else list(one.prompts)
        encoded = encoder(self.job.template if one.chat else "", self.tokenizer)
        questions: list[Question] = []
        for text, prompt in zip(one.prompts, prompts, strict=True):
            before = encoded(prompt)
            followed = [self._after(one, prompt, before, encoded, answer) for answer in one.answers]
            if len(followed) == 2 and all(len(ids) == 1 for ids in followed):
                score = LogOdds(followed[0], followed[1])
                questions.append((Row(before, (len(before) - 1,), score),))
            else:
                questions.append(
                    tuple(
                        _answer_row(before, ids, weight)
                        for ids, weight in zip(followed, (1.0, -1.0), strict=False)
                    )
                )
            for row in questions[-1]:
                self._check(f"behaviour {one.name}", text, row.ids, template=one.chat)
        at_end = all(row.at == (len(row.ids) - 1,) for question in questions for row in question)
        kinds = [""] * len(one.prompts)
        return self._asked(one.name, one.prompts, kinds, questions, unit=one.unit, at_end=at_end)

    def _after(self, one: Behaviour, prompt: str, before, encoded, answer: str) -> tuple[int, ...]:
        """Token ids of an answer after a prompt."""
        ids = encoded(prompt + answer)
        if ids[: len(before)] != tuple(before) or len(ids) == len(before):
            raise JobError(
                f"behaviour {one.name}: the answer {shown(repr(answer))} after {shown(repr(prompt[-40:]))} changes the "
                "prompt's last token, or has none of its own; begin it where a token begins (often with a space)"
            )
        return tuple(ids[len(before) :])


def _loss(ids: Sequence[int]) -> LogProbability:
    return LogProbability(tuple(ids[1:]), -1.0 / (len(ids) - 1))


def _answer_row(before: Sequence[int], answer: Sequence[int], weight: float) -> Row:
    at = tuple(range(len(before) - 1, len(before) + len(answer) - 1))
    return Row((*before, *answer[:-1]), at, LogProbability(tuple(answer), weight))
