"""What runs on Dask workers in tests: units that tell what they did, and a plugin that notes every unit of a study."""

import os
import signal
import time
from threading import Lock
from types import SimpleNamespace

from distributed import WorkerPlugin

OPENING = 0.4
_open = None
_computing = Lock()


def work(name, stage):
    """A unit, as far as dealing goes; the class itself would bring torch along."""
    return SimpleNamespace(unit=SimpleNamespace(id=name), stage=stage)


def note(path, *words):
    with open(path, "a") as stream:
        stream.write(" ".join(map(str, words)) + "\n")


def notes(path):
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def unit(path, work):
    """Open a model if need be, and note both."""
    global _open
    opening = 0.0
    with _computing:
        if work.stage not in (None, _open):
            time.sleep(OPENING)
            _open, opening = work.stage, OPENING
            note(path, "open", work.stage)
        time.sleep(0.01)
        note(path, "unit", work.unit.id, os.getpid())
    return SimpleNamespace(computing=0.01, opening=opening)


def deadly(path, work):
    """As `unit`, but one of them kills its worker."""
    if work.unit.id == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return unit(path, work)


class Noting(WorkerPlugin):
    """Every unit of a study takes a moment and is noted, with the process that does it."""

    name = "noting"

    def __init__(self, path):
        self.path = path

    def setup(self, worker):
        from posttrace.pipeline.executors import worker as module
        from posttrace.pipeline.study import Study

        run, opened = Study.run, module.InProcess.do

        def noted(study, work, model, store):
            note(self.path, "unit", work.unit.id, os.getpid())
            time.sleep(0.1)
            return run(study, work, model, store)

        def counted(backend, work):
            was = backend.stage
            result = opened(backend, work)
            if backend.stage != was:
                note(self.path, "open", backend.stage, os.getpid())
            return result

        Study.run, module.InProcess.do = noted, counted
