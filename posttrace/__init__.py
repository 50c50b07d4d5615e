"""Find out what post-training changed inside a model.

>>> import posttrace as pt
>>> job = pt.load_job("knowledge", ["max_pairs=8"])      # or pt.job({"study": "knowledge", "family": ...})
>>> store = pt.run(job, "runs/knowledge")                       # doctest: +SKIP
>>> cities = pt.open_store("runs/knowledge")["knowledge/cities"]  # doctest: +SKIP
>>> ax = pt.plot.heatmap(cities.logit_diff.sel(source="base", target="base").mean("pair"))  # doctest: +SKIP
>>> files = pt.render("runs/knowledge", "runs/figures")         # doctest: +SKIP

Its four packages import one way: `pipeline` (jobs, studies, the command line) uses `tracers` (models), `stores`
(arrays) and `figures`; `figures` uses `stores`. Importing this package is cheap: torch, nnsight and matplotlib are
loaded on use.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrace.figures import plot, render, report, view
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.job import make_job as job
    from posttrace.pipeline.run import run_job as run
    from posttrace.stores import group_paths, open_group, open_store, verify

_LAZY = {
    "load_job": "posttrace.pipeline.job:load_job",
    "job": "posttrace.pipeline.job:make_job",
    "run": "posttrace.pipeline.run:run_job",
    "open_group": "posttrace.stores:open_group",
    "open_store": "posttrace.stores:open_store",
    "group_paths": "posttrace.stores:group_paths",
    "verify": "posttrace.stores:verify",
    "render": "posttrace.figures:render",
    "report": "posttrace.figures:report",
    "view": "posttrace.figures:view",
    "plot": "posttrace.figures.plot",
}

__all__ = [
    "group_paths",
    "job",
    "load_job",
    "open_group",
    "open_store",
    "plot",
    "render",
    "report",
    "run",
    "verify",
    "view",
]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("posttrace")
    if name not in _LAZY:
        raise AttributeError(f"module 'posttrace' has no attribute {name!r}")
    return resolve_name(_LAZY[name])


def __dir__():
    return sorted([*globals(), *__all__])
