"""Compare the values of two stores of one job, which a refactoring must not change.

    python -m benchmarks.same_values runs/before runs/after
    python -m benchmarks.same_values runs/before runs/after --renamed old_name=new_name

Arrays are compared bit for bit (NaN equals NaN), as are text and coordinates. The exit status is 1 if anything differs
or is missing. Run both jobs on one thread (OMP_NUM_THREADS=1): with more, sums are computed in a different order.
"""

from __future__ import annotations

import sys

import cyclopts
import numpy as np

app = cyclopts.App(help=__doc__, version_flags=[])


@app.default
def main(before: str, after: str, /, *, renamed: tuple[str, ...] = ()) -> int:
    """Print every array that differs, then a count.

    Parameters
    ----------
    renamed
        OLD=NEW names of arrays, groups or coordinates.
    """
    names = dict(one.split("=") for one in renamed)
    differing = values = arrays = 0
    for path, name, one, other in pairs(before, after, names):
        arrays += 1
        values += one.size
        why = difference(one, other)
        if why:
            differing += 1
            print(f"{path}/{name}: {why}")
    print(f"{arrays} arrays and coordinates, {values:,} values; {differing} differ")
    return 1 if differing else 0


def pairs(before: str, after: str, names: dict[str, str]):
    """Yield (group, name, values before, values after or None) for every variable of every group of `before`."""
    from posttrace.stores import group_paths, open_group

    others = set(group_paths(after))
    for path in group_paths(before):
        there = "/".join(names.get(part, part) for part in path.split("/"))
        one = open_group(before, path)
        other = open_group(after, there) if there in others else {}
        for name, variable in one.variables.items():
            now = names.get(str(name), str(name))
            yield path, name, variable.values, other.variables[now].values if now in other else None


def difference(one: np.ndarray, other: np.ndarray | None) -> str | None:
    """Say how two arrays differ, or return None.

    Examples
    --------
    >>> difference(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    >>> difference(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    '1 of 2 values differ, by at most 0.5'
    """
    if other is None:
        return "missing"
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return f"{one.dtype} {one.shape} became {other.dtype} {other.shape}"
    same = one == other
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(other)
    if same.all():
        return None
    largest = f", by at most {np.nanmax(np.abs(one - other)):.3g}" if one.dtype.kind == "f" else ""
    return f"{(~same).sum()} of {one.size} values differ{largest}"


if __name__ == "__main__":
    sys.exit(app())
