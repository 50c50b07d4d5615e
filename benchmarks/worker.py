"""Run one method in its own process and environment, as requested on standard input.

Requests and replies are lines of JSON; `benchmarks.rounds.Worker` writes them:

    {"do": "load", "method": "raw hooks", "load": {...}, "threads": 2}
                                                   -> {"versions": {...}}
    {"do": "logits", "ids": [10, 11]}              -> {"logits": [...]}
    {"do": "prepare", "task": {...}}               -> {}
    {"do": "run", "cells": [[0, 0, 0]]}            -> {"values": [...], "seconds": 0.1, "cpu_seconds": 0.2}
    {"do": "rate"}                                 -> {"seconds": 6e10, "cpu_seconds": 3e10} multiply-adds per
    {"do": "count", "cells": [...]}                -> {"multiply_adds": 123}
    {"do": "memory"}                               -> {"peak_rss_mib": 400}

An error is a reply too: {"error": "ModuleNotFoundError: ..."}.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import traceback


class Runner:
    """The method that this process runs."""

    def load(self, method: str, load: dict, threads: int) -> dict:
        import torch

        torch.set_num_threads(threads)
        from benchmarks.methods import Load
        from benchmarks.methods import load as load_method

        self.device, self.dtype = load["device"], load["dtype"]
        self.method = load_method(method, Load(**load))
        return {"versions": _versions(sys.modules[type(self.method).__module__].PEER)}

    def logits(self, ids: list[int]) -> dict:
        return {"logits": self.method.logits(ids)}

    def prepare(self, task: dict) -> dict:
        from benchmarks.shapes import Task

        self.method.prepare(Task(**task))
        return {}

    def run(self, cells: list) -> dict:
        from benchmarks.floor import synchronize

        cells = [tuple(cell) for cell in cells]
        gc.collect()
        synchronize(self.device)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        values = self.method.run(cells)
        synchronize(self.device)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
        return {"values": values, "seconds": seconds, "cpu_seconds": cpu_seconds}

    def rate(self) -> dict:
        from benchmarks.floor import matmul_rate

        return matmul_rate(self.device, self.dtype)

    def count(self, cells: list) -> dict:
        """Return torch's count of multiply-adds in one run; None if its counter fails."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

        def attention(query, key, value, *_, **__):
            return sdpa_flop_count(query, key, value)

        # By default torch does not count its CPU attention.
        also = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
        try:
            with FlopCounterMode(display=False, custom_mapping=also) as counter:
                self.method.run([tuple(cell) for cell in cells])
        except Exception:
            traceback.print_exc()
            return {"multiply_adds": None}
        return {"multiply_adds": counter.get_total_flops() // 2}

    def memory(self) -> dict:
        found = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if self.device.startswith("cuda"):
            import torch

            found["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return found


def _versions(peer: str) -> dict:
    from importlib.metadata import version

    return {name: version(name) for name in dict.fromkeys(["torch", "transformers", peer])}


def main() -> None:
    # Libraries may print to standard output, so replies use a copy of it and prints go to standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner = Runner()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(runner, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
