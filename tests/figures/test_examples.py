"""The examples in the docstrings run as printed, against small stores and groups."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from posttrace import figures
from posttrace.figures import theme
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import judgement
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.stores import open_group
from tests.support.figures import confidence, refusal, trace, truthfulness
from tests.support.figures.knowledge import by_head, estimated, template_group, write_store


def examples(name):
    """The examples of a module that are run."""
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    return [one for test in tests for one in test.examples if not one.options.get(doctest.SKIP)]


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(figures.__path__, prefix="posttrace.figures.")
    if module.name != "posttrace.figures.__main__" and examples(module.name)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where examples run: it holds the stores that they open."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def worlds(folder):
    """What the examples below a module name find beside that module's own names."""
    patched = template_group("cities", stages=("base", "instruct"), pairs=12)
    write_store(folder / "runs" / "knowledge", [patched])
    grid = PatchGrid.from_dataset(patched)
    estimates = PatchGrid.from_dataset(estimated(patched, exact=(0, 3, 4, 7)))
    panel = Panel("base → base", np.eye(2))
    refusals = open_group(refusal.write(folder / "runs" / "refusal"), "refusal")
    two = refusals.isel(model=[0, 2], target=[0, 2], direction=[0, 2])
    one, other = map(truthfulness.statements, truthfulness.SETS)
    return {
        "posttrace.figures": {
            "np": np,
            "xr": xr,
            "Path": Path,
            "grid": grid,
            "table": next(judgement([grid])),
            "figure": heatmap_grid([[panel]], ["[s1]", ":"], [0], [0, 1], theme.normalised_scale(), "cities"),
        },
        "posttrace.figures.studies.knowledge": {"estimated": estimates, "sample": estimates.sample},
        "posttrace.figures.studies.knowledge.heads": {"grid": PatchGrid.from_dataset(by_head(layers=8, n=4))},
        "posttrace.figures.studies.truthfulness": {
            "groups": [truthfulness.summary(), one, other],
            "one": one,
            "other": other,
        },
        "posttrace.figures.studies.refusal": {"dataset": two, "refusal": Refusal.from_dataset(refusals)},
        "posttrace.figures.studies.confidence": {
            "neurons": confidence.make_neurons(),
            "on_text": confidence.make_on_text(),
            "answers": confidence.make_answers(),
        },
        "posttrace.figures.studies.trace": {
            "output": TraceGroup(trace.next_tokens()),
            "completion": TraceGroup(trace.continuations()),
        },
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, worlds, folder, monkeypatch):
    monkeypatch.chdir(folder)
    world = {}
    for begin, names in worlds.items():
        if f"{name}.".startswith(f"{begin}."):
            world |= names
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module):
        test.globs = {**test.globs, **world}
        runner.run(test)
    assert runner.summarize().failed == 0


def test_every_study_has_examples():
    having = {name.split(".")[3] for name in MODULES if name.startswith("posttrace.figures.studies.")}
    assert {"knowledge", "truthfulness", "refusal", "confidence", "trace"} <= having
