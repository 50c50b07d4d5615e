"""Folders that many tests read, made once for all workers of a session."""

import fcntl
import os
import shutil


def once(base, name, make):
    """The folder `name` below a session's temporary folder, filled by `make(folder)`; for reading only."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder = base / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    made = folder.with_name(f"{name}.made")
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker whose `make` failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
