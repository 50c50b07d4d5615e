"""Declarations are checked where they are made; any sound one round-trips."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrace.stores import Array, Coord, Group, Store, StoreError, Unit, open_group, verify
from posttrace.stores.schema import DTYPES

X = Array("x", ("pair", "layer"), "float32", "nats", "numbers", {"pair": 2})


def unit(name="g/0", region=None, arrays=("x",), group="g"):
    return Unit(name, group, {"pair": (0, 2)} if region is None else region, arrays)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Array("a/b", (), "float32", "", ""), "array name 'a/b'"),
        (lambda: Array("c", (), "float32", "", ""), "taken by the format"),
        (lambda: Array("x", ("p", "p"), "float32", "", ""), "name a dimension twice"),
        (lambda: Array("x", ("p",), "float8", "", ""), "dtype 'float8' is not one of float64, float32"),
        (
            lambda: Array("x", ("p",), "bool", "", "", {}, "log"),
            "kind 'log' is not one of result, activation",
        ),
        (lambda: Array("x", ("p",), "bool", "", "", {}, "activation"), "needs a dimension 'layer'"),
        (
            lambda: Array("x", ("p",), "bool", "", "", {"q": 1}),
            r"block names 'q', which is not in its dims \('p',\)",
        ),
        (lambda: Array("x", ("p",), "bool", "", "", {"p": 0}), "block of 'p' is 0, must be .* at least 1"),
        (lambda: Coord("c1", ("p",), ["a", 1]), "1 among strings"),
        (lambda: Coord("c1", ("p", "q"), [["a"], ["a", "b"]]), "ragged"),
        (lambda: Group("../up", {}, ()), "group path '../up' is not a path-safe name"),
        (lambda: Group("g", {"pair": 0, "layer": 1}, (X,)), "size of 'pair' is 0"),
        (lambda: Group("g", {"pair": 2}, (X,)), "dimension 'layer', which is not in sizes"),
        (lambda: Group("g", {"pair": 2, "layer": 2}, (X, X)), "'x' is declared twice"),
        (
            lambda: Group("g", {"pair": 2}, (), (Coord("n", ("pair",), [1]),)),
            r"shape \(1,\), its dims .* have \(2,\)",
        ),
        (lambda: Group("g", {"a": 2, "b": 2}, (), (Coord("a", ("b",), [1, 2]),)), "must be .'a',."),
        (lambda: Group("g", {}, (), (), {"n": float("nan")}), "g.* attrs: .*finite float"),
        (lambda: Group("g", {}, (), (), {"coordinates": "x"}), "taken by the format"),
        (lambda: unit("a/../b"), "unit id 'a/../b' is not a path-safe name"),
        (lambda: unit(arrays=()), "must name at least one array"),
    ],
)
def test_bad_declarations_are_refused(make, match):
    with pytest.raises(StoreError, match=match):
        make()


def test_an_array_cannot_be_a_group_too(tmp_path):
    groups = [Group("g", {"pair": 5, "layer": 3}, (X,)), Group("g/x", {}, ())]
    with pytest.raises(StoreError, match="g/x is both an array and the path of a group"):
        Store.create(tmp_path, groups, [], {}, "1", {})


def test_fingerprint_and_url_must_not_be_empty(tmp_path):
    with pytest.raises(StoreError, match="fingerprint '' must be a non-empty string"):
        Store.create(tmp_path, [], [], {}, "", {})
    with pytest.raises(StoreError, match="empty URL"):
        Store.create("", [], [], {}, "1", {})


@pytest.mark.parametrize(
    ("units", "match"),
    [
        ([unit(region={"pair": (1, 3)})], r"unit 'g/0', array 'x': pair \[1, 3\) cuts through chunks of 2"),
        (
            [unit(region={"pair": (0, 1)})],
            r"start and stop must be multiples of 2 \(stop may be the end, 5\)",
        ),
        ([unit(region={"pair": (4, 6)})], r"pair \[4, 6\) is not within \[0, 5\)"),
        ([unit(region={"pear": (0, 2)})], "region names 'pear', group 'g' has pair, layer"),
        ([unit(region={"layer": (0, 1)})], r"layer \[0, 1\) cuts through chunks of 3"),
        ([unit(arrays=("y",))], "group 'g' has no array 'y'; it has x"),
        ([unit(group="h")], "group 'h' is not one of g"),
        ([unit(), unit()], "unit 'g/0' is planned twice"),
        ([unit(), unit("g/1")], "units 'g/0' and 'g/1' both write g/x/c/0/0"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(tmp_path, units, match):
    with pytest.raises(StoreError, match=match):
        Store.create(tmp_path / "s", [Group("g", {"pair": 5, "layer": 3}, (X,))], units, {}, "1", {})
    assert not (tmp_path / "s").exists() or not any((tmp_path / "s").iterdir())


@st.composite
def declared(draw):
    """A group of one array cut into units of one or more blocks, and its values, in a random order of writing."""
    names = draw(st.sampled_from([("pair",), ("pair", "layer"), ("source", "pair", "layer"), ()]))
    sizes = {name: draw(st.integers(1, 5)) for name in names}
    block = {name: draw(st.integers(1, 6)) for name in names if draw(st.booleans())}
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    activations = "layer" in names and dtype != "string"
    kind = draw(st.sampled_from(["result", "activation"] if activations else ["result"]))
    array = Array("x", names, dtype, "nats", "numbers", block, kind)
    group = Group("a/b", sizes, (array,), (Coord("note", names, np.full(list(sizes.values()), "é")),))
    regions = [{}]
    for name in names:
        step = min(block.get(name, sizes[name]), sizes[name]) * draw(st.integers(1, 2))
        cuts = range(0, sizes[name], step)
        regions = [{**r, name: (c, min(c + step, sizes[name]))} for r in regions for c in cuts]
    units = [Unit(f"a/b/{i}", "a/b", region, ("x",)) for i, region in enumerate(regions)]
    stored = np.dtype(DTYPES[dtype][0])
    count = int(np.prod(list(sizes.values())))
    if dtype == "bool":
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        values = np.array(bits)
    elif dtype == "string":
        values = np.array(draw(st.lists(st.text(), min_size=count, max_size=count)), dtype=object)
    else:
        # any bits: NaNs of every kind, infinities, -0.0
        values = np.frombuffer(
            draw(st.binary(min_size=count * stored.itemsize, max_size=count * stored.itemsize)), stored
        )
    return group, draw(st.permutations(units)), values.reshape(list(sizes.values()))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(declared())
def test_any_array_round_trips_bit_for_bit(case):
    group, units, values = case
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(folder, [group], units, {}, "1", {})
        for one in units:
            store.write(one, {"x": values[group.window("x", one.region, "test")]})
        store.finalise()
        got = store.read("a/b", "x")
        assert got.tolist() == values.tolist() if got.dtype == object else got.tobytes() == values.tobytes()
        data = open_group(folder, "a/b")
        if group.array("x").dtype == "bfloat16":
            expected = (values.astype("uint32") << 16).view("float32")
            assert data.x.values.tobytes() == expected.tobytes()
        elif group.array("x").dtype == "string":
            assert data.x.values.tolist() == values.tolist()
        else:
            assert data.x.values.tobytes() == values.tobytes()
        assert data.x.dims == group.array("x").dims
        assert verify(folder, unfinished=True) == []
