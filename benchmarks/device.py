"""Everything that needs a GPU, in one command of at most eight minutes on a bare machine.

    python -m benchmarks.device --wheels wheels/           install missing packages from a folder of wheels
    python -m benchmarks.device --device cpu --model tiny  try the script on a CPU with small shapes
    python -m benchmarks.device --only grid --only read    some parts only

    grid        the patch grid at the 8B shape (random weights made on the device, bfloat16), the paper's loop and plain
                hooks on a sample of its cells, and the spot check by whole passes that every run makes
    read        activations read and stored, against bare forward passes
    generation  one direction ablated at every layer, against `generate` with hooks
    overhead    an empty tracing context
    halving     memory limited until the grid has to run in halves: the same numbers
    analysis    one fit of each truthfulness probe at hidden size 4096 (scikit-learn, on the CPU)
    trained     the five studies on the embedded family, float32 and bfloat16 on the device, against float32 on the CPU

A failing part is recorded with its error, and the others continue. The JSON is written after every part to
benchmarks/results/device-NAME.json; `python -m benchmarks.page` makes docs/performance.md from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

BARS = {
    "grid_over_paper_loop": ("at least", 100.0),
    "grid_over_floor": ("at most", 2.0),
    "read_throughput": ("at least", 0.85),
    "generation_over_hooks": ("at least", 0.9),
    "bfloat16_difference": ("at most", 0.1),
}
"""Requirements of a run: name -> bound. Differences in nats."""


def main() -> None:
    """Install the wheels, if any, then measure in a process that can import them."""
    arguments = sys.argv[1:]
    if "--wheels" not in arguments:
        measure_here(arguments)
        return
    at = arguments.index("--wheels")
    wheels = sorted(map(str, Path(arguments[at + 1]).glob("*.whl")))
    with tempfile.TemporaryDirectory() as site:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--no-cache-dir", "--target", site, *wheels], check=True)
        path = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "benchmarks.device", *arguments[:at], *arguments[at + 2 :]]
        sys.exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)


def measure_here(arguments: list[str]) -> None:
    """Parse the options and measure; packages that a bare machine may lack are imported only from here on."""
    import cyclopts

    app = cyclopts.App(help=__doc__, version_flags=[])
    app.default(measure)
    app(arguments)


def measure(
    *,
    device: str = "cuda",
    model: str = "llama-3.1-8b-shape",
    only: tuple[str, ...] = (),
    rounds: int = 3,
    commit: str | None = None,
    json: Path | None = None,
) -> None:
    """Run the parts, print their results, write JSON.

    Parameters
    ----------
    commit
        Recorded if the code is not in a git checkout.
    """
    from benchmarks import device_parts
    from benchmarks.records import device_name, header, write
    from benchmarks.shapes import SHAPES

    shape = SHAPES[model]
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    threads = os.cpu_count() or 1
    head = header(
        "device", device=device, dtype=dtype, threads=threads, quick=False, rounds=rounds, shape=shape
    )
    head["commit"] = head["commit"] or commit
    if json is None:
        name = device_name(device).lower().replace(" ", "-")
        json = Path(__file__).parent / "results" / f"device-{name}.json"
    bench = device_parts.Bench(shape, device, dtype, threads, rounds)
    parts: list[dict] = []
    for name, part in device_parts.PARTS.items():
        if only and name not in only:
            continue
        parts.append(_tried(name, lambda part=part: part(bench)))
        write(json, head | dict(bars=bars(parts)), parts)
    for name, bar in bars(parts).items():
        print(
            f"{name}: {bar['value']:.4g}, {bar['sense']} {bar['bound']:g}: {'met' if bar['met'] else 'MISSED'}"
        )
    print(f"written: {json}", file=sys.stderr)


def _tried(name: str, part: Callable[[], dict]) -> dict:
    begin = time.perf_counter()
    try:
        found = part()
    except Exception as error:  # the other parts are still worth having
        traceback.print_exc()
        found = dict(error=f"{type(error).__name__}: {error}"[:500])
    found = dict(name=name, part_seconds=round(time.perf_counter() - begin, 1), **found)
    for key, value in found.items():
        if not isinstance(value, list | dict):
            print(f"{name}: {key} = {value:.5g}" if isinstance(value, float) else f"{name}: {key} = {value}")
    print(flush=True)
    return found


def bars(parts: list[dict]) -> dict[str, dict]:
    """Return the bars that the parts measured: value, bound, whether it is met.

    Examples
    --------
    >>> bars([{"name": "read", "read_throughput": 0.9}])["read_throughput"]["met"]
    True
    """
    values = {key: part[key] for part in parts for key in BARS if key in part}
    return {
        key: dict(
            value=value,
            sense=BARS[key][0],
            bound=BARS[key][1],
            met=value >= BARS[key][1] if BARS[key][0] == "at least" else value <= BARS[key][1],
        )
        for key, value in values.items()
    }


if __name__ == "__main__":
    main()
