"""Nothing is drawn from data that are lost, altered or hostile, and nothing is written outside of --out."""

import shutil

import numpy as np
import pytest

from posttrace.figures import FigureError, render, report
from posttrace.pipeline.cli import main
from posttrace.stores import Array, Coord, Damaged, Group, Store, Unit, open_group, repair, verify
from tests.support.figures import knowledge as synthetic

SETS = "knowledge/cities"


@pytest.fixture
def store(finished_store, tmp_path):
    """A copy of the finished store."""
    shutil.copytree(finished_store, tmp_path / "store")
    return tmp_path / "store"


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


FAULTS = {
    "gone": None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\n",
    "flipped": flipped,
}


def damage(path, fault):
    change = FAULTS[fault]
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))


def refused(store, out, capsys):
    """Both commands end with one message and status 2, and leave no file."""
    for command in ("figures", "report"):
        with pytest.raises(SystemExit) as end:
            main([command, str(store), "--out", str(out)])
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert said.startswith("posttrace: ") and said.count("\n") == 1, said
        assert f"posttrace verify {store} --repair`" in said
        yield said
    assert [path for path in out.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "chunk", ["logit_diff_clean/c/0/0", "logit_diff/c/0/1/0/0/0", "n_tokens/c/0", "source/c/0"]
)
def test_lost_and_damaged_chunks_and_coordinates_are_never_drawn(store, tmp_path, capsys, chunk, fault):
    damage(store / SETS / chunk, fault)
    for said in refused(store, tmp_path / "out", capsys):
        assert str(store / SETS / chunk.split("/")[0]) in said


def test_a_swapped_chunk_is_found_when_it_is_read(store, tmp_path, capsys):
    """Both decode, and may have the same size: only their hashes tell."""
    one, other = store / SETS / "logit_diff/c/0/0/0/0/0", store / SETS / "logit_diff/c/0/1/0/0/0"
    swap = one.read_bytes(), other.read_bytes()
    one.write_bytes(swap[1])
    other.write_bytes(swap[0])
    list(refused(store, tmp_path / "out", capsys))
    assert {problem.kind for problem in verify(store)} <= {"differs", "cut"}


def test_a_lost_chunk_of_truth_values_or_counts_is_not_read_as_its_fill_value(tmp_path):
    """False and -1 are legal values: an accuracy would change, and nothing would tell."""
    arrays = tuple(Array(kind, ("item",), kind, "count", "d", {"item": 2}) for kind in ("bool", "int64"))
    coord = Coord("item", ("item",), np.arange(4))
    units = [Unit(f"g/{i}", "g", {"item": (i, i + 2)}, ("bool", "int64")) for i in (0, 2)]
    store = Store.create(tmp_path / "s", [Group("g", {"item": 4}, arrays, (coord,))], units, {}, "1", {})
    values = {"bool": np.array([True, True]), "int64": np.array([3, 4])}
    store.write(units[0], values)
    assert open_group(store, "g").bool.values.tolist() == [True, True, False, False], (
        "unfinished data are readable"
    )
    store.write(units[1], values)
    store.finalise()
    for name in values:
        path = tmp_path / "s/g" / name / "c/1"
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(Damaged, match=rf"{name}/c/1: the chunk is gone.*--repair`"):
            open_group(tmp_path / "s", "g")
        path.write_bytes(data)
    assert open_group(tmp_path / "s", "g").bool.values.all()


def test_a_chunk_that_does_not_decode_is_one_message_however_it_is_read(tmp_path):
    array = Array("x", ("item", "layer"), "float32", "nats", "d", {"item": 1}, "activation")
    units = [Unit(f"g/{i}", "g", {"item": (i, i + 1)}, ("x",)) for i in (0, 1)]
    store = Store.create(tmp_path / "s", [Group("g", {"item": 2, "layer": 2}, (array,))], units, {}, "1", {})
    for unit in units:
        store.write(unit, {"x": np.ones((1, 2), "f4")})
    path = tmp_path / "s/g/x/c/0/0"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    data = open_group(tmp_path / "s", "g").x
    assert data[1].values.tolist() == [1, 1], "what is sound can still be read"
    for look in (
        lambda: data.values,
        lambda: data[0, 0].values,
        lambda: data.transpose().values,
        lambda: data.load(),
    ):
        with pytest.raises(Damaged, match=r"s/g/x: a chunk does not decode .*posttrace verify .* --repair`"):
            look()


