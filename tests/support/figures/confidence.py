"""Groups of the confidence study made by hand, with known answers."""

import numpy as np
import xarray as xr

from posttrace.figures.measures.entropy_neurons import candidates
from posttrace.figures.studies.confidence.data import read

STAGES = ("base", "instruct")
KINDS = ["candidates"] + ["candidate"] * 4 + ["random_set"] * 50 + ["random_neuron"] * 50


def neuron_dataset():
    """60 neurons; both stages have candidates 50-52, and one of their own each (53, 54)."""
    norm = np.linspace(1, 2, 60)
    logit_var = np.full((2, 60), 0.1) + np.linspace(0, 0.01, 60)
    for stage, own in enumerate((53, 54)):
        logit_var[stage, [50, 51, 52]] = 0.001, 0.002, 0.003
        logit_var[stage, own] = 0.004
    chosen = np.stack([candidates(norm, v, 0.25, 4) for v in logit_var]).astype("int32")
    return xr.Dataset(
        {
            "weight_norm": (("model", "neuron"), np.stack([norm, norm])),
            "logit_var": (("model", "neuron"), logit_var),
            "candidate": (("model", "rank"), chosen),
        },
        coords={"model": list(STAGES)},
        attrs={"study": "confidence", "part": "neurons", "family": "toy", "layer": 7, "top_share": 0.25},
    )


def make_neurons():
    return read(neuron_dataset())


def make_on_text():
    """Ablating the candidates adds 0.5 nats of entropy; every random set 0.1 times its number / 50."""
    rng = np.random.default_rng(0)
    plain = rng.uniform(1, 2, size=(2, 12)).astype("float32")
    held = np.broadcast_to(plain[:, None], (2, len(KINDS), 12)).copy()
    held[:, 0] += 0.5
    held[:, 5:55] += 0.1 * np.arange(50)[:, None] / 50
    ablated = np.full((2, len(KINDS), 4), -1, dtype="int32")
    ablated[:, 0], ablated[:, 5:55], ablated[:, 55:, 0] = [50, 51, 52, 53], [40, 41, 42, 43], 44
    dims = ("model", "ablation", "document")
    return read(
        xr.Dataset(
            {f"{what}_{how}": (dims, held) for what in ("entropy", "loss") for how in ("total", "direct")}
            | {what: (("model", "document"), plain) for what in ("entropy", "loss")}
            | {"n_tokens": (("model", "document"), np.full((2, 12), 30))}
            | {"ablated": (("model", "ablation", "member"), ablated)},
            coords={"model": list(STAGES), "kind": ("ablation", KINDS)},
            attrs={"study": "confidence", "part": "text", "family": "toy", "layer": 7, "text": "a file"},
        )
    )


def make_answers():
    """base says 0.8 and is right for 8 of 10; instruct says 0.99 of the same answers."""
    label = np.tile([True, False], 20)
    right = np.arange(40) % 10 < 8
    sign = np.where(right == label, 1.0, -1.0)
    logit = np.log([0.8 / 0.2, 0.99 / 0.01])[:, None] * sign
    return read(
        xr.Dataset(
            {
                "logit_diff": (("model", "statement"), logit.astype("float32")),
                "answer_mass": (("model", "statement"), np.full((2, 40), 0.9, dtype="float32")),
            },
            coords={"model": list(STAGES), "label": ("statement", label)},
            attrs={"study": "confidence", "part": "answers", "family": "toy", "set": "cities"},
        )
    )
