"""The parts of `benchmarks.device`: each takes the bench and returns its measurements as plain data."""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import generation, overhead, read
from benchmarks.floor import matmul_rate, multiply_adds, synchronize
from benchmarks.methods import load as load_method
from benchmarks.methods.posttrace_grid import prompt
from benchmarks.patch_grid import some_cells, some_pairs
from benchmarks.shapes import FIRST_WORD, Shape, make_task, random_module, tokenizer

UNIT, LARGE_UNIT = 16, 64
"""Pairs in a unit of a job: the default, and a setting for large models (`pairs_per_unit`)."""


@dataclass
class Bench:
    """The device, and one random model that the parts share."""

    shape: Shape
    device: str
    dtype: str
    threads: int
    rounds: int

    @cached_property
    def weights(self):
        """The transformers model, made on the device."""
        torch.set_num_threads(self.threads)
        return random_module(self.shape, device=self.device, dtype=self.dtype)

    @property
    def load(self) -> Any:
        return _Loaded(asdict(self.shape), self)

    def seconds(self, run) -> float:
        """Return the seconds of one call, including the device's work."""
        gc.collect()
        synchronize(self.device)
        begin = time.perf_counter()
        run()
        synchronize(self.device)
        return time.perf_counter() - begin


@dataclass(frozen=True)
class _Loaded:
    """What a method loads: here, the shared model."""

    shape: dict
    bench: Bench

    def module(self):
        return self.bench.weights


def grid(bench: Bench) -> dict:
    """Measure the exact patch grid of all pairs in units of two sizes, the paper's loop, hooks and the floor."""
    from posttrace.tracers.engines.patching import patch_grid
    from posttrace.tracers.errors import TracerError
    from posttrace.tracers.oracles.patching import check_sample

    task = make_task(bench.shape)
    first = some_pairs(task, 1)
    cells = some_cells(first)
    names = ("paper loop", "raw hooks", "naive oracle", "posttrace")
    methods = {name: load_method(name, bench.load) for name in names}
    ours = methods["posttrace"]
    for name, method in methods.items():
        method.prepare(task if name == "posttrace" else first)
    prompts, source = ours.prompts, ours.source

    def units(size: int, n: int | None = None):
        for begin in range(0, len(prompts[:n]), size):
            some = slice(begin, begin + size)
            unchanged = [task.unchanged[some]]
            yield patch_grid(ours.model, prompts[some], source[:, some], unchanged=unchanged, **ours.options)

    def check():
        options = dict(share=0.01, rng=random.Random(0), **ours.options)
        try:
            return check_sample(ours.model, prompts[:UNIT], source[:, :UNIT], unit, **options)
        except TracerError as error:
            return str(error)

    (unit,) = units(UNIT, 1)  # warms up, too
    exact = methods["naive oracle"].run(cells)
    taken: dict[str, list[float]] = {
        name: [] for name in ("paper loop", "raw hooks", "units", "large units", "check")
    }
    size = 8192 if bench.device != "cpu" else 512
    rates = []
    for _ in range(bench.rounds):
        rates.append(matmul_rate(bench.device, bench.dtype, size=size)["seconds"])
        for name in ("paper loop", "raw hooks"):
            taken[name].append(bench.seconds(lambda name=name: methods[name].run(cells)))
        taken["units"].append(bench.seconds(lambda: list(units(UNIT))))
        taken["large units"].append(bench.seconds(lambda: list(units(LARGE_UNIT))))
        taken["check"].append(bench.seconds(check))
    checked = check()
    pairs, n_cells, floor = len(task.clean), bench.shape.cells_per_pair, multiply_adds(bench.shape)
    seconds = {name: statistics.median(each) for name, each in taken.items()}

    def over_floor(name):
        each = zip(taken[name], rates, strict=True)
        return statistics.median(one * rate / floor for one, rate in each)

    turns = zip(taken["paper loop"], taken["units"], strict=True)
    return dict(
        pairs=pairs,
        cells=pairs * n_cells,
        cells_sampled=len(cells),
        seconds=seconds["units"],
        seconds_in_large_units=seconds["large units"],
        seconds_of_a_cell_in_the_paper_loop=seconds["paper loop"] / len(cells),
        seconds_of_a_cell_with_hooks=seconds["raw hooks"] / len(cells),
        seconds_of_a_unit_check=seconds["check"],
        check_share_of_a_unit=seconds["check"] / (seconds["units"] * UNIT / pairs),
        check=checked if isinstance(checked, str) else f"{checked[0]} cells, {checked[1]:.4f} apart at most",
        grid_over_paper_loop=statistics.median((p / len(cells)) / (o / pairs / n_cells) for p, o in turns),
        grid_over_floor=over_floor("units"),
        large_units_over_floor=over_floor("large units"),
        matmul_multiply_adds_per_second=statistics.median(rates),
        rounding=_rounding(methods, first, unit, cells, exact),
        peak_device_mib=_peak(bench.device),
        seconds_each=taken,
    )


