"""The benchmark of a second checkpoint's memory runs each way in a process of its own, and the page tells of it."""

import json

import pytest

from benchmarks.page import page
from benchmarks.stages_memory import WAYS, main
from benchmarks.weights_memory import TINY


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_way_is_measured_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.stages_memory.SMALL", TINY)
    main(quick=True, json_file=tmp_path / "memory.json", folder=tmp_path, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["memory.json"], "the checkpoints are removed"
    rows = json.loads((tmp_path / "memory.json").read_text())["records"]
    assert [row["name"] for row in rows] == list(WAYS)
    assert all(row["peak_bytes"] > 0 and row["residual"] < 1 for row in rows)
    assert all(f"| {name} |" in page(tmp_path) for name in WAYS)
