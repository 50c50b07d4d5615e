"""What the study `norms` stores."""

import numpy as np

from posttrace.pipeline.job import Job
from posttrace.stores import Array, Coord, Group
from tests.support.norms.pipeline.inputs import NormsSet


def norms_group(job: Job, name: str, one: NormsSet, n_layers: int) -> Group:
    """The group `norms/<set>`."""
    stages, n, unit = job.stage_names, len(one.statements), "length, model units"
    block = {"model": 1, "statement": job.statements_per_unit}
    return Group(
        path=f"norms/{name}",
        sizes={"model": len(stages), "statement": n, "layer": n_layers},
        arrays=(
            Array(
                "norm", ("model", "statement", "layer"), "float32", unit, "|resid_post|, last token", block
            ),
            Array("gap", ("model", "layer"), "float32", unit, "mean of true minus mean of false statements"),
        ),
        coords=(
            Coord("model", ("model",), list(stages), "stage"),
            Coord("layer", ("layer",), np.arange(n_layers), "block, from 0"),
            Coord("label", ("statement",), [s.label for s in one.statements], "whether it is true"),
        ),
        attrs={"study": "norms", "family": job.family.name, "set": name, "seed": job.seed},
    )
