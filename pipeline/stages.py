"""What the stages of a family have in common, checked before a study plans with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.spec import Family

SIZES = ("num_hidden_layers", "hidden_size")
"""What of their configuration stages must share, for activations and directions of one to fit the other."""


def check_one_size(family: Family, shapes: Mapping[str, Any], keys: Iterable[str], fix: str) -> None:
    """Check that all stages have the same value of every key.

    >>> check_one_size(family, {"base": config, "sft": other}, SIZES, "; choose one size")  # doctest: +SKIP

    shapes: stage -> what has the keys as attributes (a configuration). fix: the end of the message. Raises JobError
    with the values of every stage.
    """
    for key in keys:
        sizes = {name: getattr(shape, key) for name, shape in shapes.items()}
        if len(set(sizes.values())) > 1:
            raise JobError(f"family {family.name}: the stages differ in {key} ({sizes}){fix}")


def positions(configs: Iterable[Any]) -> int | None:
    """Tokens that every stage has a position for; None where positions have no end.

    >>> positions([LlamaConfig(max_position_embeddings=512)])          # doctest: +SKIP
    512
    """
    ends = [getattr(config, "max_position_embeddings", None) for config in configs]
    return min((end for end in ends if end), default=None)
