"""Stores that hold every kind of value and every kind of file, sound, half done, of another job and of a twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posttrace.stores import Array, Coord, Group, Store, Unit
from posttrace.stores.plan import aligned
from tests.support.stores import example

COUNTS = "counts"


def groups() -> list[Group]:
    """The example group, and one of the other kinds of values: their fill values are legal ones."""
    block = {"item": 2}
    arrays = tuple(
        Array(f"a_{dtype}", ("item",), dtype, "count", "values", block)
        for dtype in ("bool", "int64", "string", "float16")
    )
    coords = (Coord("item", ("item",), ["a", "b", "c"]), Coord("share", ("item",), [0.5, 0.25, 0.125]))
    return [example.group(), Group(COUNTS, {"item": 3}, arrays, coords)]


def units() -> list[Unit]:
    names = tuple(array.name for array in groups()[1].arrays)
    counts = [Unit(f"{COUNTS}/count/{i}", COUNTS, {"item": (i, min(i + 2, 3))}, names) for i in (0, 2)]
    return [*counts, *example.units()]


def values(store: Store, unit: Unit, twin: bool = False) -> dict[str, np.ndarray]:
    """What a unit computes; a twin is the same job on another machine, where the numbers come out differently."""
    if unit.group != COUNTS:
        made = example.values(store, unit)
    else:
        n, rng = (
            unit.region["item"][1] - unit.region["item"][0],
            np.random.default_rng([unit.region["item"][0], 7]),
        )
        made = {
            "a_bool": rng.random(n) > -1,
            "a_int64": rng.integers(3, 2**40, n),
            "a_string": np.array([f"answer {x} of Łódź" for x in rng.integers(9, 99, n)], dtype=object),
            "a_float16": rng.normal(size=n).astype("float16"),
        }
    if twin:
        made = {name: one[::-1] * 3 if one.dtype.kind == "f" else one for name, one in made.items()}
    return made


def make(url: Path | str, fingerprint: str = "f00d") -> Store:
    return example.make(str(url), groups=groups(), units=units(), fingerprint=fingerprint)


def run(store: Store, limit: int | None = None, twin: bool = False) -> None:
    """Do what is left, and finalise the store if that is everything."""
    for unit in store.pending()[:limit]:
        store.write(unit, values(store, unit, twin), record={"seconds": 0.5})
    if limit is None:
        store.finalise()


class Stores:
    """The stores that are damaged, the others that files are taken from, and what is true."""

    def __init__(self, folder: Path) -> None:
        self.sound = {"finished": folder / "finished", "unfinished": folder / "unfinished"}
        self.others = {"other": folder / "other", "twin": folder / "twin"}
        run(make(self.sound["finished"]))
        unfinished = make(self.sound["unfinished"])
        run(unfinished, limit=9)
        leave_unfinished(unfinished)
        run(make(self.others["other"], "beef"), twin=True)
        run(make(self.others["twin"]), twin=True)
        loose = make(folder / "loose", "beef")
        run(loose, limit=9, twin=True)
        twin_loose = make(folder / "twin loose")
        run(twin_loose, limit=9, twin=True)
        self.loose = {"other": folder / "loose", "twin": folder / "twin loose"}
        store = Store.open(self.sound["finished"])
        self.truth = {
            (path, array.name): store.read(path, array.name)
            for path, g in store.groups.items()
            for array in g.arrays
        }
        self.coords = {
            (group.path, coord.name): np.asarray(coord.stored).tolist()
            for group in groups()
            for coord in group.coords
        }
        self.done = {state: Store.open(url).done() for state, url in self.sound.items()}

    def other(self, state: str, whose: str) -> Path:
        return (self.others if state == "finished" else self.loose)[whose]


def leave_unfinished(store: Store) -> None:
    """What a killed run leaves: a note, one of two arrays, a lease, a job at a server."""
    unit = next(unit for unit in store.pending() if len(unit.arrays) > 1)
    store.writing.begin(unit.id)
    name = unit.arrays[0]
    window = aligned(store.groups[unit.group], unit, name)
    store._array(unit.group, name)[window] = values(store, unit)[name]
    store.requests.note(unit.id, 0).keep({"job": "17"})


def kind_of(key: str) -> str:
    """What a file of a store is, in words."""
    folder, _, rest = key.partition("/")
    if folder == ".posttrace":
        names = {
            "store.json": "record",
            "claim.json": "spare of the record",
            "files.json": "spare of the metadata",
            "units.json": "list of units",
            "units.spare.json": "spare of the list",
            "complete.json": "mark of completeness",
        }
        notes = {"units": "marker", "writing": "note of a writer", "requests": "note of a job"}
        return names.get(rest) or notes[rest.split("/")[0]]
    if key.endswith("zarr.json"):
        return "metadata"
    group = next(group for group in groups() if key.startswith(f"{group.path}/"))
    name = key.removeprefix(f"{group.path}/").split("/")[0]
    array = next((array for array in group.arrays if array.name == name), None)
    if array is None:
        return "coordinate"
    return "shard of activations" if array.kind == "activation" else f"chunk, {array.dtype}"
