"""Timings of posttrace against other tools and against the minimal arithmetic of the task.

    python -m benchmarks.peers install         install the other tools, each in its own environment
    python -m benchmarks.patch_grid            the patch grid: every method side by side
    python -m benchmarks.patch_grid --growth   how its cost grows with pairs, layers, tokens, prefix, hidden size
    python -m benchmarks.overhead              an empty tracing context against the bare model
    python -m benchmarks.read                  activations read into a store, against bare forward passes
    python -m benchmarks.page                  write docs/performance.md from benchmarks/results/*.json

`shapes` defines the task, `floor` counts its arithmetic, `methods/` has one module per tool, `worker` runs one of them
in its own process, `rounds` alternates between the workers, `records` writes the JSON.
"""

import os

# Set before torch is imported: waiting threads release their core to other processes. On an idle machine this slows
# down many small operations; OMP_WAIT_POLICY=ACTIVE in the environment shows by how much.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