def _rounding(methods: dict, task, unit, cells, exact: list[float]) -> dict:
    """Compare the grid, and batched whole passes, with one whole pass per cell (nats)."""
    from posttrace.tracers.engines.patching import Place
    from posttrace.tracers.oracles.patching import naive_rows, patch

    oracle = methods["naive oracle"]
    prompts = [oracle.prompts[pair] for pair, _, _ in cells]
    edits = [
        patch(prompt, token, oracle.source[0, pair, layer, token], "resid_post", Place(layer))
        for prompt, (pair, layer, token) in zip(prompts, cells, strict=True)
    ]
    batch = naive_rows(oracle.model, prompts, edits, task.answers).tolist()
    fast = [float(unit.patched[0][cell]) for cell in cells]
    found: dict[str, Any] = dict(largest_value=max(map(abs, exact)), deviation=statistics.pstdev(exact))
    for name, values in (("grid", fast), ("batch of whole passes", batch)):
        apart = np.abs(np.array(values) - np.array(exact))
        found[name] = dict(
            median=float(np.median(apart)), high=float(np.quantile(apart, 0.95)), largest=float(apart.max())
        )
    return found


def reading(bench: Bench) -> dict:
    """Measure reading and storing activations of every block against bare forward passes of the same batches."""
    model = _wrapped(bench)
    rng = random.Random(0)
    prefix = [rng.randrange(FIRST_WORD, bench.shape.vocab) for _ in range(bench.shape.prefix)]
    cases = [
        (read.Case("few-shot prompts, statement tokens", 4, "statement", 16), bench.shape.statement, prefix),
        (read.Case("few-shot prompts, last token", 4, "last", 64), bench.shape.statement, prefix),
        (read.Case("bare statements, last token", 0, "last", 256), bench.shape.statement, []),
    ]
    records = []
    for case, n, before in cases:
        batches = 6
        prompts = [
            [
                prompt(
                    [*before, *(rng.randrange(FIRST_WORD, bench.shape.vocab) for _ in range(n))], len(before)
                )
                for _ in range(case.batch)
            ]
            for _ in range(batches)
        ]
        records.append(
            read.compare(
                model, case, batches=batches, rounds=bench.rounds, device=bench.device, prompts=prompts
            )
        )
    return dict(read_throughput=min(row["throughput"] for row in records), records=records)


def generating(bench: Bench) -> dict:
    """Measure steered generation against transformers' `generate` with hooks."""
    records = generation.compare(
        bench.shape.but(pairs=32),
        new_tokens=16,
        rounds=bench.rounds,
        device=bench.device,
        dtype=bench.dtype,
        threads=bench.threads,
        module=bench.weights,
    )
    ours = next(row for row in records if row["name"] == generation.POSTTRACE)
    return dict(
        generation_over_hooks=ours["ratio_to_hooks"],
        generation_over_needed_hooks=ours["ratio_to_needed_hooks"],
        same_tokens=ours["same_tokens"],
        tokens_per_second=ours["tokens_per_second"],
        records=records,
    )


def context(bench: Bench) -> dict:
    """Measure an empty tracing context."""
    records = overhead.compare(
        bench.shape.but(pairs=16),
        rounds=5 * bench.rounds,
        device=bench.device,
        dtype=bench.dtype,
        threads=bench.threads,
        module=bench.weights,
    )
    return dict(context_over_bare=records[1]["ratio_to_bare"], records=records)


def halving(bench: Bench) -> dict:
    """Compare the grid of some pairs with unlimited memory and with hardly any beyond the weights."""
    from posttrace.tracers.engines import patching
    from posttrace.tracers.engines.activations import read_statements
    from posttrace.tracers.engines.patching import patch_grid

    shape = replace(bench.shape, pairs=min(64, bench.shape.pairs))
    task, model = make_task(shape), _wrapped(bench)
    options = dict(site="resid_post", layers=range(shape.layers), answers=task.answers)
    clean, corrupt = ([prompt(ids, task.start) for ids in some] for some in (task.clean, task.corrupt))
    source = read_statements(model, clean, **options).values[None]
    run = dict(unchanged=[task.unchanged], max_tokens=2**17, **options)
    plenty = patch_grid(model, corrupt, source, **run).patched
    if bench.device == "cpu":
        return dict(skipped="memory cannot be taken away on a CPU")
    calls: list[int] = []
    whole = patching._patch_packed

    def counted(grid, which, packed):
        calls.append(packed.token.numel())
        whole(grid, which, packed)

    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_allocated()
    patching._patch_packed = counted
    try:
        for spare in range(2**28, 2**34, 2**28):  # the smallest amount with which it works at all
            calls.clear()
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (held + spare) / total))
            try:
                short = patch_grid(model, corrupt, source, **run).patched
                break
            except torch.OutOfMemoryError:
                continue
    finally:
        patching._patch_packed = whole
        torch.cuda.set_per_process_memory_fraction(1.0)
    return dict(
        spare_mib=spare / 2**20,
        passes_tried=len(calls),
        tokens_first=calls[0],
        tokens_least=min(calls),
        halved=len(calls) > 2,
        largest_difference=float((short - plenty).abs().nan_to_num().max()),
        largest_value=float(plenty.abs().nan_to_num().max()),
    )


