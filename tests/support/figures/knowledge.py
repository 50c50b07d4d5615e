"""Knowledge groups as a run leaves them: datasets made by hand, with the pattern that patching really shows."""

import numpy as np
import xarray as xr

from posttrace.stores import Array, Coord, Group, Store, Unit

TEMPLATES = {
    "cities": "The city of [s1] [s2] [s3] is in [o1] . This statement is :",
    "neg_cities": "The city of [s1] [s2] [s3] is not in [o1] . This statement is :",
    "larger_than": "[s1] - [s2] is larger than [o1] - [o2] . This statement is :",
    "smaller_than": "[s1] - [s2] is smaller than [o1] - [o2] . This statement is :",
    "sp_en_trans": "The Spanish word ' [s1] [s2] ' means ' [o1] ' . This statement is :",
    "neg_sp_en_trans": (
        "The Spanish word ' [s1] [s2] [s3] [s4] ' does not mean ' to [o1] [o2] [o3] ' . This statement is :"
    ),
}
STAGES = ("base", "sft", "instruct")
GRID = ("source", "target", "pair", "layer", "token")
UNIT = "logit difference, nats"
JOB = {"study": "knowledge", "family": "embedded", "sets": ["cities"], "seed": 0}
PROVENANCE = {
    "versions": {"numpy": "2.0", "torch": "2.11"},
    "device": "cpu",
    "git_commit": "c0ffee",
    "git_dirty": True,
}


def role_of(label, position, length):
    if label.startswith("[s"):
        return "subject"
    if label.startswith("[o"):
        return "object"
    return "last" if position == length - 1 else "other"


def shape_of_recovery(layers, roles):
    """Share recovered: subject early, object in the middle, last token late (dims layer x token)."""
    depth = np.linspace(0, 1, layers)[:, None]
    early = 1 / (1 + np.exp((depth - 0.45) * 18))
    late = 1 / (1 + np.exp((0.6 - depth) * 18))
    middle = 0.35 * np.exp(-(((depth - 0.5) / 0.18) ** 2))
    share = {"subject": 0.8 * early, "object": middle, "last": late, "other": 0.04 * middle}
    share["knowledge"] = share["subject"]
    return np.concatenate([share[role] for role in roles], axis=1)


def template_group(name="cities", stages=STAGES, pairs=24, layers=8, seed=0, finished=None):
    """One `knowledge/<set>` group; `finished` = {(source, target): pairs done}, everything when not given."""
    rng = np.random.default_rng(seed)
    labels = TEMPLATES[name].split()
    roles = [role_of(label, i, len(labels)) for i, label in enumerate(labels)]
    share = shape_of_recovery(layers, roles)
    clean = 4 + rng.normal(scale=1.0, size=pairs) + np.arange(len(stages))[:, None] * 0.8
    corrupt = -3 + rng.normal(scale=1.0, size=pairs) - np.arange(len(stages))[:, None] * 0.6
    shape = (len(stages), len(stages), pairs, layers, len(labels))
    values = np.empty(shape, dtype="float32")
    for s in range(len(stages)):
        for t in range(len(stages)):
            worth = (1 - 0.12 * max(s - t, 0)) * share + rng.normal(scale=0.02, size=share.shape)
            noise = rng.normal(scale=0.3, size=shape[2:])
            gap = (clean[s] - corrupt[t])[:, None, None]
            values[s, t] = corrupt[t][:, None, None] + worth * gap + noise
    dataset = xr.Dataset(
        {
            "logit_diff": (("source", "target", "pair", "layer", "token"), values),
            "logit_diff_clean": (("source", "pair"), clean.astype("float32")),
            "logit_diff_corrupt": (("target", "pair"), corrupt.astype("float32")),
        },
        coords={
            "source": list(stages),
            "target": list(stages),
            "layer": np.arange(layers),
            "token": np.arange(len(labels)),
            "token_label": ("token", labels),
            "token_role": ("token", roles),
            "n_tokens": ("pair", np.full(pairs, len(labels))),
        },
        attrs=group_attrs(name, pairs, "template"),
    )
    if finished is not None:
        for s, source in enumerate(stages):
            for t, target in enumerate(stages):
                values[s, t, finished.get((source, target), 0) :] = np.nan
    return dataset


