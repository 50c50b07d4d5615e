"""Spot checks: 1 to 8 of the values that a unit computed are computed again by whole forward passes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from posttrace.pipeline.job import Job
from posttrace.tracers.cost import Cost, Shape, run_cost
from posttrace.tracers.oracles.compare import sample_size


def drawn_for(job: Job, unit: str) -> dict[str, Any]:
    """Return the share that is checked and the random numbers that choose it, the same whenever the unit runs.

    Examples
    --------
    >>> drawn_for(load_job("knowledge"), "knowledge/cities/grid/base/0000")["share"]
    0.01
    """
    return {"share": job.execution.check_share, "rng": random.Random(f"{job.seed}/{unit}")}


def check_cost(job: Job, shape: Shape, n: int, length: int) -> Cost:
    """Cost of the spot check of a unit of n values, each checked by a whole forward pass of (at most) `length` tokens.

    Examples
    --------
    >>> check_cost(load_job("knowledge"), Shape(2, 10, 6, 4), n=300, length=2)
    Cost(forwards=3, multiply_adds=216)
    """
    share = job.execution.check_share
    return run_cost(shape, [0], [length]) * sample_size(n, share) if share else Cost()


def checked(n: int, largest: float) -> dict[str, Any]:
    """Record that n values were computed again; largest: the largest difference.

    Examples
    --------
    >>> checked(2, 1e-6), checked(0, 0.0)
    ({'checked_cells': 2, 'largest_difference': 1e-06}, {})
    """
    return {"checked_cells": n, "largest_difference": largest} if n else {}


def combined(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One record of several.

    Examples
    --------
    >>> combined([checked(2, 1e-6), checked(0, 0.0), checked(1, 3e-6)])
    {'checked_cells': 3, 'largest_difference': 3e-06}
    """
    some = [record for record in records if record]
    if not some:
        return {}
    return checked(
        sum(record["checked_cells"] for record in some), max(record["largest_difference"] for record in some)
    )
