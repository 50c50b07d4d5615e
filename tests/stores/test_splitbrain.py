"""Two runs that both believe they hold the store, and compute different values: never complete with a mixture."""

from __future__ import annotations

import random
import threading

import pytest

from posttrace.stores import Store, StoreError, open_group, repair, verify
from posttrace.stores.location import Location
from tests.support.stores import example

OTHER = r"(content is not what was written|the chunk has \d+ bytes, \d+ were written)"


def write(store: Store, unit, add: float) -> None:
    data = {**example.values(store, unit)}
    for name, values in data.items():
        if values.dtype.kind == "f":
            data[name] = values + values.dtype.type(add)
    store.write(unit, data)


class Killed(BaseException):
    """The process ends here."""


def between(store: Store, monkeypatch, method: str, act) -> None:
    """Let something happen once, just before a step of this store's location."""
    plain = getattr(store.location, method)

    def step(*arguments, **options):
        monkeypatch.setattr(store.location, method, plain)
        act()
        return plain(*arguments, **options)

    monkeypatch.setattr(store.location, method, step)


def rival_that_dies_after_its_data(url, unit) -> None:
    """What a run leaves that is killed between the data and the marker."""
    rival = Store.open(url)

    def die(*_):
        raise Killed

    rival.location.sizes = die
    # its view was taken before the unit was marked
    rival.progress.find = lambda unit: None
    with pytest.raises(Killed):
        write(rival, unit, 1)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["before finalise", "within finalise", "after finalise"])
def test_a_rival_that_dies_over_finished_data_is_found(url, monkeypatch, end):
    reference = example.make(url + "-reference")
    example.run(reference)
    store = example.make(url)
    example.run(store)
    unit = example.units()[1]
    if end == "before finalise":
        rival_that_dies_after_its_data(url, unit)
    if end == "within finalise":
        # after the sizes were looked at, before the store is marked complete
        between(store, monkeypatch, "sweep", lambda: rival_that_dies_after_its_data(url, unit))
    if end == "after finalise":
        store.finalise()
        rival_that_dies_after_its_data(url, unit)
        with pytest.raises(StoreError, match=rf"{OTHER} \(unit {unit.id}\).*--repair`"):
            open_group(url, example.PATH)
        assert {p.unit for p in verify(url)} == {unit.id}
        assert repair(url).forgotten == (unit.id,)
    else:
        with pytest.raises(StoreError, match=rf"{OTHER} \(unit {unit.id}\); 1 units count"):
            store.finalise()
    again = example.make(url)
    assert [left.id for left in again.pending()] == [unit.id]
    example.run(again)
    again.finalise()
    assert verify(url) == []
    assert example.contents(again) == example.contents(reference)


def test_a_marker_that_comes_back_while_the_markers_are_gathered_is_found(tmp_path, monkeypatch):
    """The rival takes the marker away, but the other run has read it, and writes it into its list."""
    store, rival = example.make(tmp_path), Store.open(tmp_path)
    example.run(store)
    unit = example.units()[0]
    rival.progress.find = lambda name: Store.open(tmp_path).progress.find(name) if rival.late else None
    rival.late = False

    def comes_late():
        between(rival, monkeypatch, "sizes", lambda: setattr(rival, "late", True))
        with pytest.raises(StoreError, match="was written by two processes at once"):
            write(rival, unit, 1)

    plain = store.progress.gather

    def gather():
        markers = store.progress.markers()
        comes_late()
        return plain(markers)

    monkeypatch.setattr(store.progress, "gather", gather)
    with pytest.raises(StoreError, match="content is not what was written"):
        store.finalise()
    assert unit.id in {left.id for left in example.make(tmp_path).pending()}


@pytest.mark.parametrize("seed", range(12))
def test_two_runs_at_once_with_differing_values_end_sound(tmp_path, seed):
    """Without a lease, in random order: whatever each is told, a complete store holds what its markers say."""
    example.make(tmp_path)
    chance = random.Random(seed)
    orders = [chance.sample(example.units(), k=len(example.units())) for _ in range(2)]

    def run(n: int) -> None:
        store = Store.open(tmp_path)
        for unit in orders[n]:
            try:
                write(store, unit, n)
            except StoreError:
                pass
        try:
            store.finalise()
        except StoreError:
            pass

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3):
        last = Store.open(tmp_path)
        for unit in last.pending():
            write(last, unit, 0)
        try:
            last.finalise()
            break
        except StoreError:
            continue
    assert Store.open(tmp_path).progress.complete(len(example.units()))
    assert verify(tmp_path) == []
    assert Location(tmp_path).size(".posttrace/complete.json")
