"""What the store keeps about a unit besides its arrays."""

from __future__ import annotations

import time
from typing import Any

from posttrace.pipeline.finite import check_finite, check_gaps
from posttrace.pipeline.interrupts import noticed
from posttrace.pipeline.study import Study, Work


def recorded(study: Study, work: Work, model, store) -> tuple[dict, dict[str, Any]]:
    """Do a unit: its arrays by name, and a record of what it took and where.

    The record has cells, forwards and multiply_adds as planned, seconds as measured, the device, and what the study
    adds to it. Raises what `study.run` raises, and TracerError for results that are not finite.

    Examples
    --------
    >>> recorded(study, study.work[0], model, store)[1]["forwards"]    # doctest: +SKIP
    6
    """
    started = time.perf_counter()
    with noticed():  # before anything of a unit that was cut short could be written
        arrays, more = study.run(work, model, store)
    dtype, gaps = study.job.dtype, study.gaps
    check_finite(work.unit.id, dtype, {name: a for name, a in arrays.items() if name not in gaps})
    check_gaps(work.unit.id, dtype, {name: a for name, a in arrays.items() if name in gaps})
    seconds, cost = time.perf_counter() - started, study.cost(work)
    return arrays, {
        "cells": work.cells,
        "forwards": cost.forwards,
        "multiply_adds": cost.multiply_adds,
        "seconds": round(seconds, 3),
        "device": "cpu" if model is None else str(model.device),
        **more,
    }
