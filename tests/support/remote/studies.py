"""The built-in job of every study, cut down to a few items, on models that the loopback server holds."""

import json

import numpy as np

from posttrace.pipeline.embedded import CHECKPOINTS
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job

SMALL = {
    "knowledge": ["sets=[cities, tulu_extracted]", "max_pairs=3", "pairs_per_unit=2"],
    "truthfulness": [
        *("sets=[cities, inventors]", "max_statements=8", "sweep_statements=2", "random_directions=20"),
        *("intervene_layer=3", "probe_layer=4", "samples=1", "probes=[mass_mean]"),
    ],
    "refusal": [
        *("direction_prompts=8", "validation_prompts=4", "test_prompts=4", "coefficient_search=[1]"),
        *("random_directions=1", "new_tokens=4", "max_kl=100"),
    ],
    "confidence": [
        *("sets=[cities]", "max_statements=6", "text={documents: 4, tokens: 24}", "controls=50"),
    ],
    "difference": [
        *("texts=[{name: plain, documents: 4, tokens: 24}]", "samples=16"),
        "steering={documents: 1, layers: [3], random: 2, prompts: 1, new_tokens: 2}",
    ],
    "trace": [],
}  # fmt: skip


def overrides(study: str, backend: str, *more: str) -> list[str]:
    """The `--set` arguments of a small job of two stages, on a backend."""
    stages = {
        stage: {"model": str(CHECKPOINTS / stage), "remote_key": f"posttrace/embedded-{stage}"}
        for stage in ("base", "instruct")
    }
    family = json.dumps({"name": "embedded", "stages": stages})
    common = [f"family={family}", "dtype=float32", "execution.device=cpu", f"execution.backend={backend}"]
    quick = ["execution.remote.poll=0.02"] if backend == "remote" else []
    return [*common, *quick, *SMALL.get(study, []), *more]


def run(study, backend, store, *more):
    return run_job(load_job(study, overrides(study, backend, *more)), str(store), say=lambda line: None)


def assert_equal(store, expected):
    compared = 0
    for path, group in expected.groups.items():
        for array in group.arrays:
            value, wanted = (s.read(path, array.name) for s in (store, expected))
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(
                    value, wanted, rtol=1e-5, atol=1e-5, err_msg=f"{path}/{array.name}"
                )
                compared += np.isfinite(wanted).sum()
            else:
                np.testing.assert_array_equal(value, wanted, err_msg=f"{path}/{array.name}")
    assert compared, "nothing was compared"
    assert store.fingerprint == expected.fingerprint
