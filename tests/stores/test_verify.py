"""Whatever is damaged is found, named, and repaired by forget and rerun."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrace.stores import (
    Damaged,
    Store,
    StoreBusy,
    StoreError,
    forget,
    group_paths,
    open_group,
    repair,
    summary,
    verify,
)
from posttrace.stores.location import Location
from tests.support.stores import example

UNIT = f"{example.PATH}/clean/instruct/0000"
LAST = f"{example.PATH}/clean/instruct/0004"  # a block shorter than the chunk
CHUNKS = {
    ("logit_diff_clean", UNIT): f"{example.PATH}/logit_diff_clean/c/1/0",
    ("activation", UNIT): f"{example.PATH}/activation/c/1/0/0/0/0",
    ("activation", LAST): f"{example.PATH}/activation/c/1/1/0/0/0",
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "flipped": (flipped, {"damaged"}),
    "truncated": (lambda data: data[:-7], {"cut"}),
    "longer": (lambda data: data + b"\n", {"cut"}),
    "empty": (lambda data: b"", {"empty"}),
    "gone": (None, {"missing"}),
    "garbage": (lambda data: b"{}" * 40, {"cut"}),
}


def altered(data: bytes) -> bytes:
    """Still JSON, but not what was written: a number in a record, a seed in a job."""
    return data.replace(b": 0.5", b": 0.6").replace(b'"seed": 0', b'"seed": 1')


DAMAGE_OF_JSON = {**DAMAGE, "altered": (altered, {})}


@pytest.fixture
def finished(url):
    store = example.make(url)
    example.run(store)
    store.finalise()
    return store


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_named_and_repaired(finished, damage):
    place, before = finished.location, example.contents(finished)
    change, kinds = DAMAGE[damage]
    for key in CHUNKS.values():
        data = place.get(key)
        place.delete([key])
        if change:
            place.put(key, change(data))
    found = verify(finished.url)
    assert {(p.array, p.unit) for p in found} == set(CHUNKS)
    for problem in found:
        assert problem.kind in kinds
        assert problem.group == example.PATH
        assert problem.path == place.at(CHUNKS[problem.array, problem.unit])
        assert problem.path in str(problem)
        assert f"`posttrace verify {finished.url} --repair` forgets the unit" in problem.fix
    if "s3" not in finished.url:
        with pytest.raises(StoreError, match=r"damaged|lost"):
            Store.open(finished.url).read(UNIT, "activation")
    forget(finished.url, {p.unit for p in found})
    assert summary(finished.url)["complete"] is False
    again = example.make(finished.url)
    assert [unit.id for unit in again.pending()] == [UNIT, LAST]
    example.run(again)
    again.finalise()
    assert verify(finished.url, unfinished=True) == []
    assert example.contents(Store.open(finished.url)) == before


def test_a_sound_chunk_with_other_content_is_named(finished):
    ours, other = CHUNKS["logit_diff_clean", UNIT], f"{example.PATH}/logit_diff_clean/c/0/0"
    finished.location.put(ours, finished.location.get(other))
    (problem,) = verify(finished.url)
    assert (problem.kind, problem.array, problem.unit) == ("differs", "logit_diff_clean", UNIT)
    assert finished.location.at(ours) in problem.path


@pytest.mark.slow
def test_every_flipped_bit_of_a_chunk_is_found(tmp_path):
    store = example.make(tmp_path)
    unit = store.units[UNIT]
    store.write(unit, example.values(store, unit))
    for key in (CHUNKS["logit_diff_clean", UNIT], CHUNKS["activation", UNIT]):
        sound = store.location.get(key)
        for position in np.linspace(0, len(sound) - 1, 25).astype(int):
            data = bytearray(sound)
            data[position] ^= 1 << position % 8
            store.location.put(key, bytes(data))
            assert [p.path for p in verify(tmp_path)] == [store.location.at(key)], position
        store.location.put(key, sound)
    assert verify(tmp_path) == []


@pytest.mark.parametrize(
    "key",
    [
        "zarr.json",
        f"{example.PATH}/zarr.json",
        f"{example.PATH}/logit_diff/zarr.json",
        f"{example.PATH}/token_label/c/0",
        f"{example.PATH}/n_tokens/c/0",
        ".posttrace/claim.json",
    ],
)
@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in ("gone", "empty"))]
)
def test_damaged_metadata_and_coordinates_are_named_and_restored_by_a_rerun(tmp_path, key, damage):
    store = example.make(tmp_path)
    example.run(store, 2)
    change, sound = DAMAGE[damage][0], store.location.get(key)
    store.location.delete([key])
    if change:
        store.location.put(key, change(sound))
    (problem,) = verify(tmp_path)
    assert problem.path == store.location.at(key)
    assert "--repair` or the next run of the job restores this file" in problem.fix or "claim" in key
    example.make(tmp_path)
    assert store.location.get(key) == sound
    assert verify(tmp_path) == []


@pytest.mark.parametrize("damage", ["altered", "flipped", "longer", "truncated", "empty", "gone"])
def test_a_damaged_record_is_named_and_restored_by_a_rerun(tmp_path, damage):
    url = str(tmp_path)
    store = example.make(url)
    example.run(store, 3)
    change, sound = DAMAGE_OF_JSON[damage][0], store.location.get(".posttrace/store.json")
    store.location.delete([".posttrace/store.json"])
    if change:
        store.location.put(".posttrace/store.json", change(sound))
    for look in (Store.open, summary, group_paths):
        with pytest.raises(
            StoreError, match=r"\.posttrace/store\.json: .*--repair` restores it, or run its job"
        ):
            look(url)
    (problem,) = verify(url)
    assert (problem.kind, problem.path) == ("metadata", store.location.at(".posttrace/store.json"))
    again = example.make(url)
    assert store.location.get(".posttrace/store.json") == sound
    assert len(again.done()) == 3


@pytest.mark.parametrize("damage", ["altered", "flipped", "truncated", "empty", "garbage"])
def test_a_torn_marker_is_named_and_its_unit_done_again(tmp_path, damage):
    url = str(tmp_path)
    store = example.make(url)
    example.run(store)
    key = f".posttrace/units/{UNIT}.json"
    store.location.put(key, DAMAGE_OF_JSON[damage][0](store.location.get(key)))
    (problem,) = verify(url)
    assert (problem.kind, problem.path) == ("marker", store.location.at(key))
    again = example.make(url)
    assert [unit.id for unit in again.pending()] == [UNIT]
    example.run(again)
    again.finalise()
    assert verify(url) == []


@pytest.mark.slow
def test_a_torn_list_of_finished_units_costs_nothing(finished):
    """Its spare stands in for it, and the next run or --repair puts it right."""
    key, spare = ".posttrace/units.json", ".posttrace/units.spare.json"
    sound, before = finished.location.get(key), example.contents(finished)
    assert finished.location.get(spare) == sound
    for lost in (key, spare):
        for mend in (lambda: example.make(finished.url).finalise(), lambda: repair(finished.url)):
            for data in (flipped(sound), sound + b"\n", b"", None):
                finished.location.delete([lost])
                if data is not None:
                    finished.location.put(lost, data)
                (problem,) = verify(finished.url)
                assert (problem.kind, problem.path) == ("marker", finished.location.at(lost))
                assert example.make(finished.url).pending() == []
                mend()
                assert verify(finished.url) == []
                assert finished.location.get(lost) == sound
    assert example.contents(finished) == before


def test_lost_lists_of_finished_units_are_made_from_the_data(finished):
    before = example.contents(finished)
    finished.location.delete([".posttrace/units.json", ".posttrace/units.spare.json"])
    finished.location.delete([CHUNKS["activation", LAST]])
    with pytest.raises(
        StoreError, match=r"units\.json: .*--repair` finds from the data which units are done"
    ):
        example.make(finished.url).pending()
    assert {p.unit for p in verify(finished.url) if p.unit} == set(finished.units)
    done = repair(finished.url)
    assert done.forgotten == (LAST,)
    assert set(done.derived) == set(finished.units) - {LAST}
    again = example.make(finished.url)
    assert [unit.id for unit in again.pending()] == [LAST]
    example.run(again)
    again.finalise()
    assert verify(finished.url, unfinished=True) == []
    assert example.contents(again) == before


def test_without_any_marker_the_data_are_still_noticed(finished):
    """Three files lost at once: nothing says any more that a unit was finished, but its data."""
    lost = ".posttrace/units.json", ".posttrace/units.spare.json", ".posttrace/complete.json"
    finished.location.delete([*lost, CHUNKS["activation", LAST]])
    assert {p.unit for p in verify(finished.url)} == set(finished.units)
    assert repair(finished.url).forgotten == (LAST,)


@pytest.mark.parametrize("damage", ["flipped", "longer", "truncated", "empty", "garbage", "gone"])
def test_a_damaged_mark_of_completeness_is_named_and_healed(finished, damage):
    key = ".posttrace/complete.json"
    change = DAMAGE[damage][0]
    for mend in (lambda: example.make(finished.url).finalise(), lambda: repair(finished.url)):
        sound = finished.location.get(key)
        finished.location.delete([key])
        if change:
            finished.location.put(key, change(sound))
        (problem,) = verify(finished.url)
        assert problem.path == finished.location.at(key)
        assert summary(finished.url)["complete"] is False
        mend()
        assert verify(finished.url) == []
        assert summary(finished.url)["complete"] is True


def test_markers_of_another_job_do_not_count(tmp_path):
    one, two = example.make(tmp_path / "one"), example.make(tmp_path / "two", fingerprint="beef")
    example.run(one, 1)
    key = f".posttrace/units/{next(iter(one.done()))}.json"
    two.location.put(key, one.location.get(key))
    assert two.done() == frozenset()
    assert [p.kind for p in verify(tmp_path / "two")] == ["marker"]


def test_done_markers_without_any_record_are_never_overwritten(tmp_path):
    store = example.make(tmp_path)
    example.run(store, 1)
    store.location.delete([".posttrace/store.json", ".posttrace/claim.json"])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"restore one of them from a copy|posttrace did not write"):
            example.make(tmp_path)
    assert store.done()


def test_forget_refuses_unknown_units(tmp_path):
    example.make(tmp_path)
    with pytest.raises(
        StoreError, match="there is no unit 'x'; ids look like 'knowledge/cities/clean/base/0000'"
    ):
        forget(tmp_path, ["x"])


def test_damaged_metadata_give_a_message_when_opened(tmp_path):
    example.make(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(Damaged, match=r"zarr\.json: changed since creation.*posttrace verify .* --repair`"):
        open_group(tmp_path, example.PATH)


def test_read_does_not_pass_off_missing_values_as_computed(url):
    store = example.make(url)
    with pytest.raises(
        StoreError, match=r"activation/c/0/0/0/0/0: this chunk was not written yet, or is lost"
    ):
        store.read(example.PATH, "activation", {"source": (0, 1), "pair": (0, 2)})


def test_problems_are_readable_as_json(finished):
    finished.location.delete([CHUNKS["activation", UNIT]])
    (problem,) = verify(finished.url)
    assert json.loads(json.dumps(vars(problem)))["what"] == "the chunk is gone (zarr would read fill values)"
    assert Location(finished.url).size(CHUNKS["activation", LAST])


@pytest.mark.parametrize("name", ["run", "shard-0-of-2"])
def test_repair_keeps_away_from_a_store_that_is_being_written(url, name):
    store = example.make(url)
    example.run(store, 2)
    store.writing.begin(LAST)
    store.location.put(CHUNKS["activation", LAST], b"half")
    with store.lease(name), pytest.raises(StoreBusy, match="in use by process"):
        repair(url)
    assert store.location.size(CHUNKS["activation", LAST]) == 4
    assert repair(url).found == ()
    assert store.location.size(CHUNKS["activation", LAST]) is None, "what a stopped run left is deleted"
    assert len(store.done()) == 2


def test_a_lost_marker_is_made_from_the_data_and_a_stopped_run_is_none(url):
    store = example.make(url)
    example.run(store)
    marker = store.location.get(f".posttrace/units/{UNIT}.json")
    store.location.delete([f".posttrace/units/{UNIT}.json"])
    store.writing.begin(UNIT)
    assert verify(url) == [], "stopped between data and marker"
    store.writing.end(UNIT)
    (problem,) = verify(url)
    assert (problem.kind, problem.unit) == ("marker", UNIT)
    assert repair(url).derived == (UNIT,)
    assert verify(url, unfinished=True) == []
    sizes = json.loads(marker)["sizes"]
    assert Store.open(url).progress.gathered()[UNIT]["sizes"] == sizes


def test_reading_a_whole_unit_finds_what_was_swapped(finished):
    one, other = f"{example.PATH}/activation/c/0/0/0/0/0", f"{example.PATH}/activation/c/1/0/0/0/0"
    place = finished.location
    swapped = place.get(one), place.get(other)
    assert len(swapped[0]) == len(swapped[1]), "their sizes do not tell"
    place.put(one, swapped[1])
    place.put(other, swapped[0])
    with pytest.raises(Damaged, match=r"activation: holds other values than unit .* wrote.*--repair`"):
        Store.open(finished.url).read(example.PATH, "activation")
    data = open_group(finished.url, example.PATH).activation
    for look in (lambda: data.values, lambda: data[0].values, lambda: data.transpose("hidden", ...).values):
        with pytest.raises(Damaged, match=r"holds other values than unit"):
            look()
