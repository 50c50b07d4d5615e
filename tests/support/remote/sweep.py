"""The small job of the fault sweep, run against the loopback server and compared with a local run."""

from pathlib import Path

import numpy as np

from posttrace.stores import Store
from tests.support.remote.scenarios import UNITS

QUICK = {"first_wait": 0.05, "poll": 0.02, "retries": 4, "attempts": 3, "deadline": 60}
"""Limits short enough for a sweep; each scenario may shorten one more."""


def values(store):
    groups = store.groups.items()
    return {f"{name}/{array.name}": store.read(name, array.name) for name, g in groups for array in g.arrays}


def check_complete(url, local, server):
    """The store equals the local one, each unit is in it once, from a job of its own; the key is nowhere."""
    store = Store.open(url)
    assert len(store.done()) == UNITS and not store.pending()
    assert list(store.location.list("_progress/requests/")) == []
    found = values(store)
    assert set(found) == set(local)
    for name, value in found.items():
        np.testing.assert_allclose(value, local[name], rtol=0, atol=1e-5, err_msg=name)
    used = [request["job"] for record in store.records().values() for request in record["requests"]]
    assert len(used) == len(set(used)) == UNITS
    assert set(used) <= accepted(server)
    assert [run["foreign"] for run in server.since("run") if run["foreign"]] == []
    files = [path.read_bytes() for path in Path(url).rglob("*") if path.is_file()]
    assert files and not any(server.key.encode() in content for content in files)


def accepted(server):
    return {post["job"] for post in server.since("post") if post["job"]}
