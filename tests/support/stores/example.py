"""A small knowledge group, the way the pipeline declares it."""

from __future__ import annotations

import numpy as np

from posttrace.stores import Array, Coord, Group, Store, Unit

STAGES = ("base", "instruct")
PAIRS, LAYERS, TOKENS, HIDDEN, BLOCK = 7, 3, 4, 5, 4
JOB = {"study": "knowledge", "set": "cities", "patch": {"site": "resid_post", "layers": "all"}, "seed": 0}
PATH = "knowledge/cities"


def group(activation: str = "bfloat16") -> Group:
    grid = ("source", "target", "pair", "layer", "token")
    one = {"source": 1, "target": 1, "pair": BLOCK}
    return Group(
        PATH,
        {"source": 2, "target": 2, "pair": PAIRS, "layer": LAYERS, "token": TOKENS, "hidden": HIDDEN},
        (
            Array("logit_diff", grid, "float32", "logit difference, nats", "after patching", one),
            Array(
                "logit_diff_clean",
                ("source", "pair"),
                "float32",
                "logit difference, nats",
                "unpatched",
                {"source": 1, "pair": BLOCK},
            ),
            Array(
                "activation",
                ("source", "pair", "layer", "token", "hidden"),
                activation,
                "residual stream, model units",
                "clean run",
                {"source": 1, "pair": BLOCK},
                "activation",
            ),
        ),
        (
            Coord("source", ("source",), STAGES, "stage the activation comes from"),
            Coord("target", ("target",), STAGES, "stage it goes into"),
            Coord("layer", ("layer",), np.arange(LAYERS), "layer"),
            Coord("token", ("token",), np.arange(TOKENS), "position"),
            Coord("token_label", ("token",), ["The", "city", "of", "[s1]"], "token"),
            Coord("n_tokens", ("pair",), [4, 4, 3, 4, 2, 4, 4], "statement length, tokens"),
            Coord("clean_prompt", ("pair",), [f"Łódź is in Poland, {i}" for i in range(PAIRS)], "prompt"),
            Coord("token_role_of_pair", ("pair", "token"), [["last", None, "", "other"]] * PAIRS, "role"),
        ),
        {"study": "knowledge", "alignment": "template", "answer_tokens": [" TRUE", " FALSE"]},
    )


def units() -> list[Unit]:
    plan = []
    for start in range(0, PAIRS, BLOCK):
        pair = (start, min(start + BLOCK, PAIRS))
        for s, source in enumerate(STAGES):
            plan.append(
                Unit(
                    f"{PATH}/clean/{source}/{start:04}",
                    PATH,
                    {"source": (s, s + 1), "pair": pair},
                    ("logit_diff_clean", "activation"),
                )
            )
            for t, target in enumerate(STAGES):
                region = {"source": (s, s + 1), "target": (t, t + 1), "pair": pair}
                plan.append(Unit(f"{PATH}/grid/{source}-{target}/{start:04}", PATH, region, ("logit_diff",)))
    return plan


def values(store: Store, unit: Unit) -> dict[str, np.ndarray]:
    """Numbers that depend on the unit alone, some of them NaN."""
    spec = store.groups[unit.group]
    rng = np.random.default_rng([len(unit.id), *unit.id.encode()])
    out = {}
    for name in unit.arrays:
        shape = [w.stop - w.start for w in spec.window(name, unit.region, "test")]
        numbers = rng.normal(size=shape).astype("float32")
        if name == "logit_diff":
            numbers[..., -1] = np.nan
        if spec.array(name).dtype == "bfloat16":
            numbers = (numbers.view("uint32") >> 16).astype("uint16")
        out[name] = numbers
    return out


def make(url: str, **changes) -> Store:
    """Create (or resume) the example store."""
    given = {
        "groups": [group()],
        "units": units(),
        "job": JOB,
        "fingerprint": "f00d",
        "provenance": {"commit": "abc", "versions": {"zarr": "3"}},
        **changes,
    }
    return Store.create(url, **given)


def run(store: Store, limit: int | None = None) -> int:
    """Write what is pending; returns how many units that were."""
    pending = store.pending()[:limit]
    for unit in pending:
        store.write(unit, values(store, unit), record={"seconds": 0.5})
    return len(pending)


def digests(store: Store) -> dict:
    """Unit -> the digests of its arrays."""
    return {unit: marker["arrays"] for unit, marker in store.progress.markers().items()}


def contents(store: Store) -> dict[str, bytes]:
    """Every array of the store, as bytes."""
    return {
        f"{path}/{array.name}": store.read(path, array.name).tobytes()
        for path, spec in store.groups.items()
        for array in spec.arrays
    }
