"""Damage stores in every way that a single fault can, kill runs at any moment, and count what that costs.

python -m tests.support.stores.faults --faults 1000 --kills 1000 --page docs/damage.md

Everything is drawn with fixed seeds. A *fault* changes one file of a store (or swaps two). Then the store is
verified, read, mended with `repair`, and its job run again. Counted are units that were lost though the fault did not
touch them, values that were read wrong without an error, faults that `verify` did not name, and stores that were not
as before in the end. A *kill* ends a process with SIGKILL; what is left is verified and read, and the run goes on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from posttrace.stores import Store, StoreError, Unit, open_group, repair, verify
from posttrace.stores.checking import keys_of
from posttrace.stores.markers import COMPLETE, MARKERS
from posttrace.stores.plan import aligned
from tests.support.stores.various import Stores, groups, kind_of, make, run, units

OUTCOMES = ("lost", "wrong", "undetected", "not healed")


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


CHANGES = {
    "deleted": lambda data, rng: None,
    "emptied": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(1, len(data))],
    "one bit flipped": _flip,
    "one byte added": lambda data, rng: data + bytes([rng.randrange(256)]),
    "newline added": lambda data, rng: data + b"\n",
    "overwritten": lambda data, rng: rng.randbytes(len(data)),
}
EXCHANGES = ("swapped with a sibling", "from another job", "from a twin")
FAULTS = (*CHANGES, *EXCHANGES)
# neither data nor what is done: only whether they do harm is looked at
HARMLESS = ("note of a job", "note of a writer")


@dataclass
class Tally:
    """How many trials there were of one kind, and what they cost."""

    trials: int = 0
    refused: int = 0
    """How often reading was refused with one message."""
    bad: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    told: list[str] = field(default_factory=list)
    """The trials that cost something."""

    def add(self, bad: dict[str, bool], refused: bool, what: str) -> None:
        self.trials += 1
        self.refused += refused
        for outcome, happened in bad.items():
            self.bad[outcome] += happened
        if any(bad.values()):
            self.told.append(f"{what}: {', '.join(outcome for outcome, happened in bad.items() if happened)}")


def keys(url: Path) -> list[str]:
    return sorted(
        p.relative_to(url).as_posix() for p in url.rglob("*") if p.is_file() and "leases" not in p.parts
    )


def damage(url: Path, stores: Stores, state: str, key: str, fault: str, rng: random.Random) -> list[str]:
    """Do one fault to a copy of a store; keys of the files that differ now."""
    path = url / key
    before = path.read_bytes()
    if fault in CHANGES:
        after = CHANGES[fault](before, rng)
        path.unlink()
        if after is not None:
            path.write_bytes(after)
        return [key] if after != before else []
    if fault == "swapped with a sibling":
        kind = kind_of(key)
        siblings = [
            k for k in keys(url) if k != key and kind_of(k) == kind and (url / k).read_bytes() != before
        ]
        if not siblings:
            return []
        other = rng.choice(siblings)
        path.write_bytes((url / other).read_bytes())
        (url / other).write_bytes(before)
        return [key, other]
    theirs = stores.other(state, "twin" if fault == "from a twin" else "other") / key
    # a twin's mark says the same as ours, but for the time
    says_the_same = fault == "from a twin" and key == COMPLETE
    if not theirs.exists() or theirs.read_bytes() == before or says_the_same:
        return []
    shutil.copyfile(theirs, path)
    return [key]


def read_wrong(url: Path, stores: Stores, done: frozenset[str]) -> tuple[bool, bool]:
    """Whether a value of a finished unit, or a label, was read that is not true; and whether reading was refused."""
    refused = wrong = False
    plan = {unit.id: unit for unit in units()}
    for group in groups():
        try:
            data = open_group(url, group.path)
            read = {array.name: data[array.name].values for array in group.arrays}
            labels = {coord.name: data[coord.name].values.tolist() for coord in group.coords}
        except StoreError:
            refused = True
            continue
        wrong |= any(labels[name] != stores.coords[group.path, name] for name in labels)
        for unit in (plan[one] for one in done if plan[one].group == group.path):
            for name in unit.arrays:
                window = aligned(group, unit, name)
                ours, true = read[name][window], stores.truth[group.path, name][window]
                if group.array(name).dtype == "bfloat16":
                    true = (true.astype("uint32") << 16).view("float32")
                wrong |= not same(ours, true)
    return wrong, refused


def same(one: np.ndarray, other: np.ndarray) -> bool:
    if other.dtype.kind in "OT":
        return one.tolist() == other.tolist()
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def healed(url: Path, stores: Stores) -> bool:
    """Whether a run to the end gives a complete store without fault, with the true values."""
    run(make(url))
    store = Store.open(url)
    return (
        verify(url) == []
        and store.progress.complete(len(store.units))
        and all(same(store.read(path, name), true) for (path, name), true in stores.truth.items())
    )


def trial(folder: Path, stores: Stores, state: str, key: str, fault: str, rng: random.Random) -> tuple | None:
    """One fault: what it cost, and whether reading was refused; None where it would change nothing."""
    url = folder / "store"
    shutil.rmtree(url, ignore_errors=True)
    shutil.copytree(stores.sound[state], url)
    touched = damage(url, stores, state, key, fault, rng)
    if not touched:
        return None
    done = stores.done[state]
    hit = {unit.id for unit in units() if unit.id in done for one in touched if one in _files(unit)}
    if fault == "from a twin" and key.startswith(MARKERS):
        # nothing tells whether the data or the marker are the twin's: the unit is done again
        hit.add(key.removeprefix(MARKERS).removesuffix(".json"))
    try:
        detected = verify(url) != []
    except StoreError:
        detected = True
    wrong, refused = read_wrong(url, stores, done)
    try:
        repair(url)
        kept = Store.open(url).done()
    except StoreError:
        kept = frozenset()
    return {
        "lost": bool(done - hit - kept),
        "wrong": wrong,
        "undetected": not detected and not all(harmless(one, done) for one in touched),
        "not healed": not healed(url, stores),
    }, refused


def harmless(key: str, done: frozenset[str]) -> bool:
    """Whether a file is neither data nor says what is done: a note, or a chunk that a killed run left."""
    left = {one for unit in units() if unit.id not in done for one in _files(unit)}
    return kind_of(key) in HARMLESS or key in left


def _files(unit: Unit) -> set[str]:
    """Keys of what a unit wrote: these may cost the unit itself."""
    group = next(group for group in groups() if group.path == unit.group)
    return {key for name in unit.arrays for key in keys_of(group, unit, name)}


def faults(folder: Path, stores: Stores, count: int, seed: int = 0) -> dict[tuple[str, str], Tally]:
    """So many faults, each kind of fault in each kind of file in turn; (kind of file, fault) -> tally."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], Tally] = {}
    done = 0
    for state, kind, fault in _in_turn(stores, rng):
        choice = [key for key in keys(stores.sound[state]) if kind_of(key) == kind]
        key = rng.choice(choice)
        outcome = trial(folder, stores, state, key, fault, rng)
        if outcome is None:
            continue
        found.setdefault((kind, fault), Tally()).add(*outcome, f"{state}, {key}, {fault}")
        done += 1
        if done >= count:
            break
    return found


def _in_turn(stores: Stores, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """State, kind of file and fault: all that there are, in random order, again and again."""
    kinds = {state: sorted({kind_of(key) for key in keys(url)}) for state, url in stores.sound.items()}
    every = [(state, kind, fault) for state in kinds for kind in kinds[state] for fault in FAULTS]
    while True:
        rng.shuffle(every)
        yield from every


def main() -> None:
    from tests.support.stores import damage_page, kills

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=1000, help="at the level of stores, in a folder")
    parser.add_argument(
        "--s3", type=int, default=0, help="kills at the level of stores, on S3 (moto's server)"
    )
    parser.add_argument("--commands", type=int, default=0, help="kills of `posttrace run`")
    parser.add_argument("--page", type=Path, help="where the table goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # before anything else: the killed processes are forked from one that has done nothing yet
        killed = kills.all_kills(folder / "kills", given.kills, given.s3, given.commands)
        found = faults(folder, Stores(folder), given.faults)
    text = damage_page.page(found, killed)
    print(text)
    for tally in (*found.values(), *killed.values()):
        for line in tally.told:
            print(line)
    if given.page:
        given.page.write_text(text)


if __name__ == "__main__":
    main()