def test_what_is_damaged_is_drawn_again_after_repair_and_rerun(store, finished_store, tmp_path):
    damage(store / SETS / "logit_diff_clean/c/0/0", "gone")
    damage(store / SETS / "n_tokens/c/0", "flipped")
    (forgotten,) = repair(store).forgotten
    again, sound = Store.open(store), Store.open(finished_store)
    unit = again.units[forgotten]
    again.write(unit, {name: sound.read(unit, name) for name in unit.arrays})
    again.finalise()
    assert verify(store) == []
    one, two = (
        render(url, tmp_path / str(n), only="judgement") for n, url in enumerate((store, finished_store))
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["../../../escaped", "..", "a/../../../escaped", "/escaped", "a\0b", "a\nb", "."]
)
def test_no_name_in_a_store_leads_out_of_the_folder(tmp_path, name):
    dataset = synthetic.template_group("cities", stages=("base",), pairs=4, layers=3)
    url = tmp_path / "deep" / "er" / "store"
    synthetic.write_store(url, [dataset])
    # the path of the group is checked by `stores`; what it says of itself is not
    store = Store.open(url)
    attrs = {**store.groups[SETS].attrs, "set": name}
    groups = [Group(SETS, store.groups[SETS].sizes, store.groups[SETS].arrays, _coords(dataset), attrs)]
    bad = Store.create(tmp_path / "bad", groups, store.units.values(), synthetic.JOB, "1", {})
    for unit in store.units.values():
        bad.write(unit, {array: store.read(unit, array) for array in unit.arrays})
    out = tmp_path / "a" / "b" / "c" / "out"
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    with pytest.raises(FigureError, match="posttrace did not write this store"):
        render(tmp_path / "bad", out)
    assert report(tmp_path / "bad", out) == out / "report.html", "the page has no file but its own"
    after = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert after - before <= {out, *out.parents}


def _coords(dataset):
    return tuple(Coord(name, coord.dims, coord.values, name) for name, coord in dataset.coords.items())


def told(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, capsys.readouterr().out


def test_verify_says_how_much_it_read_and_never_that_nothing_is_sound(store, empty_store, capsys):
    code, out = told(capsys, "verify", store)
    assert code == 0 and out.endswith("no damage; 10 of 10 units are done, and were read\n"), out
    code, out = told(capsys, "verify", empty_store)
    assert code == 1 and "nothing to read: 0 of" in out and "no damage" not in out
    for name in ("units.json", "units.spare.json", "complete.json"):
        (store / ".posttrace" / name).unlink()
    (store / SETS / "logit_diff_clean/c/0/0").unlink()
    code, out = told(capsys, "verify", store)
    assert code == 1 and "10 problems" in out and "no damage" not in out
    code, out = told(capsys, "verify", store, "--repair")
    assert code == 0 and out.count("marked again, from its data") == 9 and "1 units forgotten" in out
    code, out = told(capsys, "verify", store)
    assert code == 0 and "no damage; 9 of 10 units are done" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store", "claim", "files", "units", "units.spare", "complete"])
@pytest.mark.parametrize("fault", FAULTS)
def test_repair_heals_whatever_a_rerun_would(store, name, fault, capsys):
    path = store / ".posttrace" / f"{name}.json"
    sound = path.read_bytes()
    damage(path, fault)
    code, out = told(capsys, "verify", store)
    assert code == 1 and str(path) in out
    code, out = told(capsys, "verify", store, "--repair")
    assert code == 0 and f"{path}: restored" in out
    if name != "complete":
        assert path.read_bytes() == sound
    code, out = told(capsys, "verify", store)
    assert code == 0 and "no damage; 10 of 10" in out
