"""Put a patching grid that others published into a store.

python docs/examples/import_patching.py patching_results.json runs/published
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

from posttrace.stores import Array, Coord, Group, Store, Unit

LABELS = [
    "The",
    "city",
    "of",
    "[s1]",
    "[s2]",
    "[s3]",
    "is",
    "in",
    "[o1]",
    ".",
    "This",
    "statement",
    "is",
    ":",
]
ROLES = {"[s": "subject", "[o": "object", ":": "last"}
STAGE = "instruct"


def import_grid(file: str, url: str) -> Store:
    """Import a file of one model and one set: {"MODEL_SET": [{"true_prompt", "false_prompt", "logit_diffs"} ...]}."""
    content = Path(file).read_bytes()
    ((_, pairs),) = json.loads(content).items()
    values = np.array([pair["logit_diffs"] for pair in pairs], dtype="float32")  # pair, token, layer
    values = values[:, ::-1]  # the file has the last token first
    grid = values.transpose(0, 2, 1)[np.newaxis, np.newaxis]  # source, target, pair, layer, token
    # Patched after the last block at the last token, the corrupt run ends like the clean one; patched at the first
    # token, which both runs share, it stays as it is. So the two unpatched values need not be in the file.
    clean, corrupt = grid[:, 0, :, -1, -1], grid[0, :, :, 0, 0]

    nats = "logit difference, nats"
    arrays = {
        "logit_diff": (("source", "target", "pair", "layer", "token"), grid, "patched"),
        "logit_diff_clean": (("source", "pair"), clean, "clean (true) prompt, unpatched"),
        "logit_diff_corrupt": (("target", "pair"), corrupt, "corrupt (false) prompt, unpatched"),
    }
    coordinates = {
        "source": [STAGE],
        "target": [STAGE],
        "pair": np.arange(len(pairs)),
        "layer": np.arange(grid.shape[3]),
        "token": np.arange(len(LABELS)),
    }
    roles = [ROLES.get(label[:2], "other") for label in LABELS]
    group = Group(
        path="knowledge/cities",
        sizes={name: len(labels) for name, labels in coordinates.items()},
        arrays=tuple(Array(name, dims, "float32", nats, about) for name, (dims, _, about) in arrays.items()),
        coords=(
            *(Coord(name, (name,), labels) for name, labels in coordinates.items()),
            Coord("token_label", ("token",), LABELS),
            Coord("token_role", ("token",), roles),
            Coord("clean_prompt", ("pair",), [pair["true_prompt"] for pair in pairs]),
            Coord("corrupt_prompt", ("pair",), [pair["false_prompt"] for pair in pairs]),
        ),
        attrs={"study": "knowledge", "set": "cities", "family": "llama-3.1-8b", "site": "resid_post"},
    )
    unit = Unit("knowledge/cities/all", group.path, {}, tuple(arrays))
    job = {"imported": Path(file).name}
    store = Store.create(url, [group], [unit], job, sha256(content).hexdigest(), provenance={})
    with store.lease():
        store.write(unit, {name: array for name, (_, array, _) in arrays.items()})
    store.finalise()
    return store


if __name__ == "__main__":
    print(import_grid(*sys.argv[1:]))
