"""The table of docs/damage.md, from what was counted."""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.stores.faults import FAULTS, HARMLESS, OUTCOMES, Tally

TEXT = """\
# What damage costs

This page is written by

```
{command}
```

with fixed seeds. `tests/stores/test_faults.py` does a few dozen of each.

**A fault** changes one file of a store, or swaps two, in each way below and in each kind of file, in a finished store
and in one that was killed half-way. Then `posttrace verify` checks it, every group is opened and every array read,
`posttrace verify --repair` repairs it, and the job runs again. The table counts trials in which

- *lost*: a finished unit that the fault did not touch was no longer done after the repair,
- *wrong*: a wrong value of a finished unit, or a wrong label, was read without an error,
- *undetected*: `verify` reported nothing,
- *not healed*: after repair and rerun the store was not complete, not free of faults, or not bit for bit as before.

**A kill** is a SIGKILL at a random moment of a run; the store is verified and read, sometimes repaired, and the run is
resumed until it is complete. Here *undetected* means that `verify` or a reader complained, although a kill must leave
nothing to complain about.

| | trials | {outcomes} |
|---|---|{rule}|
| {faults} | {fault_counts} |
{kills}

## Faults, by file

Trials of each kind; in brackets, how many of them had a cost. "–" marks changes without effect (a single file of its
kind, or the same bytes in the other store).

| file | {heads} | all |
|---|{columns}---|
{rows}

A file "from a twin" comes from the same job on another machine, with other values; its mark of completeness is
identical and left out. A twin's marker on our data cannot be told from our marker on a twin's data, so that unit is
recomputed. Notes ({harmless}) and chunks left by a killed run contain neither finished data nor progress: damage to
them need not be reported, only do no harm.

## How it works

- Every chunk is written whole and decodes only if its checksum matches; its size and the hash of its values are in the
  marker of its unit. `figures`, `report` and `open_group` check the existence and size of every chunk of a group's
  finished units (one listing), and compare the metadata, every coordinate, and units read as a whole with their hashes.
  `verify` reads everything.
- The record, the list of finished units, and all metadata and coordinates have a spare each. A lost marker is rebuilt
  from the data.
- A note exists from before a unit's data changes until the unit is marked. Data with neither marker nor note means a
  lost marker; a marked unit with a note is compared with its data by `finalise`, `verify` and every reader.
- `forget` deletes the data before the marker.

Two files damaged at once can cost more: a chunk and all markers, or the record and its spare.
"""


def page(found: Mapping[tuple[str, str], Tally], killed: Mapping[str, Tally]) -> str:
    """The page, Markdown."""
    kinds = sorted({kind for kind, _ in found})
    rows = []
    for kind in kinds:
        cells = [_cell(found.get((kind, fault))) for fault in FAULTS]
        total = sum(tally.trials for (one, _), tally in found.items() if one == kind)
        rows.append(f"| {kind} | {' | '.join(cells)} | {total} |")
    options = {"a run into a folder": "kills", "a run into S3": "s3", "`posttrace run`": "commands"}
    given = [f"--{options[what]} {tally.trials}" for what, tally in killed.items()]
    trials = sum(tally.trials for tally in found.values())
    return TEXT.format(
        command=" ".join(
            ["python -m tests.support.stores.faults", f"--faults {trials}", *given, "--page docs/damage.md"]
        ),
        outcomes=" | ".join(OUTCOMES),
        rule="|".join("---" for _ in OUTCOMES),
        faults="single faults",
        fault_counts=_counts(list(found.values())),
        kills="\n".join(f"| kills of {what} | {_counts([tally])} |" for what, tally in killed.items()),
        heads=" | ".join(FAULTS),
        columns="---|" * len(FAULTS),
        rows="\n".join(rows),
        harmless=", ".join(HARMLESS),
    )


def _cell(tally: Tally | None) -> str:
    if tally is None:
        return "–"
    bad = len(tally.told)
    return f"{tally.trials} ({bad})" if bad else str(tally.trials)


def _counts(tallies: list[Tally]) -> str:
    bad = [sum(tally.bad[outcome] for tally in tallies) for outcome in OUTCOMES]
    return " | ".join(map(str, [sum(tally.trials for tally in tallies), *bad]))
