"""One job by several processes that know each other only through the store: `posttrace run JOB --shard i/n`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.pipeline.scheduler import Scheduler
from posttrace.pipeline.study import Work
from posttrace.stores import Lease, Store

EVERY = 1.0
"""Seconds between two looks at what the others do."""


def parse_shard(text: str) -> tuple[int, int]:
    """Read the (i, n) of `i/n`.

    >>> parse_shard("0/4")
    (0, 4)

    Raises JobError for any other text.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise JobError(
            f"--shard {text}: write i/n, with i from 0 to n - 1, e.g. --shard $SLURM_ARRAY_TASK_ID/4 under "
            "sbatch --array=0-3"
        )
    return int(i), int(n)


def check_shard(shard: tuple[int, int], job: Job, workers: object) -> None:
    """Raise JobError for what shards do not go with."""
    if workers is not None:
        raise JobError(
            "--shard: leave --workers, --scheduler and --cluster out; a shard runs in its own process"
        )
    if job.execution.backend == "remote":
        raise JobError(
            "--shard: the models are on a server; one process keeps it busy, execution.in_flight says how many "
            "requests it has at a time"
        )


def shares(work: Sequence[Work], costs: Mapping[str, float], n: int) -> dict[str, int]:
    """Cut the work into n parts of equal cost, with few stages in each.

    Returns unit id -> the number of its shard.

    >>> shares([], {}, 2)
    {}
    """
    stages = list(dict.fromkeys(one.stage for one in work if one.stage is not None))
    models = sorted(
        (one for one in work if one.stage is not None), key=lambda one: stages.index(one.stage or "")
    )
    others = [one for one in work if one.stage is None]
    weights = [max(costs[one.unit.id], 1) for one in models]
    total = sum(weights)
    owner, before = {one.unit.id: i % n for i, one in enumerate(others)}, 0.0
    for one, weight in zip(models, weights, strict=True):
        owner[one.unit.id] = int((before + weight / 2) / total * n)
        before += weight
    return owner


class Share:
    """What this process does of a job that n processes do together, and what it knows of the others.

    >>> Share(store, lease, study.work, costs, (0, 2)).news()           # doctest: +SKIP
    frozenset()
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        work: Sequence[Work],
        costs: Mapping[str, float],
        shard: tuple[int, int],
    ):
        self._store, self._lease, self.number = store, lease, shard[0]
        self._owner = shares(work, costs, shard[1])
        self._others: dict[int, list[str]] = {}
        self._looked = -EVERY

    def news(self) -> frozenset[str]:
        """Ids of all units that are stored, if it is time to look again; also sees which shards are alive."""
        if time.monotonic() - self._looked < EVERY:
            return frozenset()
        self._others = self._lease.shards()
        done = self._store.done()
        self._looked = time.monotonic()
        return done

    def in_turn(self, waiting: Iterable[Work], open_stage: str | None) -> list[Work]:
        """Units to try: this shard's, those of shards that are dead or have not begun, and at last those of the living.

        Units of the stage that is open come first in each part; what another shard has claimed is left out.
        """
        claimed = {unit for units in self._others.values() for unit in units}
        waiting = [work for work in waiting if work.unit.id not in claimed]
        own = [work for work in waiting if self._owner[work.unit.id] == self.number]
        left = [work for work in waiting if self._owner[work.unit.id] not in (self.number, *self._others)]
        if not own:
            left += [work for work in reversed(waiting) if self._owner[work.unit.id] in self._others]
        by_stage = [sorted(part, key=lambda work: work.stage != open_stage) for part in (own, left)]
        return [*by_stage[0], *by_stage[1]]

    def claim(self, unit: str) -> bool:
        """Whether this process may do a unit: no other has it, and it is not done."""
        if not self._lease.claim(unit):
            return False
        if self._store.progress.find(unit) is None:
            return True
        self._lease.release(unit)
        return False

    def release(self, unit: str) -> None:
        """Give up the claim of a unit that is stored."""
        self._lease.release(unit)


class ShardScheduler(Scheduler):
    """A scheduler that shares the units with other processes; it ends when all are stored, no matter by which.

    >>> ShardScheduler(backend, writer, left, share=share, advance=print, say=print).run()      # doctest: +SKIP
    """

    def __init__(self, *arguments, share: Share, **options):
        super().__init__(*arguments, **options)
        self._share = share
        self._open: str | None = None
        """The stage of the last unit with a model."""

    def _start(self) -> None:
        done = self._share.news()
        for work in [work for work in self._waiting if work.unit.id in done]:
            self._waiting.remove(work)
            self._unfinished.discard(work.unit.id)
            self._advance(work)
        super()._start()

    def _candidates(self) -> list[Work]:
        units = self._share.in_turn(self._waiting, self._open)
        units = [work for work in units if self._unfinished.isdisjoint(work.needs)]
        # What is being written may be all that the next unit of this stage waits for: no other model is opened yet.
        return [work for work in units if not self._writing or work.stage in (None, self._open)]

    def _submit(self, work: Work) -> bool:
        if not self._share.claim(work.unit.id):
            return False
        self._open = work.stage or self._open
        return super()._submit(work)

    def _collect(self) -> None:
        if not (self._running or self._writing):
            time.sleep(EVERY / 4)  # others do what the rest of the units wait for
        super()._collect()

    def _stored(self, work: Work, future) -> None:
        super()._stored(work, future)
        self._share.release(work.unit.id)
