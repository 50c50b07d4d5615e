"""Find out what post-training changed inside a model.

>>> import posttrace
>>> job = posttrace.load_job("knowledge", ["max_pairs=8"])
>>> store = posttrace.run(job, "runs/knowledge")                       # doctest: +SKIP
>>> data = posttrace.open_group("runs/knowledge", "knowledge/cities")  # doctest: +SKIP
>>> files = posttrace.render("runs/knowledge", "runs/figures")         # doctest: +SKIP

Its four packages import one way: `pipeline` (jobs, studies, the command line) uses `tracers` (models), `stores`
(arrays) and `figures`; `figures` uses `stores`. Importing this package is cheap: torch, nnsight and matplotlib are
loaded on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrace.figures import render, report
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job as run
    from posttrace.stores import group_paths, open_group, verify

_LAZY = {
    "load_job": "posttrace.pipeline.job:load_job",
    "run": "posttrace.pipeline.run:run_job",
    "open_group": "posttrace.stores:open_group",
    "group_paths": "posttrace.stores:group_paths",
    "verify": "posttrace.stores:verify",
    "render": "posttrace.figures:render",
    "report": "posttrace.figures:report",
}

__all__ = ["group_paths", "load_job", "open_group", "render", "report", "run", "verify"]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("posttrace")
    if name not in _LAZY:
        raise AttributeError(f"module 'posttrace' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)
