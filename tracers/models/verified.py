"""What was verified of each architecture, by `tests/tracers/architectures` on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("verified.json")


def verified() -> dict[str, dict[str, Any]]:
    """Architecture -> its class, level, why it is not at the full one, sites, and why neurons have no weights.

    level: `full` or `whole passes` (see `tracers.models.architecture`); `why`: the reason for the latter. weights:
    None where the weights-only part of `confidence` reads the last block's neurons.

    Examples
    --------
    >>> verified()["llama"]["level"], verified()["llama"]["sites"][1]
    ('full', 'z')
    """
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def lines() -> Iterator[tuple[str, str]]:
    """(architecture, what it offers) of every architecture, for people.

    Examples
    --------
    >>> dict(lines())["falcon_mamba"]
    'whole passes; sites resid_pre, resid_post; its blocks also take cache_params; no neurons from files'
    """
    for name, row in verified().items():
        parts = [row["level"], f"sites {', '.join(row['sites'])}", row["why"]]
        parts.append("no neurons from files" if row["weights"] else "neurons from files")
        yield name, "; ".join(filter(None, parts))
