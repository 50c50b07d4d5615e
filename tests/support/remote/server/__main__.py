"""Start the server: `python -I -m loopback_server CONFIG.json`; prints its port on one line when it listens.

CONFIG: `models` (hub id -> {"directory", "revision"}), `log` (file for JSON lines), `absent` (names that must not be
importable), and optionally `port`, `keys` (accepted API key -> its tags), `dtype` (which /status tells), `held` (in
which models really are, if another), `threads`, and `sandbox`: run requests with NDIF's own code, `autocast`: as on a
GPU, `meta`: runners have a model without weights.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys

from .execution import Models
from .faults import Faults
from .front import Front
from .jobs import Jobs
from .record import Record


def main(path: str) -> None:
    with open(path) as stream:
        config = json.load(stream)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(config.get("threads", 1))
    record = Record(config["log"], config["absent"])
    importable = [name for name in config["absent"] if importlib.util.find_spec(name) is not None]
    record.write(
        "start",
        pid=os.getpid(),
        prefix=sys.prefix,
        path=sys.path,
        importable=importable,
        versions={name: importlib.metadata.version(name) for name in ("nnsight", "torch", "transformers")},
    )
    if importable:
        sys.exit(f"the server can import {', '.join(importable)}, so it would prove nothing")
    faults = Faults()
    models = Models(
        config["models"],
        dtype=config.get("dtype", "float32"),
        held=config.get("held"),
        sandbox=config.get("sandbox"),
    )
    jobs = Jobs(models, faults, record)
    front = Front(jobs, faults, record, keys=config.get("keys", {}), port=config.get("port", 0))
    print(front.port, flush=True)
    models.prepare()
    front.join()


main(sys.argv[1])
