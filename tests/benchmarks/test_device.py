"""The device benchmark runs without a device: its parts give what its bars and the page ask for."""

import json
import subprocess
import sys

import pytest

from benchmarks.device import BARS, bars
from benchmarks.patch_grid import ROOT


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_parts_run_on_a_cpu(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.device",
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--rounds",
        "1",
    ]
    parts = ["--only", "grid", "--only", "analysis"]
    subprocess.run([*command, *parts, "--json", tmp_path / "d.json"], cwd=ROOT, check=True)
    run = json.loads((tmp_path / "d.json").read_text())
    grid, analysis = run["records"]
    assert grid["rounding"]["grid"]["largest"] < 1e-4 and grid["cells"] == 3 * 15
    assert run["bars"]["grid_over_floor"]["value"] == grid["grid_over_floor"] > 0
    assert set(analysis["seconds"]) == {"mass_mean", "logistic", "ttpd"}


def test_bars_are_missed_as_well_as_met():
    found = bars([{"name": "grid", "grid_over_floor": 2.5, "grid_over_paper_loop": 400.0}])
    assert {name: bar["met"] for name, bar in found.items()} == {
        "grid_over_paper_loop": True,
        "grid_over_floor": False,
    }
    assert set(found) < set(BARS)
