"""End runs with SIGKILL at random moments, again and again, and see what is left each time."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from posttrace.stores import Store, StoreError, repair, verify
from posttrace.stores.location import Location
from posttrace.stores.markers import RECORD
from tests.support.stores import faults, various
from tests.support.stores.faults import OUTCOMES, Tally

MOST = 200  # kills of one run: it ends by itself long before
JOB = """\
study: knowledge
family: embedded
stages: [base, instruct]
sets: [cities]
max_pairs: 8
pairs_per_unit: 1
layers: [0, 1]
execution: {check_share: 0, device: cpu}
"""


def life(url: str, began, variables: dict[str, str]) -> None:
    """A run: create or resume, write what is left, finalise."""
    os.environ.update(variables)
    began.set()
    store = various.make(url)
    with store.lease(interval=0.2, expiry=5):
        various.run(store)


def look(url: str, before: frozenset[str], truth: various.Stores) -> tuple[dict[str, bool], frozenset[str]]:
    """What is wrong after a kill, and which units are done."""
    bad = dict.fromkeys(OUTCOMES, False)
    place = Location(url, create=True)
    if place.size(RECORD) is None:
        bad["lost"] = bool(before)
        return bad, before
    done = Store.open(url).done()
    bad["lost"] = bool(before - done)
    bad["wrong"], refused = faults.read_wrong(url, truth, done)
    # a kill damages nothing: whatever is named now would be a finished unit unlike its marker
    bad["undetected"] = bool(verify(url)) or refused
    return bad, done


def store_kills(count: int, truth: various.Stores, url_of, variables=None, seed: int = 0) -> Tally:
    """Kill runs of the example at random moments between start and end."""
    context = multiprocessing.get_context("forkserver")
    rng, tally = random.Random(seed), Tally()
    number, usual, before, done = 0, 0.3, 0, frozenset()
    while tally.trials < count:
        url = url_of(number)
        began = context.Event()
        worker = context.Process(target=life, args=(url, began, variables or {}))
        worker.start()
        began.wait(60)
        start = time.monotonic()
        worker.join(rng.uniform(0, usual))
        worker.kill()
        worker.join()
        if worker.exitcode != 0:
            bad, done = look(url, done, truth)
            if tally.trials % 7 == 0 and Location(url, create=True).size(RECORD) is not None:
                # mending what was merely stopped must not cost anything either
                repair(url)
                bad["lost"] |= bool(done - Store.open(url).done())
            tally.add(bad, False, f"{url}, kill {tally.trials}")
            before += 1
        else:
            usual = 0.5 * usual + 0.5 * max(0.05, time.monotonic() - start)
        if worker.exitcode == 0 or before > MOST:
            healed = faults.healed(url, truth)
            if not healed:
                tally.add({**dict.fromkeys(OUTCOMES, False), "not healed": True}, False, f"{url} in the end")
            number, before, done = number + 1, 0, frozenset()
            if "://" not in url:
                shutil.rmtree(url)
    return tally


def command_kills(folder: Path, count: int, seed: int = 0) -> Tally:
    """Kill `posttrace run` of a small real job at random moments, until it ends; then begin another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(JOB)
    rng, tally, number = random.Random(seed), Tally(), 0
    reference, spent = None, 0.0
    while tally.trials < count or reference is None:
        url, done = folder / f"run{number}", frozenset()
        while True:
            begun = time.monotonic()
            worker = subprocess.Popen(
                [sys.executable, "-m", "posttrace", "run", str(folder / "job.yaml"), "--store", str(url)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            if reference is not None and tally.trials < count:
                if rng.random() < 0.8:
                    # the slow part of a start is over when it says how much there is to do
                    worker.stderr.readline()
                    time.sleep(rng.uniform(0, spent))
                else:
                    time.sleep(rng.uniform(0, 8))
                worker.kill()
            else:
                worker.stderr.readline()
                begun = time.monotonic()
            worker.stderr.read()
            worker.wait()
            if worker.returncode == 0:
                break
            if tally.trials >= count or reference is None:
                raise RuntimeError(f"the command ended with status {worker.returncode}")
            bad = dict.fromkeys(OUTCOMES, False)
            try:
                now = Store.open(url).done() if url.exists() else frozenset()
                bad["undetected"] = bool(now) and verify(url) != []
            except StoreError:
                now = frozenset()
            bad["lost"] = bool(done - now)
            done = now
            tally.add(bad, False, f"{url}, kill {tally.trials}")
        store = Store.open(url)
        contents = {
            f"{path}/{array.name}": store.read(path, array.name).tobytes()
            for path, group in store.groups.items() for array in group.arrays
        }  # fmt: skip
        if reference is None:
            reference, spent = contents, time.monotonic() - begun
        elif contents != reference or verify(url) != []:
            tally.add({**dict.fromkeys(OUTCOMES, False), "not healed": True}, False, f"{url} in the end")
        number += 1
    return tally


def all_kills(folder: Path, in_folder: int, on_s3: int, commands: int) -> dict[str, Tally]:
    """By what was killed; numbers may be 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zarr", "zarr.storage", "obstore.store", "posttrace.stores"])
    folder.mkdir(parents=True)
    truth = various.Stores(folder / "truth")
    found = {}
    if in_folder:
        found["a run into a folder"] = store_kills(in_folder, truth, lambda n: str(folder / f"kill{n}"))
    if on_s3:
        from tests.support.s3 import BUCKET, s3_server

        with s3_server() as variables:
            os.environ.update(variables)
            url_of = lambda n: f"s3://{BUCKET}/kill-{n}"  # noqa: E731
            found["a run into S3"] = store_kills(on_s3, truth, url_of, variables, seed=1)
    if commands:
        found["`posttrace run`"] = command_kills(folder / "commands", commands)
    return found
