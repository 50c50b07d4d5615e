"""What a job will take: time, memory, model loads, downloads and disk, in a few lines before anything is computed."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import groupby
from pathlib import Path

import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.fetch import to_download
from posttrace.pipeline.study import Study, Work
from posttrace.pipeline.writer import Writer
from posttrace.tracers.batching.memory import FEWEST_TOKENS, MAX_TOKENS, bytes_of_token, free_memory
from posttrace.tracers.cost import Cost
from posttrace.tracers.models.loading import resolve_device

SLOWER = 1.5
"""Time that models take, over that of their multiply-adds in large matrix products (see docs/performance.md)."""
SECONDS_OF_A_PASS = 0.004
"""What a forward pass takes besides its arithmetic: tracing, launches, copies."""
SECONDS_OF_A_LOAD = 2.0
BYTES_A_SECOND = 1e9
"""Of weights, from a disk to where they compute."""
MEASURED = 1e9
"""Multiply-adds of one measured product, at most; a processor takes milliseconds for them."""
ASSUMED = 1e12
"""Multiply-adds a second of a server, of which nothing is known."""
TOO_LITTLE = "TOO LITTLE"
PROCESS = 7 * 10**8
"""Bytes of a process with its libraries."""


class Estimate:
    """What the units that are left of a job will take.

    Parameters
    ----------
    work
        The units.
    url
        Where the store is, or will be.
    device_flops
        Floating-point operations a second (two to a multiply-add) of the device that the job will run on; by default
        a matrix product is timed on the job's device, which takes less than a second.

    Raises
    ------
    JobError
        A speed that no device has.

    Examples
    --------
    >>> for line in Estimate(study, study.work, "runs/knowledge").lines():      # doctest: +SKIP
    ...     print(line)
    time            about 50 s (5.0e+10 multiply-adds at 9.1e+09 a second, measured on cpu in float32; ...)
    memory          about 900 MB (weights 13 MB, a batch 90 MB, results 4 MB), 18 GB free
    """

    def __init__(self, study: Study, work: Sequence[Work], url: str, device_flops: float | None = None):
        check_flops(device_flops)
        self.study, self.work, self.url = study, work, url
        self.costs: dict[str, Cost] = {one.unit.id: study.cost(one) for one in work}
        execution = study.job.execution
        self.remote = execution.backend == "remote"
        self.elsewhere = device_flops is not None
        self.device = "cpu" if self.remote else resolve_device(execution.device)
        self.on_cpu = self.device == "cpu" and not self.elsewhere
        self.rate = (
            device_flops / 2 if device_flops else ASSUMED if self.remote else self._measured(self.device)
        )
        analysis = any(one.stage is None for one in work)
        self.cpu_rate = self.rate if self.on_cpu or not analysis else self._measured("cpu")

    def of(self, work: Sequence[Work]) -> Estimate:
        """Return the same estimate for some of the units."""
        some = copy(self)
        some.work = work
        return some

    def _measured(self, device: str) -> float:
        config = self.study.stages.configs[self.study.stages.names[0]]
        dtype = self.study.stages.dtype if device == self.device else torch.float32
        return matmul_rate(device, dtype, config.hidden_size)

    def seconds(self, one: Work) -> float:
        """Return the seconds that a unit takes, about; loading its model aside."""
        cost = self.costs[one.unit.id]
        if one.stage is None:
            return cost.multiply_adds / self.cpu_rate
        return SLOWER * cost.multiply_adds / self.rate + SECONDS_OF_A_PASS * cost.forwards

    @property
    def loads(self) -> int:
        """How often a model is opened, one at a time in the order of the plan."""
        return sum(1 for _ in groupby(one.stage for one in self.work if one.stage))

    @property
    def weights(self) -> int:
        """Bytes of the largest stage's weights in the job's dtype; 0 where no model is opened."""
        stages = {one.stage for one in self.work if one.stage}
        sizes = (sum(p.numel() for p in self.study.stages.structures[name].parameters()) for name in stages)
        return max(sizes, default=0) * self.study.stages.dtype.itemsize

    def lines(self) -> Iterator[str]:
        """Yield one aligned line for each thing that the job takes."""
        found = [] if self.remote else [("time", self._time()), *self._memory()]
        if self.loads and not self.remote:
            names = ", ".join(dict.fromkeys(one.stage for one in self.work if one.stage))
            found.append(("models", f"opened {times(self.loads)} ({names}), one at a time"))
        found += [("download", self._download()), ("store", self._store())]
        for name, text in found:
            yield f"{name:15} {text}"

    def _time(self) -> str:
        models = sum(self.seconds(one) for one in self.work if one.stage)
        analysis = sum(self.seconds(one) for one in self.work if one.stage is None)
        loading = self.loads * (SECONDS_OF_A_LOAD + self.weights / BYTES_A_SECOND)
        total = sum((self.costs[one.unit.id] for one in self.work), Cost())
        how = "by --device-flops" if self.elsewhere else f"measured on {self.device}"
        parts = [("models", models), ("loading", loading), ("analysis on the CPU", analysis)]
        said = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts if seconds >= 1)
        return (
            f"about {duration(models + loading + analysis)} by one process{f' ({said})' if said else ''}: "
            f"{total.forwards:,} forward passes, {total.multiply_adds:.1e} multiply-adds at {self.rate:.1e} a second, "
            f"{how} in {self.study.job.dtype}"
        )

    def _memory(self) -> Iterator[tuple[str, str]]:
        results = (2 + Writer.AHEAD) * max(self._sizes(), default=0)
        read = max((self.study.reads(one) for one in self.work), default=0)
        host = [("process", PROCESS), ("results", results), ("read from the store", read)]
        model = [("weights", self.weights), ("a batch", self._batch())] if self.loads else []
        if self.on_cpu:
            yield "memory", _needed([*model, *host], free_host_memory())
            return
        if model:
            yield "device memory", _needed(model, self._free_on_device())
        yield "host memory", _needed(host, free_host_memory())

    def _batch(self) -> int:
        """Bytes of a batch: on a GPU those of the smallest one, since batches take what is free."""
        stages = self.study.stages
        config = stages.configs[stages.names[0]]
        fewest = MAX_TOKENS if self.on_cpu else FEWEST_TOKENS
        tokens = self.study.job.execution.max_tokens or fewest
        return tokens * bytes_of_token(config, stages.dtype.itemsize, config.num_hidden_layers)

    def _free_on_device(self) -> int | None:
        if self.elsewhere or not self.device.startswith(("cuda", "auto")):
            return None
        cards = (
            range(torch.cuda.device_count())
            if self.device == "auto"
            else [torch.device(self.device).index or 0]
        )
        return sum(free_memory(torch.device("cuda", card)) for card in cards)

    def _download(self) -> str:
        weights = not self.remote or self.study.job.reads_weights
        sizes = {
            name: to_download(one.model, one.revision) if weights else 0
            for name, one in self.study.stages.checkpoints.items()
        }
        unknown = [name for name, size in sizes.items() if size is None]
        some = {name: size for name, size in sizes.items() if size}
        parts = [human(sum(some.values()))] if some else []
        if len(some) > 1:
            parts.append(f"({', '.join(f'{name} {human(size)}' for name, size in some.items())})")
        if unknown:
            parts.append(f"unknown for {', '.join(unknown)}: the hub does not answer")
        return " ".join(parts) or "nothing"

    def _sizes(self) -> Iterator[int]:
        return (self.study.unit_sizes[one.unit.id] for one in self.work)

    def _store(self) -> str:
        size = sum(self._sizes())
        if "://" in self.url:
            return f"up to {human(size)}"
        free = shutil.disk_usage(_existing(Path(self.url))).free
        return f"up to {human(size)}, {human(free)} free{f' - {TOO_LITTLE}' if size > free else ''}"


def check_flops(device_flops: float | None) -> None:
    """Raise JobError for a speed that no device has.

    Examples
    --------
    >>> check_flops(4e14)
    """
    if device_flops is not None and not 1e6 <= device_flops <= 1e18:
        raise JobError(
            f"device_flops: {device_flops} is not in 1e6 to 1e18; give operations a second, e.g. 4e14"
        )


def matmul_rate(device: str, dtype: torch.dtype, hidden: int) -> float:
    """Return the multiply-adds a second of a product of matrices as wide as a model, the best of three.

    Examples
    --------
    >>> matmul_rate("cpu", torch.float32, 256) > 1e6
    True
    """
    where = torch.device("cuda" if device == "auto" else device)
    rows = int(min(4096, max(16, MEASURED // (4 * hidden**2)))) if where.type == "cpu" else 8192
    left = torch.ones(rows, hidden, dtype=dtype, device=where)
    right = torch.ones(hidden, 4 * hidden, dtype=dtype, device=where)
    best = math.inf
    for _ in range(4):  # the first one wakes threads and libraries up
        begin = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begin)
    if where.type == "cuda":  # what the allocator keeps would count as used when the model is placed
        del left, right, product
        torch.cuda.empty_cache()
    return rows * hidden * 4 * hidden / best


def free_host_memory() -> int | None:
    """Return the bytes that this machine has free, within the limit of a container; None where nothing tells.

    Examples
    --------
    >>> free_host_memory() is None or free_host_memory() > 0
    True
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(free, limit - used)
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def human(n: float) -> str:
    """Return bytes in words.

    Examples
    --------
    >>> human(950), human(38_400_000), human(1.62e10), human(130e9)
    ('1 kB', '38 MB', '16 GB', '130 GB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 9.95 * size else f"{n / size:.0f} {unit}"
    return f"{math.ceil(n / 1e3)} kB"


def duration(seconds: float) -> str:
    """Return seconds in words.

    Examples
    --------
    >>> duration(0.2), duration(48), duration(400), duration(9000), duration(4e5)
    ('1 s', '48 s', '7 min', '2.5 h', '4.6 days')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def times(n: int) -> str:
    """Return a number of times in words.

    Examples
    --------
    >>> times(1), times(5)
    ('once', '5 times')
    """
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _needed(parts: Sequence[tuple[str, int]], free: int | None) -> str:
    total = sum(size for _, size in parts)
    said = f"about {human(total)} ({', '.join(f'{name} {human(size)}' for name, size in parts if size)})"
    if free is None:
        return said
    return f"{said}, {human(free)} free{f' - {TOO_LITTLE}' if total > free else ''}"


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return path if path.exists() or path == path.parent else _existing(path.parent)
