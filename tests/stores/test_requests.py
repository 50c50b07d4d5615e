"""Jobs that a server has: noted next to the units, found by the next run, gone with their unit."""

import pytest

from posttrace.stores import Store, StoreError, verify
from posttrace.stores.requests import REQUESTS
from tests.support.stores import example


def noted(store):
    return [key for key, _, _ in store.location.list(REQUESTS)]


def test_a_note_is_found_by_whoever_opens_the_store_next(url):
    store = example.make(url)
    first, second = (unit.id for unit in list(store.units.values())[:2])
    store.requests.note(first, 0).keep({"job": "17", "state": "submitted"})
    store.requests.note(first, 0).keep({"job": "18", "state": "submitted"})
    store.requests.note(first, 1).keep({"job": "19", "state": "submitted"})
    again = Store.open(url).requests
    assert [again.note(first, call).find()["job"] for call in (0, 1)] == ["18", "19"]
    assert again.note(first, 2).find() is None and again.note(second, 0).find() is None
    again.drop(first)
    assert noted(store) == []


def test_dropping_a_unit_s_notes_leaves_those_of_others(url):
    store = example.make(url)
    first, second = (unit.id for unit in list(store.units.values())[:2])
    for unit in (first, second):
        store.requests.note(unit, 0).keep({"job": unit})
    store.requests.drop(first)
    assert store.requests.note(first, 0).find() is None
    assert store.requests.note(second, 0).find()["job"] == second


def test_a_torn_note_counts_as_none(url):
    store = example.make(url)
    note = store.requests.note("demo/x", 0)
    note.keep({"job": "17"})
    store.location.put(note.key, store.location.get(note.key)[:-9])
    assert note.find() is None
    note.keep({"job": "18"})
    assert note.find()["job"] == "18"


def test_a_key_is_not_noted(url, monkeypatch):
    store = example.make(url)
    monkeypatch.setenv("NDIF_API_KEY", "5e37e9b0-not-a-real-key")
    with pytest.raises(StoreError, match="NDIF_API_KEY"):
        store.requests.note("demo/x", 0).keep({"job": "of 5e37e9b0-not-a-real-key"})
    assert noted(store) == []


def test_a_finished_store_has_no_notes_left(url):
    store = example.make(url)
    store.requests.note(next(iter(store.units)), 0).keep({"job": "17"})
    example.run(store)
    store.finalise()
    assert noted(store) == [] and verify(url) == []
