"""What a second worker brings: the same job by one worker on one core and by two on two.

    python -m benchmarks.workers                       to benchmarks/results/
    python -m benchmarks.workers --quick --json quick.json

Workers have one thread each and keep to a core of their own. Both crews have done a small job before the first round.
Each run of a round plans the job, opens the models and writes a new store. Turns alternate, and the ratio is the median
over rounds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import cyclopts

from benchmarks.records import header, keep

app = cyclopts.App(help=__doc__, version_flags=[])


@app.default
def main(
    *, quick: bool = False, json: Path | None = None, pairs: int | None = None, rounds: int | None = None
) -> None:
    """Measure, print, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given)."""
    pairs, rounds = pairs or (4 if quick else 32), rounds or (1 if quick else 2)
    options = dict(device="cpu", dtype="float32", threads=1)
    head = header("workers", quick=quick, rounds=rounds, **options)
    records = compare(pairs, rounds)
    head |= dict(load_average=[*head["load_average"], os.getloadavg()[0]], pairs=pairs)
    for row in records:
        print(f"{row['name']:<10}{row['seconds']:8.1f} s, {row['speedup']:.2f} times as fast as one")
    keep(json, "workers-cpu", quick, head, records)


def compare(pairs: int, rounds: int) -> list[dict]:
    """Return a record for one worker and one for two, with seconds per run of a job of the embedded family."""
    from posttrace.pipeline.executors.dask import Workers
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job

    def job(pairs):
        changes = ["sets=[cities]", "pairs_per_unit=4", "dtype=float32", "execution.device=cpu"]
        return load_job("knowledge", [*changes, f"max_pairs={pairs}"])

    seconds: dict[int, list[float]] = {1: [], 2: []}
    values = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        crews = {n: Workers(scheduler=_crew(n, job(pairs), stack)) for n in seconds}
        for n, crew in crews.items():
            run_job(job(4), f"{folder}/{n}", quiet=True, workers=crew)
        for turn in range(rounds):
            for n in (1, 2) if turn % 2 else (2, 1):
                begin = time.perf_counter()
                store = run_job(job(pairs), f"{folder}/{turn}-{n}", quiet=True, workers=crews[n])
                seconds[n].append(time.perf_counter() - begin)
                values.append({unit: one["arrays"] for unit, one in store.progress.markers().items()})
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    same = all(one == values[0] for one in values)
    return [
        dict(
            name=f"{n} worker{'s' * (n > 1)}",
            method="posttrace",
            device="cpu",
            units=len(values[0]),
            seconds=statistics.median(each),
            seconds_each=each,
            speedup=1.0 if n == 1 else statistics.median(ratios),
            same_values=same,
        )
        for n, each in seconds.items()
    ]


def _crew(n: int, job, stack: ExitStack) -> str:
    """Start n workers, each on a core of its own as far as there are any; return their scheduler's address."""
    from posttrace.pipeline.executors.dask import Workers

    os.environ["OMP_NUM_THREADS"] = "1"
    client = Workers(number=n).client(job)
    stack.callback(client.cluster.close)
    stack.callback(client.close)
    client.wait_for_workers(n)
    cores = sorted(os.sched_getaffinity(0))
    for i, address in enumerate(client.nthreads()):
        client.run(os.sched_setaffinity, 0, {cores[i % len(cores)]}, workers=[address])
    return client.cluster.scheduler_address


if __name__ == "__main__":
    app()
