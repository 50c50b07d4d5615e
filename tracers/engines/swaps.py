"""Swap parts of the weights between two stages: the exact oracle of who does what.

A setting says for every part (embeddings, attention and MLP of each block, unembedding) which stage's weights it
has. Below the first part that differs from the parts before it the stream is that of one of the two stages, so a
setting runs only the blocks from there on (all of them where blocks hand each other more than the stream).

Source: weight patching and dynamic weight grafting; exact Shapley values need every setting (Shapley 1953).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from posttrace.tracers.engines.behaviours import Question, RowBatch, behaviour_values, run_batch
from posttrace.tracers.models.weighted import Part, Weighted, parts_of, replaced, weighted_modules

Setting = tuple[bool, ...]
"""For every part of `parts_of`: whether it has the later stage's weights."""
Stream = list
"""What every block gave in one run."""


def only(part: int, n: int, *, later: bool) -> Setting:
    """Return the setting with one of n parts of the later stage and the others of the earlier, or the other way round.

    >>> only(1, 3, later=True), only(1, 3, later=False)
    ((False, True, False), (True, False, True))
    """
    return tuple((i == part) == later for i in range(n))


def cut(n_later: int, n: int, *, below: bool) -> Setting:
    """Return the setting in which the first (or last) of n parts are of the later stage.

    >>> cut(1, 3, below=True), cut(1, 3, below=False)
    ((True, False, False), (False, False, True))
    """
    return tuple(i < n_later if below else i >= n - n_later for i in range(n))


def swapped_values(
    model,
    prompts: Sequence[Question],
    earlier: Mapping[str, torch.Tensor],
    settings: Sequence[Setting],
    *,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """Return the behaviour of every prompt in every setting; dims setting x prompt (float32, nats).

    Parameters
    ----------
    earlier: the earlier stage's weights by name, on the model's devices; the open model is the later stage.
    max_tokens: tokens in one forward pass, halved when memory runs out; the outputs of all blocks are kept meanwhile.
    """
    modules = weighted_modules(model.nn._module)

    def run(model, batch: RowBatch) -> torch.Tensor:
        return _all_settings(model, modules, batch, earlier, settings)

    return behaviour_values(model, prompts, max_tokens=max_tokens, run=run)


@contextmanager
def in_setting(
    modules: Sequence[Weighted], earlier: Mapping[str, torch.Tensor], setting: Setting, n_layers: int
):
    """Give the parts of the earlier stage its weights; the open model has the later ones."""
    later: dict[Part, bool] = dict(zip(parts_of(n_layers), setting, strict=True))
    with replaced([one for one in modules if not later[one.part]], earlier):
        yield


def _all_settings(model, modules, batch: RowBatch, earlier, settings: Sequence[Setting]) -> torch.Tensor:
    """Dims setting x row."""
    n_layers, parts = model.n_layers, parts_of(model.n_layers)
    whole: dict[bool, tuple[torch.Tensor, Stream]] = {}
    for later in (True, False):
        with in_setting(modules, earlier, (later,) * len(parts), n_layers), _recorded(model) as stream:
            whole[later] = run_batch(model, batch), stream
    found = []
    for setting in settings:
        value, stream = whole[setting[0]]
        differing = next((i for i, later in enumerate(setting) if later != setting[0]), None)
        if differing is not None:
            part = parts[differing]
            start = n_layers if part.module == "unembed" else part.layer
            if model.architecture.whole:  # blocks hand each other more than the stream
                start = 0
            with in_setting(modules, earlier, setting, n_layers), _skipped(model, start, stream):
                value = run_batch(model, batch)
        found.append(value)
    return torch.stack(found)


@contextmanager
def _recorded(model) -> Iterator[Stream]:
    """Keep what every block gives."""
    stream: Stream = []
    with ExitStack() as hooks:
        for block in model.nn._module.get_submodule(model.architecture.layers):
            handle = block.register_forward_hook(lambda _module, _inputs, output: stream.append(output))
            hooks.callback(handle.remove)
        yield stream


@contextmanager
def _skipped(model, start: int, stream: Sequence) -> Iterator[None]:
    """Let the blocks before `start` compute nothing; the last of them gives what it gave in a recorded run."""
    blocks = model.nn._module.get_submodule(model.architecture.layers)[:start]
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(_put_back(block))
            block.forward = lambda *_, **__: stream[start - 1]
        yield


def _put_back(block) -> Callable[[], None]:
    """Return what undoes a change of a module's `forward`, which tracing may have replaced already."""
    if "forward" not in block.__dict__:
        return lambda: delattr(block, "forward")
    before = block.__dict__["forward"]
    return lambda: setattr(block, "forward", before)
