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
and in one that was killed half-way. Then `posttrace verify` looks at it, every group is opened and every array read,
`posttrace verify --repair` mends it, and the job runs again. Counted are trials in which

- *lost*: a finished unit that the fault did not touch was no longer done after the repair,
- *wrong*: a value of a finished unit, or a label, was read that is not true, without an error,
- *undetected*: `verify` named nothing,
- *not healed*: after repair and rerun the store was not complete, not free of faults, or not bit for bit as before.

**A kill** is a SIGKILL at a random moment between start and end of a run; the store is verified and read, at times
mended, and the run goes on until it is complete. *Undetected* means here that `verify` or a reader complained, though a
kill must leave nothing to complain about.

| | trials | {outcomes} |
|---|---|{rule}|
| {faults} | {fault_counts} |
{kills}

## Faults, by file

Trials of each kind; in brackets how many of them cost something. "–" is a change that would have changed nothing (one
file of its kind, the same bytes in the other store).

| file | {heads} | all |
|---|{columns}---|
{rows}

A file "from a twin" is that of the same job on another machine, with other values; its mark of completeness says the
same, and is left out. A twin's marker beside our data cannot be told from our marker beside a twin's data: that unit
is done again. Notes ({harmless}) and chunks that a killed run left hold neither finished data nor
what is done: damage to them need not be named, only do no harm.

## What stands behind it

- Every chunk is written whole, decodes only if its checksum fits, and its size and the hash of its values are in the
  marker of its unit. `figures`, `report` and `open_group` look for every chunk of the finished units of a group, and
  at its size (one listing), compare the metadata and every coordinate with their hashes, and units that are read as a
  whole with theirs. `verify` reads everything.
- The record, the list of finished units and all metadata and coordinates have a spare each. A lost marker is made
  from the data.
- A note stands beside a unit from before its data change until it is marked. Data without a marker and without a note
  are a lost marker; a marker with a note is compared with its data by `finalise`, `verify` and every reader.
- `forget` deletes the data before the marker.

Two files that are damaged at once can cost more: a chunk and all markers, or the record and its spare.
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
