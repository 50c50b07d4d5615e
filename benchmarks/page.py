"""Write docs/performance.md from benchmarks/results/*.json.

python -m benchmarks.page
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import jinja2

from benchmarks.peers import ROOT

TEMPLATE = Path(__file__).with_name("performance.md.jinja")
VARIED = {
    "pairs": "pairs",
    "layers": "layers",
    "statement": "statement tokens",
    "prefix": "prefix tokens",
    "hidden": "hidden size",
}


def page(folder: Path) -> str:
    """Return the page made from the results in a folder; missing kinds of run are marked as not measured.

    Examples
    --------
    >>> "Not measured yet" in page(Path("nowhere"))
    True
    """
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    kinds = {
        kind: [run for run in runs if run["benchmark"] == name]
        for kind, name in [
            ("grids", "patch grid"),
            ("growths", "growth"),
            ("overheads", "overhead"),
            ("generations", "generation"),
            ("memories", "weights memory"),
            ("stage_memories", "stages memory"),
            ("readings", "read"),
            ("devices", "device"),
            ("probes", "probes"),
            ("precisions", "precision"),
            ("real_sizes", "real size"),
            ("differences", "difference"),
        ]
    }
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= dict(
        figures=figures,
        spread=spread,
        conditions=conditions,
        sweep=sweep,
        task=task,
        reading=reading,
        mib=mib,
    )
    for run in kinds["devices"]:
        run["parts"] = {part["name"]: part for part in run["records"]}
    return environment.from_string(TEMPLATE.read_text()).render(**kinds)


def figures(value: float | None, digits: int = 3) -> str:
    """Format a number with significant digits.

    Examples
    --------
    >>> figures(0.012345), figures(123.4), figures(None)
    ('0.0123', '123', '-')
    """
    if value is None:
        return "-"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, digits - len(str(int(abs(value)))) + (abs(value) < 1))
    while abs(value) < 10 ** (digits - 1 - decimals) and decimals < digits + 2 and value:
        decimals += 1
    return f"{value:.{decimals}f}"


def mib(n_bytes: int) -> str:
    """Format bytes as MiB.

    Examples
    --------
    >>> mib(3 * 2**20)
    '3'
    """
    return f"{n_bytes / 2**20:.0f}"


def spread(each: list[float]) -> str:
    """Format the interquartile range of the repeats as a percentage of the median."""
    if len(each) < 4:
        return f"{100 * (max(each) - min(each)) / statistics.median(each):.0f} % (all)"
    low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    return f"{100 * (high - low) / statistics.median(each):.0f} %"


def task(shape: dict) -> str:
    """Describe the sizes in words."""
    return (
        f"{shape['layers']} layers x hidden {shape['hidden']} ({shape['heads']} heads, {shape['kv_heads']} for keys; "
        f"MLP {shape['intermediate']}; vocabulary {shape['vocab']}), {shape['prefix']} prefix and {shape['statement']} "
        f"statement tokens, first difference at statement token {shape['first_difference']}, {shape['pairs']} pairs"
    )


def conditions(run: dict) -> str:
    """Describe machine, versions, date and load of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    load = " to ".join(f"{value:.1f}" for value in run["load_average"])
    shared = ""
    if max(run["load_average"]) > run["threads"] + 0.5:
        shared = (
            ". Other work ran on the same cores: seconds are higher than on an idle machine; ratios are taken within "
            "rounds, so all methods were affected alike"
        )
    changed = " (changed)" if run["dirty"] else ""
    waiting = run.get("waiting_threads", "passive")
    return (
        f"{run['date'][:10]}, commit {run['commit']}{changed}; {run['device_name']}, {run['threads']} threads "
        f"({waiting} waiting) on {run['cores']} cores, {run['dtype']}; Python {run['python']}, {versions}; "
        f"{run['repeats']} rounds; load average {load}{shared}"
    )


def sweep(run: dict) -> list[dict]:
    """Return the rows of the growth table."""
    rows = []
    for row in run["records"]:
        if row["method"] == "posttrace" and row["available"]:
            rows.append(row | dict(words=VARIED[row["varied"]]))
    return rows


def reading(run: dict) -> dict:
    """Return the rows that the text about a patch-grid run mentions."""
    rows = [row for row in run["records"] if row["available"]]
    ours = next((row for row in rows if row["name"] == "posttrace"), None)
    others = [row for row in rows if not row["method"].startswith("posttrace")]
    errors = [row["max_abs_diff"] for row in rows if row not in others]
    return dict(
        ours=ours,
        fastest=min(others, key=lambda row: row["seconds"], default=None),
        missing=[row for row in run["records"] if not row["available"]],
        largest=max(errors, default=None),
    )


def main() -> None:
    target = ROOT / "docs" / "performance.md"
    target.write_text(page(ROOT / "benchmarks" / "results"))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