def free_group(stages=STAGES, pairs=12, layers=8, longest=19, seed=1):
    """`knowledge/tulu_extracted`: pairs of different length, padded with NaN and with empty roles."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(9, longest + 1, size=pairs)
    lengths[0] = longest
    values = np.full((len(stages), len(stages), pairs, layers, longest), np.nan, dtype="float32")
    roles = np.full((pairs, longest), "", dtype=object)
    for pair, length in enumerate(lengths):
        roles[pair, :length] = "other"
        roles[pair, length - 1] = "last"
        roles[pair, 2 : 3 + pair % 3] = "knowledge"
        share = shape_of_recovery(layers, roles[pair, :length])
        values[:, :, pair, :, :length] = (
            -3 + 7 * share + rng.normal(scale=0.2, size=(len(stages), len(stages), 1, 1))
        )
        values[:, :, pair, :, :length] += rng.normal(scale=0.1, size=values[:, :, pair, :, :length].shape)
    ends = np.stack([np.full((len(stages), pairs), 4.0), np.full((len(stages), pairs), -3.0)]).astype(
        "float32"
    )
    return xr.Dataset(
        {
            "logit_diff": (("source", "target", "pair", "layer", "token"), values),
            "logit_diff_clean": (("source", "pair"), ends[0]),
            "logit_diff_corrupt": (("target", "pair"), ends[1]),
        },
        coords={
            "source": list(stages),
            "target": list(stages),
            "layer": np.arange(layers),
            "token": np.arange(longest),
            "token_label": ("token", [str(i) for i in range(longest)]),
            "token_role": ("token", ["other"] * longest),
            "token_role_of_pair": (("pair", "token"), roles),
            "n_tokens": ("pair", lengths),
        },
        attrs=group_attrs("tulu_extracted", pairs, "free"),
    )


def estimated(dataset, exact=(0, 3, 4), seed=5):
    """The group as attribution patching leaves it: estimates of every pair, exact values of the pairs `exact` only."""
    rng = np.random.default_rng(seed)
    values = dataset["logit_diff"]
    corrupt = dataset["logit_diff_corrupt"]
    change = values - corrupt
    noise = xr.DataArray(rng.normal(scale=0.4, size=values.shape), dims=values.dims)
    # A slope misses more the earlier the layer.
    worth = 1 - 0.5 * xr.DataArray(np.linspace(1, 0, dataset.sizes["layer"]), dims="layer")
    marked = np.isin(np.arange(dataset.sizes["pair"]), exact)
    estimate = (corrupt + worth * change + noise).transpose(*GRID).astype("float32")
    pairs = [f"{kind} statement {i}" for kind in ("true", "false") for i in range(dataset.sizes["pair"])]
    half = len(pairs) // 2
    return dataset.assign(
        logit_diff_attribution=estimate, logit_diff=values.where(xr.DataArray(marked, dims="pair"))
    ).assign_coords(
        exact=("pair", marked),
        pair=np.arange(half),
        clean_statement=("pair", pairs[:half]),
        corrupt_statement=("pair", pairs[half:]),
    ).assign_attrs(method="attribution")  # fmt: skip


def group_attrs(name, pairs, alignment):
    return {
        "study": "knowledge",
        "set": name,
        "site": "resid_post",
        "family": "embedded",
        "alignment": alignment,
        "answer_tokens": [" TRUE", " FALSE"],
        "seed": 0,
        "n_pairs": pairs,
        "n_pairs_available": pairs + 5,
    }


def write_store(url, datasets, skip=lambda unit_id: False):
    """Write a real store as a run does, unit by unit; units for which `skip(id)` holds stay undone."""
    groups, work = [], []
    for dataset in datasets:
        path = f"knowledge/{dataset.attrs['set']}"
        pairs, block = dataset.sizes["pair"], 8
        patched = tuple(name for name in ("logit_diff", "logit_diff_attribution") if name in dataset)
        groups.append(
            Group(
                path=path,
                sizes=dict(dataset.sizes),
                arrays=(
                    *(
                        Array(
                            name, dataset[name].dims, "float32", UNIT, "patched", {"target": 1, "pair": block}
                        )
                        for name in patched
                    ),
                    Array("logit_diff_clean", ("source", "pair"), "float32", UNIT, "clean run"),
                    Array("logit_diff_corrupt", ("target", "pair"), "float32", UNIT, "corrupt run"),
                ),
                coords=tuple(Coord(name, c.dims, c.values, name) for name, c in dataset.coords.items()),
                attrs=dict(dataset.attrs),
            )
        )
        work.append(
            (Unit(f"{path}/ends/0000", path, {}, ("logit_diff_clean", "logit_diff_corrupt")), dataset)
        )
        for t, target in enumerate(dataset["target"].values):
            for start in range(0, pairs, block):
                region = {"target": (t, t + 1), "pair": (start, min(start + block, pairs))}
                work.append((Unit(f"{path}/grid/{target}/{start:04}", path, region, patched), dataset))
    store = Store.create(url, groups, [unit for unit, _ in work], JOB, "0123abcd", PROVENANCE)
    for unit, dataset in work:
        if skip(unit.id):
            continue
        window = {dim: slice(*ends) for dim, ends in unit.region.items()}
        region = dataset.isel(window)
        store.write(unit, {name: region[name].values for name in unit.arrays})
    if len(store.done()) == len(work):
        store.finalise()
    return str(url)


def by_head(pairs=6, layers=4, n=3, change=1.0, at=(2, 1)):
    """Nothing has an effect but one head at the last token, and that exactly `change` nats."""
    whole = template_group(stages=("base", "instruct"), pairs=pairs, layers=layers)
    unpatched = whole["logit_diff_corrupt"]
    values = (unpatched + 0 * whole["logit_diff"]).expand_dims(head=n).copy()
    values.loc[dict(layer=at[0], head=at[1], token=whole.sizes["token"] - 1)] += change
    values = values.transpose("source", "target", "pair", "layer", "head", "token").astype("float32")
    dataset = whole.assign(logit_diff=values).assign_coords(head=np.arange(n))
    return dataset.assign_attrs(site="z")


def write_dataset(url, path, dataset):
    """Write a group as one unit."""
    kinds = {"f": "float32", "i": "int32", "b": "bool", "O": "string", "U": "string"}
    # xarray lists an array that is named like a dimension among the coordinates
    labels = {name: c for name, c in dataset.coords.items() if name not in dataset.sizes or c.dims == (name,)}
    values = {name: v for name, v in dataset.variables.items() if name not in labels}
    arrays = tuple(Array(name, v.dims, kinds[v.dtype.kind], "", name) for name, v in values.items())
    coords = tuple(Coord(name, c.dims, c.values, name) for name, c in labels.items())
    group = Group(path, dict(dataset.sizes), arrays, coords, dict(dataset.attrs))
    unit = Unit(f"{path}/all", path, {}, tuple(values))
    store = Store.create(url, [group], [unit], JOB, "0123abcd", PROVENANCE)
    types = {array.name: object if array.dtype == "string" else array.dtype for array in arrays}
    store.write(unit, {name: values[name].values.astype(dtype) for name, dtype in types.items()})
    store.finalise()
