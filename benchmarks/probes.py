"""Time of the truthfulness analysis at real size, and of the same fits with scikit-learn, one at a time.

    python -m benchmarks.probes --sets 12 --statements 1250 --hidden 4096 --layers 3 --naive 2

Every set is left out in turn and every kind of probe is fitted, for some layers of one stage; a job has as many of
these as it has layers and stages, so its time is extrapolated. Activations are random, with a truth direction that
turns with the polarity of a set and is weak enough for probes to err.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import header, keep
from posttrace.pipeline.studies.truthfulness.probes import fit, judged_true, layer_of

KINDS = ("mass_mean", "logistic", "ttpd")
JOB = 32 * 3
"""Layers times stages of the job that is extrapolated to."""


def measure(sets: int, statements: int, hidden: int, layers: int, naive: int) -> list[dict]:
    """Measure both ways; returns a record for each.

    Examples
    --------
    >>> [record["name"] for record in measure(sets=4, statements=40, hidden=8, layers=1, naive=1)]
    ['together', 'one by one']
    """
    if naive:
        from tests.support import probes as one_by_one
    training = torch.arange(sets)[:, None] // 2 != torch.arange(sets)[None] // 2
    negated = [bool(k % 2) for k in range(sets)]
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
    differences: dict[str, list[float]] = {kind: [] for kind in KINDS}
    accuracy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(layers):
        values, truths = _activations(sets, statements, hidden, seed=number)
        layer = layer_of([torch.from_numpy(one) for one in values], truths, negated)
        centres = layer.centres(training)
        for kind in KINDS:
            begin = time.process_time()
            probes = fit(kind, layer, training)
            seconds[kind].append(time.process_time() - begin)
            for k in range(naive if number == 0 else 0):
                samples = [one_by_one.sample(*one) for one in zip(values, truths, negated, strict=True)]
                some = [one for one, used in zip(samples, training[k], strict=True) if used]
                begin = time.process_time()
                probe = one_by_one.fit(kind, some)
                alone[kind].append(time.process_time() - begin)
                expected = (probe.judges_true(samples[k], one_by_one.centre_of(some)) == truths[k]).mean()
                found = (judged_true(probes, layer, k, centres)[k].numpy() == truths[k]).mean()
                differences[kind].append(abs(float(expected - found)))
                accuracy[kind].append(float(expected))
    of_layer = sum(map(statistics.median, seconds.values()))
    size = dict(sets=sets, statements=statements, hidden=hidden)
    together = dict(
        name="together",
        **size,
        layers=layers,
        seconds={kind: statistics.median(each) for kind, each in seconds.items()},
        minutes_of_a_job=of_layer * JOB / 60,
    )
    if not naive:
        return [together]
    fits = {kind: statistics.mean(each) for kind, each in alone.items()}
    return [
        together,
        dict(
            name="one by one",
            **size,
            fits=naive,
            seconds={kind: sets * each for kind, each in fits.items()},
            minutes_of_a_job=sets * sum(fits.values()) * JOB / 60,
            accuracy={kind: statistics.mean(each) for kind, each in accuracy.items()},
            largest_difference_of_accuracy={kind: max(each) for kind, each in differences.items()},
        ),
    ]


def _activations(sets: int, statements: int, hidden: int, seed: int):
    rng = np.random.default_rng(seed)
    along, turned = rng.standard_normal((2, hidden)) * 1.2 / hidden**0.5
    values, truths = [], []
    for k in range(sets):
        truth = rng.random(statements) < 0.5
        sign = np.where(truth, 1.0, -1.0)[:, None]
        h = sign * (along + (-1) ** k * turned) + rng.standard_normal((statements, hidden))
        values.append((h + 3 * rng.standard_normal(hidden)).astype(np.float32))
        truths.append(truth)
    return values, truths


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=12)
    parser.add_argument("--statements", type=int, default=1250)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--naive", type=int, default=2, help="sets that scikit-learn fits probes without")
    parser.add_argument("--json", type=Path, help="where to write; benchmarks/results by default")
    arguments = vars(parser.parse_args())
    file = arguments.pop("json")
    head = header(
        "probes",
        device="cpu",
        dtype="float32",
        threads=torch.get_num_threads(),
        quick=False,
        rounds=arguments["layers"],
    )
    keep(file, "probes-cpu", False, head, measure(**arguments))


if __name__ == "__main__":
    main()
