"""The benchmark measures what it says: same numbers from every method, a floor that counts right, honest records."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from benchmarks.floor import multiply_adds
from benchmarks.methods import METHODS, Load, load
from benchmarks.page import page
from benchmarks.patch_grid import ROOT
from benchmarks.shapes import SHAPES, Shape, make_task, save_random
from tests.support.benchmarks import COLUMNS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_random(SHAPES["tiny"], folder)
    return Load(str(folder), asdict(SHAPES["tiny"]), "cpu", "float32")


@pytest.fixture(scope="module")
def reference(weights):
    method = load("naive oracle", weights)
    method.prepare(make_task(SHAPES["tiny"]))
    values = method.run(make_task(SHAPES["tiny"]).cells)
    assert max(values) - min(values) > 0.1, "the grid is flat: nothing is compared"
    return values


@pytest.mark.parametrize("name", ["paper loop", "raw hooks", "posttrace", "posttrace, cells checked"])
def test_methods_of_our_own_environment_agree_with_the_oracle(name, weights, reference):
    task, method = make_task(SHAPES["tiny"]), load(name, weights)
    method.prepare(task)
    assert method.run(task.cells) == pytest.approx(reference, abs=1e-4)
    some = task.cells[7::5]
    assert method.run(some) == pytest.approx(reference[7::5], abs=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_with_sampled_cells_leaves_complete_records(tmp_path):
    """The path of large models, which make their weights on the device; and a peer that is not installed is named."""
    file, methods = tmp_path / "grid.json", ["paper loop", "pyvene", "posttrace"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.patch_grid",
        "--quick",
        "--sample",
        "--model",
        "tiny",
        "--rounds",
        "1",
    ]
    for method in methods:
        command += ["--methods", method]
    subprocess.run(
        [*command, "--json", file], cwd=ROOT, check=True, env=os.environ | {"POSTTRACE_PEERS": str(tmp_path)}
    )
    run = json.loads(file.read_text())
    assert {"date", "versions", "device_name", "dtype", "shape", "pairs", "repeats", "load_average"} <= set(
        run
    )
    records = {record["method"]: record for record in run["records"]}
    assert set(records) == set(methods) <= set(METHODS)
    assert not records["pyvene"]["available"] and "benchmarks.peers install" in records["pyvene"]["reason"]
    for record in run["records"]:
        assert set(record) >= COLUMNS
        if record["available"]:
            assert record["max_abs_diff"] <= 1e-4 and record["cells_compared"] > 0
    assert records["paper loop"]["cells"] == 10 and records["posttrace"]["cells"] == 45
    assert "unavailable: its environment is not installed" in page(tmp_path)


def test_floor_equals_a_count_by_hand():
    """Two layers, two prefix and two statement tokens, of which the first is the same in both runs."""
    shape = Shape(
        layers=2,
        hidden=8,
        heads=2,
        kv_heads=1,
        intermediate=16,
        prefix=2,
        statement=2,
        first_difference=1,
        pairs=3,
    )
    keys, rest, key, answers = 2 * 8 * 4, 2 * 8 * 8 + 3 * 8 * 16, 2 * 8, 2 * 8
    prefix = 2 * (keys + rest) + (1 + 2) * key + 2 * keys
    statement = 2 * (keys + rest) + (3 + 4) * key + 2 * keys + rest + 4 * key + answers
    after_first_block = keys + rest + 4 * key + answers
    after_last_block = answers
    assert multiply_adds(shape) == prefix + 3 * (statement + after_first_block + after_last_block)
    assert multiply_adds(shape.but(shared_prefix=False)) == multiply_adds(shape) + 2 * prefix
    first_token = 2 * keys + rest + 4 * key + answers
    assert multiply_adds(shape.but(use_unchanged=False)) == multiply_adds(shape) + 3 * first_token
