"""For every test: no model hub is asked, idle threads do not spin, and an S3 server of our own is at hand."""

from __future__ import annotations

import functools
import itertools
import os

import hypothesis
import pytest

from tests.support.s3 import BUCKET, s3_server
from tests.support.shared import once

# Said before any model library is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

hypothesis.settings.register_profile("any load", deadline=None)  # no test is about wall time
hypothesis.settings.load_profile("any load")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Give `shared(name, make)`: a folder that `make(folder)` fills once for all workers."""
    return functools.partial(once, tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Draw few pixels and no PDF in this process; fixtures of a wider scope draw all."""
    from posttrace.figures import theme  # and NumPy: after the variables above

    monkeypatch.setattr(theme, "DPI", 50)
    monkeypatch.setattr(theme, "FORMATS", ("png",))


@pytest.fixture(scope="session")
def s3_variables():
    with s3_server() as variables:
        yield variables


@pytest.fixture
def s3(s3_variables, monkeypatch):
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/run-{os.getpid()}-{next(_numbers)}"
