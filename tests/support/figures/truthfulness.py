"""Groups of the truthfulness study whose accuracies and effects are known."""

import numpy as np
import xarray as xr

from posttrace.figures.studies.truthfulness.data import read

STAGES = ("base", "sft", "instruct")
SETS = {"cities": 20, "facts": 12}
PROBES = ("mass_mean", "ttpd")
LAYERS, HIDDEN, CONTROLS = 4, 6, 20


def names_of(stages):
    return ["none", *stages, *(f"random-{i}" for i in range(CONTROLS))]


def statements(name, stages=STAGES, read_all=True, coefficients=()):
    """A set whose accuracies, effects and positions are known.

    Probe k of source s on target t at layer l is right but for (s + t + k) statements, or at chance at layer 0. A
    stage's direction turns the answer half of the way to certainty, random ones up to two fifths.
    """
    n, rng = SETS[name], np.random.default_rng(len(name))
    truth = np.arange(n) % 2 == 0
    correct = np.ones((len(PROBES), len(stages), len(stages), n, LAYERS), dtype=bool)
    for k, s, t in np.ndindex(correct.shape[:3]):
        correct[k, s, t, : s + t + k] = False
    correct[..., 0] = np.arange(n) % 2
    before = np.where(truth, 0.8, -0.6)
    goal = np.where(truth, -1.0, 1.0)
    share = np.array([0.0, *[0.5] * len(stages), *np.linspace(0, 0.4, CONTROLS)])
    p_diff = before + share[:, None, None] * (goal - before) * np.ones((1, len(stages), 1))
    p_diff[..., :4] = np.nan
    activation = (
        rng.normal(size=(len(stages), n, LAYERS, HIDDEN)) + 10 * np.arange(len(stages))[:, None, None, None]
    )
    activation[:, :, 2, 0] += np.where(truth, 6.0, -6.0)
    if not read_all:
        activation[:, n // 2 :] = np.nan
        p_diff[:, -1] = np.nan
    variables = {
        "activation": (("model", "statement", "layer", "hidden"), activation),
        "correct": (("probe", "source", "target", "statement", "layer"), correct),
        "p_diff": (("direction", "target", "statement"), p_diff.astype("float32")),
        "completion": (
            ("shown", "target", "sample"),
            np.full((2, len(stages), 1), " TRUE\nThe city", dtype=object),
        ),
    }
    coords = {
        "model": list(stages),
        "source": list(stages),
        "target": list(stages),
        "probe": list(PROBES),
        "direction": names_of(stages),
        "layer": np.arange(LAYERS),
        "statement": np.arange(n),
        "shown": ["none", "base"],
        "label": ("statement", truth.astype(int)),
        "text": ("statement", [f"w{i} is $x_{i}$." for i in range(n)]),
        "example": ("statement", np.arange(n) < 4),
        "sample_statement": ("sample", [5]),
    }
    if coefficients:
        coords["coefficient"] = list(coefficients)
        swept = before + np.array(coefficients)[:, None, None, None] / 2 * (p_diff - before)
        variables["p_diff_coefficient"] = (("coefficient", "direction", "target", "statement"), swept)
    attrs = {"study": "truthfulness", "set": name, "family": "tiny", "coefficient": 1.0,
             "answer_tokens": [" TRUE", " FALSE"]}  # fmt: skip
    return read(xr.Dataset(variables, coords, attrs))


def summary(stages=STAGES, tested=tuple(SETS), swept=True, coefficients=()):
    s, h = len(stages), len(SETS)
    direction = np.zeros((s, h, LAYERS, HIDDEN), dtype="float32")
    direction[..., 0] = 2.0
    cosine = np.ones((s, s, h, LAYERS))
    cosine[0, 1:, :, 0] = cosine[1:, 0, :, 0] = 0.9
    accuracy = np.full((len(PROBES), s, s, h, LAYERS), 0.9)
    accuracy[:, :, :, [name not in tested for name in SETS]] = np.nan
    tried = np.tile([0.5, 0.4, 0.1, np.nan], (h, 1))
    variables = {
        "direction": (("model", "held_out", "layer", "hidden"), direction),
        "cosine": (("source", "target", "held_out", "layer"), cosine),
        "accuracy": (("probe", "source", "target", "held_out", "layer"), accuracy),
        "effect": (("direction", "target", "held_out"), np.zeros((len(names_of(stages)), s, h))),
        "sweep_accuracy": (("model", "held_out", "layer"), np.tile([0.5, 0.6, 0.95, 0.94], (s, h, 1))),
        "probe_layer": (("held_out",), np.full(h, 2)),
        "intervene_layer": (("held_out",), np.full(h, 0)),
    }
    if swept:
        variables["sweep_effect"] = (("held_out", "layer"), tried)
        variables["sweep_effect_random"] = (("held_out", "layer"), tried / 2)
        variables["sweep_effect_random_highest"] = (("held_out", "layer"), tried * 2)
    coords = {
        **{key: list(stages) for key in ("model", "source", "target")},
        "probe": list(PROBES),
        "direction_name": ("direction", names_of(stages)),
        "held_out": list(SETS),
        "layer": np.arange(LAYERS),
    }
    if coefficients:
        coords["coefficient"] = list(coefficients)
        shape = (len(coefficients), len(names_of(stages)), s, h)
        variables["effect_coefficient"] = (
            ("coefficient", "direction", "target", "held_out"),
            np.zeros(shape),
        )
    attrs = {
        "study": "truthfulness",
        "family": "tiny",
        "coefficient": 1.0,
        "layers_chosen": "on the training sets",
        "sweep_random_directions": 5,
    }
    return read(xr.Dataset(variables, coords, attrs))
