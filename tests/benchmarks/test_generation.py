"""The benchmark of steered generation compares like with like: every way gives the same tokens."""

import json
import subprocess
import sys

import pytest

from benchmarks.generation import HOOKS, LOOP, NEEDED, POSTTRACE
from benchmarks.page import page
from benchmarks.patch_grid import ROOT


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_ways_give_the_same_tokens_and_the_page_shows_them(tmp_path):
    command = [sys.executable, "-m", "benchmarks.generation", "--quick", "--model", "tiny", "--rounds", "2"]
    subprocess.run(
        [*command, "--new-tokens", "4", "--prompts", "4", "--json", tmp_path / "g.json"], cwd=ROOT, check=True
    )
    run = json.loads((tmp_path / "g.json").read_text())
    records = {record["name"]: record for record in run["records"]}
    assert set(records) == {POSTTRACE, HOOKS, NEEDED, LOOP}
    for record in records.values():
        assert record["same_tokens"] == 1.0 and len(record["seconds_each"]) == 2
        assert record["tokens_per_second"] > 0
    assert records[HOOKS]["ratio_to_hooks"] == records[LOOP]["ratio_to_paper_loop"] == 1.0
    assert {"device_name", "versions", "date", "load_average", "new_tokens"} <= set(run)
    assert f"| {POSTTRACE} |" in page(tmp_path)