SMALL: dict[str, dict] = {
    "knowledge": dict(sets=["cities", "larger_than"], max_pairs=16),
    "trace": {},
    "refusal": dict(test_prompts=16, coefficient_search=[], random_directions=2),
    "confidence": dict(text=dict(documents=16), sets=["cities"], max_statements=64),
    "truthfulness": dict(
        sets=["cities", "animal_class", "sp_en_trans"], probes=["mass_mean"], max_statements=64
    ),
}
"""Study -> changes to its default job, so that five studies take a minute or two."""
LONGEST = 60.0
"""Seconds after which no further study is started."""


def trained(bench: Bench) -> dict:
    """Compare the studies on the embedded family: float32 and bfloat16 on the device with float32 on the CPU."""
    bench.__dict__.pop("weights", None)
    found: dict[str, Any] = {}
    begin = time.perf_counter()
    places = {device: _place_of(device) for device in ("cpu", bench.device)}
    with tempfile.TemporaryDirectory() as folder:
        for study, changes in SMALL.items():
            if time.perf_counter() - begin > LONGEST:
                found[study] = "left out: no time was left"
                continue
            stores = {}
            for device, dtype in [("cpu", "float32"), (bench.device, "float32"), (bench.device, "bfloat16")]:
                stores[device, dtype], seconds = _run(study, changes, device, dtype, Path(folder))
                found[f"{study}, {dtype} on {'cpu' if device == 'cpu' else 'device'}: seconds"] = seconds
            cpu = stores["cpu", "float32"]
            found[study] = {
                dtype: _compared(cpu, stores[bench.device, dtype]) for dtype in ("float32", "bfloat16")
            }
    grids = ("knowledge/cities/logit_diff", "knowledge/larger_than/logit_diff")
    return dict(
        float32_difference=max(found["knowledge"]["float32"][name]["largest"] for name in grids),
        bfloat16_difference=max(found["knowledge"]["bfloat16"][name]["largest"] for name in grids),
        bfloat16_difference_95=max(found["knowledge"]["bfloat16"][name]["95 %"] for name in grids),
        bfloat16_difference_median=max(found["knowledge"]["bfloat16"][name]["median"] for name in grids),
        models_were_on=places,
        studies=found,
    )


def _place_of(device: str) -> str:
    """Return the device on which a model ends up if opened for a device."""
    from posttrace.pipeline.spec import families
    from posttrace.tracers.models.loading import open_model

    return str(open_model(families()["embedded"]["base"], device=device).device)


def _run(study: str, changes: dict, device: str, dtype: str, folder: Path) -> tuple[str, float]:
    import yaml

    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job

    asked = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in changes.items()
    ]
    url = str(folder / f"{study}-{device.replace(':', '')}-{dtype}")
    begin = time.perf_counter()
    run_job(
        load_job(study, [*asked, f"dtype={dtype}", f"execution.device={device}"]), url, say=lambda _: None
    )
    return url, time.perf_counter() - begin


def _compared(one: str, other: str) -> dict:
    """Return absolute differences for every float array: median, 95 % point, largest, and the largest value."""
    import xarray

    from posttrace.stores import summary

    found = {}
    for path, group in summary(one)["groups"].items():
        a, b = (xarray.open_zarr(url, group=path, consolidated=False) for url in (one, other))
        for name in group["arrays"]:
            left, right = a[name].values, b[name].values
            if left.dtype.kind != "f" or right.dtype.kind != "f":
                if left.dtype == right.dtype:
                    found[f"{path}/{name}"] = dict(same=float((left == right).mean()))
                continue
            difference = np.abs(left.astype(float) - right.astype(float))
            difference = difference[~np.isnan(difference)]
            if difference.size:
                median, high = np.quantile(difference, [0.5, 0.95])
                found[f"{path}/{name}"] = {
                    "median": float(median),
                    "95 %": float(high),
                    "largest": float(difference.max()),
                    "largest value": float(np.nanmax(np.abs(left.astype(float)))),
                }
    return found


def analysis(bench: Bench) -> dict:
    """Measure all fits of one layer and stage: twelve sets of hidden size 4096, each left out in turn."""
    from benchmarks.probes import measure

    size = (12, 1250, 4096) if bench.device != "cpu" else (4, 50, 64)
    (found,) = measure(*size, layers=1, naive=0)
    del found["name"]
    return {**found, "threads": torch.get_num_threads()}


def _wrapped(bench: Bench):
    from posttrace.tracers.models.loading import wrap

    return wrap(bench.weights, tokenizer(bench.shape.vocab), name="random", check=False)


def _peak(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None


PARTS = {
    "grid": grid,
    "read": reading,
    "generation": generating,
    "overhead": context,
    "halving": halving,
    "analysis": analysis,
    "trained": trained,
}
"""Name -> part, in the order of running; the longest comes last and frees the random model's memory."""
