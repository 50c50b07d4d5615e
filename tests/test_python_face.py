"""`import posttrace as pt`: quick to import, and what the README shows of it runs."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import xarray as xr

import posttrace as pt
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from tests.support.figures import refusal, truthfulness
from tests.support.figures.knowledge import write_dataset

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_importing_it_loads_no_library():
    code = "import posttrace, sys; dir(posttrace); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "transformers",
        "nnsight",
        "matplotlib",
        "xarray",
        "zarr",
        "numpy",
        "pandas",
        "pydantic",
    }
    assert not heavy & set(loaded)


def test_every_name_is_there():
    for name in pt.__all__:
        assert getattr(pt, name) is not None and name in dir(pt)
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        _ = pt.rnu


def test_a_job_built_in_code_is_the_job_of_a_file(tmp_path, monkeypatch):
    built = pt.job({"study": "knowledge", "family": "embedded", "sets": ("cities", "facts"), "max_pairs": 8})
    assert built == load_job("knowledge", ["sets=[cities, facts]", "max_pairs=8"])
    (tmp_path / "mine.csv").write_text("statement,label\nA is B.,1\n")
    monkeypatch.chdir(tmp_path)
    for csv in ("mine.csv", Path("mine.csv")):
        (mine,) = pt.job(
            {"study": "knowledge", "family": "embedded", "sets": [{"name": "m", "csv": csv}]}
        ).sets
        assert mine.csv == str(tmp_path / "mine.csv")
    declared = {"study": "knowledge", "family": "embedded", "sets": ["mine.csv"]}
    pt.job(declared)
    assert declared["sets"] == ["mine.csv"], "what was passed in stays as it is"
    with pytest.raises(JobError, match=r"job: max_pair: unknown key \(did you mean 'max_pairs'\?\)"):
        pt.job({"study": "knowledge", "family": "embedded", "sets": ["cities"], "max_pair": 8})
    with pytest.raises(JobError, match="is no mapping"):
        pt.job("knowledge")


@pytest.mark.slow
def test_every_labelled_axis_is_selected_by_its_labels(tmp_path):
    refusal.write(tmp_path / "refusal")
    tree = pt.open_store(tmp_path / "refusal")
    assert isinstance(tree, xr.DataTree)
    data, stored = tree["refusal"], pt.open_group(tmp_path / "refusal", "refusal")
    at = list(stored.direction_name.values).index("random-1")
    xr.testing.assert_equal(
        data.log_odds.sel(direction="random-1", target="sft").drop_vars("direction"),
        stored.log_odds.isel(direction=at)
        .sel(target="sft")
        .drop_vars(("direction", "direction_name"), errors="ignore"),
    )
    vector = data.direction_vector.sel(model="sft", layer=2, position=-1)
    assert (vector.values == stored.direction.sel(model="sft", layer=2, position=-1).values).all()
    write_dataset(tmp_path / "truth", "truthfulness", truthfulness.summary().data)
    summary = pt.open_store(tmp_path / "truth")["truthfulness"]
    assert "direction" in summary.effect.indexes and summary.effect.sel(direction="base").ndim == 2


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capfd):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    exec(code, {})
    assert (tmp_path / "runs" / "figures" / "knowledge" / "cities" / "heatmaps.png").stat().st_size
    assert (tmp_path / "cities.png").stat().st_size > 10_000
    assert capfd.readouterr() == ("", "")
