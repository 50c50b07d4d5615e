"""A few of the faults and kills whose full count is in docs/damage.md."""

from __future__ import annotations

import random

import pytest

from tests.support.stores import example, faults, kills, various
from tests.support.stores.damage_page import page


@pytest.mark.slow
@pytest.mark.exhaustive
def test_single_faults_lose_nothing_are_found_and_healed(tmp_path):
    found = faults.faults(tmp_path, various.Stores(tmp_path), count=36, seed=11)
    assert sum(tally.trials for tally in found.values()) == 36
    assert [line for tally in found.values() for line in tally.told] == []
    assert sum(tally.refused for tally in found.values()) > 6, "readers refuse what is damaged"
    text = page(found, {})
    assert "| single faults | 36 | 0 | 0 | 0 | 0 |" in text


@pytest.mark.slow
@pytest.mark.exhaustive
def test_kills_lose_nothing(tmp_path):
    for what, tally in kills.all_kills(tmp_path / "kills", in_folder=20, on_s3=5, commands=0).items():
        assert tally.trials in (20, 5), what
        assert tally.told == []


@pytest.mark.slow
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_every_kind_of_file_is_among_those_that_are_damaged(tmp_path, state):
    """A new kind of file needs a name in `kind_of`, and with it its faults."""
    stores = various.Stores(tmp_path)
    kinds = {various.kind_of(key) for key in faults.keys(stores.sound[state])}
    assert {
        "record",
        "metadata",
        "coordinate",
        "shard of activations",
        "chunk, string",
        "chunk, bool",
    } <= kinds
    assert ("list of units" in kinds) == (state == "finished")
    assert ("marker" in kinds) == (state == "unfinished")


@pytest.mark.slow
def test_the_counts_are_not_blind(tmp_path, monkeypatch):
    """Without the looks that this is about, faults are read wrong."""
    stores = various.Stores(tmp_path)
    monkeypatch.setattr("posttrace.stores.reading.refuse_lost", lambda store, path: store.progress.markers())
    monkeypatch.setattr("posttrace.stores.lazy.confirm", lambda *_: None)
    rng = random.Random(0)
    for key, fault in {
        f"{example.PATH}/logit_diff_clean/c/1/0": "deleted",
        f"{various.COUNTS}/a_bool/c/0": "deleted",
        f"{example.PATH}/activation/c/1/0/0/0/0": "swapped with a sibling",
    }.items():
        bad, refused = faults.trial(tmp_path, stores, "finished", key, fault, rng)
        assert bad["wrong"] and not refused, key
