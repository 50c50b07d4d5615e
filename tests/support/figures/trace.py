"""Groups of a trace: what a prompt continues with."""

import numpy as np
import xarray as xr


def next_tokens():
    dims = ("model", "intervention", "prompt")
    return xr.Dataset(
        {
            "next_token": ((*dims, "rank"), np.full((1, 1, 1, 2), [" TRUE", " FALSE"], dtype=object)),
            "logprob": ((*dims, "rank"), np.log(np.full((1, 1, 1, 2), [0.9, 0.1]))),
            "entropy": (dims, np.full((1, 1, 1), 0.325)),
        },
        coords={"model": ["base"], "intervention": ["none"], "prompt_text": ("prompt", ["This is:"])},
    )


def continuations():
    return xr.Dataset(
        {"completion": (("model", "intervention", "prompt"), np.full((1, 1, 1), " TRUE", dtype=object))},
        coords={"model": ["base"], "intervention": ["none"], "prompt": [0], "prompt_text": ("prompt", ["This is:"])},
    )  # fmt: skip
