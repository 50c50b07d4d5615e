"""A store of the refusal study whose scores are known."""

import numpy as np

from posttrace.stores import Array, Coord, Group, Store, Unit

STAGES = ("base", "sft", "instruct")
N, LAYERS, POSITIONS, HIDDEN, VALIDATION = 12, 6, 3, 16, 8
NAMES = (*STAGES, "random-0", "random-1")
ANSWERS = ("refused", "phrase", "log_odds", "completion", "mean_nll", "repeated")


def dims_of(name):
    if name in ANSWERS:
        return ("direction", "target", "intervention", "prompt")
    return {
        "direction": ("model", "layer", "position", "hidden"),
        "class_distance": ("model", "layer", "position"),
        "bypass": ("model", "layer", "position", "validation_harmful"),
        "induce": ("model", "layer", "position", "validation_harmless"),
        "kl": ("model", "layer", "position", "validation_harmless"),
        "plain_harmful": ("model", "validation_harmful"),
        "plain_harmless": ("model", "validation_harmless"),
        "search_coefficient": ("model", "step"),
        "search_refused": ("model", "step", "validation_harmless"),
        "search_log_odds": ("model", "step", "validation_harmless"),
        "search_mean_nll": ("model", "step", "validation_harmless"),
    }.get(name, ("model",))


def block_of(name):
    return {d: 1 for d in dims_of(name)[:2]} if name in ANSWERS else {"model": 1}


def values(seed=0):
    """Ablation of post-trained directions stops refusals of those stages, base's does nothing, random ones neither."""
    rng = np.random.default_rng(seed)
    shape = (len(NAMES), len(STAGES), 3, 2 * N)
    harmful = np.arange(2 * N) < N
    refused = np.zeros(shape, bool)
    for t, target in enumerate(STAGES):
        if target == "base":
            continue
        refused[:, t] = harmful
        for d in (1, 2):
            refused[d, t, 1], refused[d, t, 2] = False, True
    refused[2, 2, 1, 0] = True  # one harmful prompt of 12 stays refused
    odds = np.where(refused, 3.0, -3.0) + rng.normal(scale=0.1, size=shape)
    odds[:, :, 0] = odds[:1, :, 0]
    vectors = rng.normal(size=(len(STAGES), LAYERS, POSITIONS, HIDDEN))
    vectors[2] = vectors[1]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[:, 0] = np.nan
    swept = (len(STAGES), LAYERS, POSITIONS, VALIDATION)
    text = np.where(refused, "I cannot | help_you.", "Sure.\nFirst do $x^2$ & 50 % of it").astype(object)
    return {
        "direction": vectors.astype("float32"),
        "class_distance": np.full(swept[:3], 2.0, "float32"),
        "bypass": np.where(np.arange(LAYERS)[:, None, None] == 0, np.nan, rng.normal(size=swept)).astype("float32"),
        "induce": rng.normal(size=swept).astype("float32"),
        "kl": rng.uniform(0, 0.2, size=swept).astype("float32"),
        "plain_harmful": rng.normal(size=swept[::3]).astype("float32"),
        "plain_harmless": rng.normal(size=swept[::3]).astype("float32"),
        "selected_layer": np.array([1, 4, 4]),
        "selected_position": np.array([-1, -2, -2]),
        "selected_qualifies": np.array([False, True, True]),
        "coefficient": np.array([2.0, 3.0, 2.0], "float32"),
        "refused": refused,
        "phrase": np.where(refused, "I cannot", "").astype(object),
        "log_odds": odds.astype("float32"),
        "completion": text,
        "mean_nll": rng.uniform(0.1, 0.3, size=shape).astype("float32"),
        "repeated": np.zeros(shape, "float32"),
        "search_coefficient": np.array([[1.0, 2.0, 3.0]] * 3, "float32"),
        "search_refused": rng.random((3, 3, VALIDATION)) < 0.5,
        "search_log_odds": rng.normal(size=(3, 3, VALIDATION)).astype("float32"),
        "search_mean_nll": rng.uniform(size=(3, 3, VALIDATION)).astype("float32"),
    }  # fmt: skip


def write(url, skip=lambda unit: False, search=True):
    given = {name: v for name, v in values().items() if search or not name.startswith("search_")}
    sizes = dict(
        model=3, target=3, direction=len(NAMES), intervention=3, prompt=2 * N, layer=LAYERS, position=POSITIONS,
        hidden=HIDDEN, validation_harmful=VALIDATION, validation_harmless=VALIDATION, step=3,
    )  # fmt: skip
    kinds = {"f": "float32", "b": "bool", "i": "int64", "O": "string"}
    arrays = tuple(
        Array(name, dims_of(name), kinds[v.dtype.kind], "a unit", name, block_of(name))
        for name, v in given.items()
    )  # fmt: skip
    coords = (
        Coord("model", ("model",), list(STAGES)),
        Coord("target", ("target",), list(STAGES)),
        Coord("direction_name", ("direction",), list(NAMES)),
        Coord("intervention", ("intervention",), ["none", "ablation", "addition"]),
        Coord("layer", ("layer",), list(range(LAYERS))),
        Coord("position", ("position",), list(range(-POSITIONS, 0))),
        Coord("position_token", ("model", "position"), [["<a>", ":", "\n"]] * 3),
        Coord("selected_by", ("model",), ["sweep", "sweep", "fixed"]),
        Coord("kind", ("prompt",), ["harmful"] * N + ["harmless"] * N),
        Coord("instruction", ("prompt",), [f"Do_it {i}" for i in range(2 * N)]),
    )
    attrs = dict(study="refusal", family="toy", seed=0, n_direction=[9, 9], n_validation=[VALIDATION] * 2,
                 n_test=[N, N], new_tokens=16, max_kl=0.1, max_depth=0.8)  # fmt: skip
    group = Group("refusal", sizes, arrays, coords, attrs)
    per_model = tuple(name for name in given if name not in ANSWERS)
    work = [Unit(f"refusal/directions/{m}", "refusal", {"model": (m, m + 1)}, per_model) for m in range(3)]
    work += [
        Unit(f"refusal/answers/{t}/{d}", "refusal", {"target": (t, t + 1), "direction": (d, d + 1)}, ANSWERS)
        for t in range(3)
        for d in range(len(NAMES))
    ]
    store = Store.create(
        str(url), [group], work, {"study": "refusal", "family": "toy"}, "0123", {"device": "cpu"}
    )
    for unit in work:
        if not skip(unit.id):
            window = {dim: slice(*ends) for dim, ends in unit.region.items()}
            store.write(
                unit,
                {n: given[n][tuple(window.get(d, slice(None)) for d in dims_of(n))] for n in unit.arrays},
            )
    if not store.pending():
        store.finalise()
    return str(url)
