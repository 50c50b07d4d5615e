"""What a `trace` job runs: prompts and sources, tokenised for every stage, and the directions that it names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrace.pipeline.chat import TemplateFails, written_chats
from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.studies.trace.directions import load_direction
from posttrace.pipeline.studies.trace.job import Messages, TraceJob
from posttrace.tracers.engines.activations import columns_of
from posttrace.tracers.operations import Lens, Patch, Read, Tokens
from posttrace.tracers.prompts import Prompt, encode


@dataclass(frozen=True)
class TraceInputs:
    """Prompts, sources and directions of a job."""

    prompts: dict[str, list[Prompt]]
    """Per stage: every prompt."""
    sources: dict[str, list[Prompt]]
    """Per stage that patches take values from: the source of every prompt."""
    vectors: dict[str, np.ndarray]
    """Direction -> its values; dims hidden, or layer x hidden."""

    def runs(self, operation: Read | Lens | Patch, first: str) -> tuple[str, list[Prompt]]:
        """Return the stage and prompts whose activations an operation keeps; `first` labels those of a read."""
        if not isinstance(operation, Patch):
            return first, self.prompts[first]
        return operation.source, self.sources[operation.source]

    def token_axis(self, operation: Read | Lens | Patch) -> list[int]:
        """Labels of an operation's token axis: the positions asked for, or those of the longest prompt."""
        tokens: Tokens = operation.tokens
        if not isinstance(tokens, str):
            return list(tokens)
        if tokens == "last":
            return [-1]
        runs = [*self.prompts.values(), *self.sources.values()]
        return list(range(max(len(columns_of(p, tokens)) for prompts in runs for p in prompts)))


def read_inputs(job: TraceJob, stages: Stages) -> TraceInputs:
    """Tokenise a job's prompts for every stage, and read its directions.

    >>> read_inputs(job, stages).prompts["base"][0].ids                # doctest: +SKIP
    (1, 83, 287)

    Raises JobError for a prompt without room, positions that a prompt lacks, and a source that does not fit its prompt.
    """
    sources = {patch.source for patch in job.patches}
    inputs = TraceInputs(
        prompts={name: _encoded(job, stages, name, [p.run for p in job.prompts]) for name in stages.names},
        sources={name: _encoded(job, stages, name, [p.source_run for p in job.prompts]) for name in sources},
        vectors={
            name: load_direction(name, spec, stages.hidden_size, stages.n_layers)
            for name, spec in job.directions.items()
        },
    )
    for i, operation in enumerate(job.operations):
        for stage in job.stage_names:
            for number, prompt in enumerate(inputs.prompts[stage]):
                _check_positions(i, operation, stage, number, prompt)
                if isinstance(operation, Patch):
                    _check_source(
                        i, operation, stage, number, prompt, inputs.sources[operation.source][number]
                    )
        if isinstance(operation, Patch):
            for number, prompt in enumerate(inputs.sources[operation.source]):
                _check_positions(i, operation, operation.source, number, prompt)
    return inputs


def _encoded(job: TraceJob, stages: Stages, stage: str, runs: list[str | Messages]) -> list[Prompt]:
    tokenizer = stages.tokenizers[stage]
    chats = iter(_written(job, stages, stage, [run for run in runs if not isinstance(run, str)]))
    prompts = [
        encode(tokenizer, "", run)
        if isinstance(run, str)
        else encode(tokenizer, "", next(chats), special=False)
        for run in runs
    ]
    room = stages.rooms[stage]
    for i, prompt in enumerate(prompts):
        if room and len(prompt.ids) > room:
            raise JobError(
                f"prompts.{i}: {len(prompt.ids)} tokens, stage {stage} takes {room}; shorten the prompt"
            )
    return prompts


def _written(job: TraceJob, stages: Stages, stage: str, chats: list[Messages]) -> list[str]:
    """Chats as the stage's template writes them."""
    if not chats:
        return []
    tokenizer, model = stages.tokenizers[stage], stages.checkpoints[stage].model
    if not tokenizer.chat_template:
        raise JobError(
            f"prompts: stage {stage}: the tokenizer of {model} has no chat template to write messages with; name other "
            "stages, or give texts (`prompt: ...`)"
        )
    try:
        return written_chats(job, tokenizer, [[(one.role, one.content) for one in chat] for chat in chats])
    except TemplateFails as error:
        raise JobError(
            f"prompts: stage {stage}: the chat template of {model} {shown(error, 300)}; edit messages, system or "
            "chat_template_kwargs, or give texts (`prompt: ...`)"
        ) from None


def _check_positions(i: int, operation, stage: str, number: int, prompt: Prompt) -> None:
    n = len(prompt.ids)
    if not isinstance(operation.tokens, str):
        beyond = [t for t in operation.tokens if not -n <= t < n]
        if beyond or len({t % n for t in operation.tokens}) < len(operation.tokens):
            raise JobError(
                f"operations.{i}: tokens {list(operation.tokens)}: prompt {number} has {n} tokens for stage "
                f"{stage}, so positions are {-n} to {n - 1}, each once; edit tokens"
            )


def _check_source(i: int, operation: Patch, stage: str, number: int, prompt: Prompt, source: Prompt) -> None:
    given, wanted = len(source.ids), len(prompt.ids)
    if given != wanted and operation.tokens in ("statement", "all"):
        raise JobError(
            f"operations.{i}: prompt {number}: its source has {given} tokens for {operation.source}, the prompt "
            f"itself {wanted} for {stage}; give texts of equal length, or positions (tokens: [-1])"
        )
