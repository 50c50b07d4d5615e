"""Time of the truthfulness analysis at real size, against scikit-learn one fit at a time.

    python -m benchmarks.probes --sets 12 --statements 1250 --hidden 4096

One layer of one stage is measured: every set is left out in turn and every kind of probe is fitted. A job has as many
of these as it has layers and stages.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from posttrace.pipeline.studies.truthfulness.probes import fit, judged_true, layer_of

KINDS = ("mass_mean", "logistic", "ttpd")


def measure(sets: int, statements: int, hidden: int, naive: int = 0) -> dict:
    """Seconds of every kind of probe for all sets, and of scikit-learn for the first `naive` of the logistic ones."""
    rng = np.random.default_rng(0)
    truths = [rng.random(statements) < 0.5 for _ in range(sets)]
    along, turned = rng.standard_normal((2, hidden)) * 0.05
    values = []
    for k, truth in enumerate(truths):
        sign = np.where(truth, 1.0, -1.0)[:, None]
        h = sign * (along + (-1) ** k * turned) + rng.standard_normal((statements, hidden))
        values.append(torch.from_numpy((h + 3 * rng.standard_normal(hidden)).astype(np.float32)))
    layer = layer_of(values, truths, [bool(k % 2) for k in range(sets)])
    training = torch.arange(sets)[:, None] // 2 != torch.arange(sets)[None] // 2
    seconds, accuracy = {}, {}
    for kind in KINDS:
        begin = time.perf_counter()
        probes = fit(kind, layer, training)
        seconds[kind] = time.perf_counter() - begin
        centres = layer.centres(training)
        right = [judged_true(probes, layer, k, centres)[k].numpy() == truths[k] for k in range(sets)]
        accuracy[kind] = [float(one.mean()) for one in right]
    found = dict(
        sets=sets, statements=statements, hidden=hidden, seconds=seconds, threads=torch.get_num_threads()
    )
    if naive:
        found["scikit-learn"] = _one_by_one(layer, training, truths, accuracy["logistic"], naive)
    return found


def _one_by_one(layer, training, truths, accuracy, naive: int) -> dict:
    h, of_set = layer.centred.double().numpy(), layer.of_set.numpy()
    begin, differences = time.perf_counter(), []
    for k in range(naive):
        used = training[k].numpy()[of_set]
        scale = np.sqrt((h[used] ** 2).mean())
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(h[used] / scale, layer.truth.numpy()[used])
        right = fitted.predict(h[of_set == k] / scale) == truths[k]
        differences.append(abs(float(right.mean()) - accuracy[k]))
    return dict(
        fits=naive,
        seconds_of_a_fit=(time.perf_counter() - begin) / naive,
        largest_difference_of_accuracy=max(differences),
    )


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=12)
    parser.add_argument("--statements", type=int, default=1250)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--naive", type=int, default=1, help="logistic fits of scikit-learn to time")
    arguments = parser.parse_args()
    print(json.dumps(measure(**vars(arguments)), indent=1))


if __name__ == "__main__":
    main()
