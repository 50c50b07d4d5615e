"""The benchmark of the difference study runs every unit, and times each kind of them."""

import pytest

from benchmarks.difference import compare
from tests.support.benchmarks import COLUMNS

NOT_COMPARED = {"max_abs_diff", "ratio_to_paper_loop", "ratio_to_floor"}


@pytest.mark.slow
def test_all_kinds_of_units_are_timed():
    row = compare("tiny", 2, 64, 2048, documents=6, tokens=12, rounds=1, device="cpu")
    assert set(row) >= COLUMNS - NOT_COMPARED
    assert set(row["ratio_by_kind"]) == {"read", "compare", "analyse"}
    assert row["ratio"] == pytest.approx(sum(row["ratio_by_kind"].values()))
