"""A model on a server: opened from its configuration and tokenizer, used through requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from posttrace.tracers.models.architecture import Architecture
from posttrace.tracers.remote.errors import JobFailed, Unavailable
from posttrace.tracers.remote.keys import model_key, spelled_there
from posttrace.tracers.remote.request import Request, request
from posttrace.tracers.remote.result import rebuilt
from posttrace.tracers.remote.runner import Facts, MemoryNote, Note, Runner
from posttrace.tracers.remote.server import Refused, Trouble
from posttrace.tracers.remote.view import View, weightless


@dataclass(frozen=True)
class RequestContext:
    """What a request belongs to: where its job id is kept and where its progress is reported."""

    notes: Callable[[int], Note] = lambda call: MemoryNote()
    """The note of each call that a unit makes, counted from 0."""
    report: Callable[[str], None] = lambda text: None
    facts: list[Facts] = field(default_factory=list)
    """What the calls took, appended as they return."""


@dataclass(frozen=True)
class RemoteModel:
    """Used like an OpenModel: `run(engine, ...)` returns what the engine returns where the weights are."""

    name: str
    key: str
    """The server's name for the model."""
    view: View
    """The model without weights, as engines see it; on the server its modules are the real ones."""
    dtype: torch.dtype
    """The dtype that the server's model must have."""
    runner: Runner
    checked: set[str] = field(default_factory=set)
    """Keys of the models whose sites this process has verified on the server."""
    context: RequestContext = RequestContext()

    ships = True
    """Arguments travel: a study sends no activation that the server can compute."""

    def run(self, engine, *arguments, **options):
        """Run an engine on the server: one request.

        Raises
        ------
        TracerError
            As the engine does, and JobFailed or Unavailable (see tracers.remote.errors).

        Examples
        --------
        >>> model.run(read_statements, prompts, site="resid_post", layers=[3], answers=(1, 2))   # doctest: +SKIP
        """
        asked = request(
            self.view,
            engine,
            arguments,
            options,
            dtype=str(self.dtype),
            check=self.key not in self.checked,
        )
        _check_size(asked, self.runner.policy.max_request)
        note = self.context.notes(len(self.context.facts))
        env = self.view.nn._remoteable_get_env()
        outcome, facts = self.runner.perform(asked, self.key, env, note, self.context.report)
        self.context.facts.append(facts)
        if outcome["problem"]:
            failure = Unavailable if outcome.get("whole_job") else JobFailed
            raise failure(f"{asked.operation}: {outcome['problem']}")
        self.checked.add(self.key)
        return rebuilt(outcome)

    def on(self, context: RequestContext) -> RemoteModel:
        """Return the same model, with its requests made for one unit."""
        return replace(self, context=context)

    @property
    def architecture(self) -> Architecture:
        return self.view.architecture

    @property
    def tokenizer(self):
        return self.view.tokenizer

    @property
    def config(self):
        return self.view.nn._module.config

    @property
    def n_layers(self) -> int:
        return self.view.n_layers

    @property
    def hidden_size(self) -> int:
        return self.view.hidden_size

    @property
    def device(self) -> str:
        """Where it runs, for records: the server."""
        return self.runner.server.host


def open_remote(
    model: str, *, revision: str | None, key: str | None, dtype: torch.dtype, runner: Runner
) -> RemoteModel:
    """Return a model on a server, from its configuration and tokenizer; weights are neither needed nor read.

    Parameters
    ----------
    model
        A hub id, or a folder with config.json and tokenizer files.
    key
        How the server knows it (`model_key`).

    Examples
    --------
    >>> model = open_remote("meta-llama/Llama-3.1-8B", revision=None, key=None, dtype=torch.bfloat16,
    ...                     runner=runner)                             # doctest: +SKIP
    """
    full = model_key(model, revision, key)
    try:
        full = spelled_there(runner.server.get("/status"), full)
    except (Trouble, Refused, Unavailable):
        pass  # what is wrong with the server is said when it matters: as the first request goes there
    return RemoteModel(
        name=model, key=full, view=weightless(model, revision, full, dtype), dtype=dtype, runner=runner
    )


def _check_size(asked: Request, limit: int) -> None:
    if len(asked.blob) > limit:
        raise JobFailed(
            f"{asked.operation}: the request has {len(asked.blob):,} bytes, {asked.constants:,} of them activations "
            f"before compression; at most {limit:,} are sent. Lower pairs_per_unit (or the unit's size), take fewer "
            "stages at once, or raise execution.remote.max_request_mb"
        )
