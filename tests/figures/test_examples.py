"""The examples in the docstrings run as printed, on small stores and groups."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from posttrace import figures
from posttrace.figures import theme
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import judgement
from posttrace.stores import open_group, open_store
from tests.support import examples
from tests.support.figures import confidence, refusal, truthfulness
from tests.support.figures.knowledge import by_head, estimated, template_group, write_dataset, write_store
from tests.support.models import mostly_slow

MODULES = examples.modules(figures, ["posttrace.figures.__main__"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where examples run: it holds the stores that they open."""
    runs = tmp_path_factory.mktemp("examples") / "runs"
    write_store(runs / "knowledge", [template_group("cities", stages=("base", "instruct"), pairs=12)])
    refusal.write(runs / "refusal")
    write_dataset(runs / "truthfulness", "truthfulness", truthfulness.summary().data)
    write_dataset(runs / "confidence", "confidence", confidence.neuron_dataset())
    return runs.parent


@pytest.fixture(scope="module")
def worlds():
    """The names that examples use: prefix of a module's name -> names."""
    patched = template_group("cities", stages=("base", "instruct"), pairs=12)
    grid = PatchGrid.from_dataset(patched)
    panel = Panel("base → base", np.eye(2))
    return {
        "posttrace.figures": {
            "np": np,
            "xr": xr,
            "Path": Path,
            "open_group": open_group,
            "open_store": open_store,
            "grid": grid,
            "table": next(judgement([grid])),
            "figure": heatmap_grid([[panel]], ["[s1]", ":"], [0], [0, 1], theme.normalised_scale(), "cities"),
        },
        "posttrace.figures.studies.knowledge.exact_sample": {
            "sample": PatchGrid.from_dataset(estimated(patched, exact=(0, 3, 4, 7))).sample
        },
        "posttrace.figures.studies.knowledge.heads": {"grid": PatchGrid.from_dataset(by_head(layers=8, n=4))},
        "posttrace.figures.studies.truthfulness": {"one": truthfulness.statements("cities")},
    }


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        MODULES, fast=[m for m in MODULES if m not in ("posttrace.figures", "posttrace.figures.rendering")]
    ),
)
def test_docstring_examples_run(name, worlds, folder, monkeypatch):
    monkeypatch.chdir(folder)
    plt.close("all")  # plots are drawn into pyplot's current axes
    world = {}
    for begin, names in worlds.items():
        if f"{name}.".startswith(f"{begin}."):
            world |= names
    examples.check(name, world)


def test_every_study_that_reads_arrays_has_examples():
    having = {name.split(".")[3] for name in MODULES if name.startswith("posttrace.figures.studies.")}
    assert {"knowledge", "truthfulness", "refusal", "confidence"} <= having
