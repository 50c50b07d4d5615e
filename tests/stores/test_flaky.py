"""An object store that refuses for the moment, or cuts bodies off, is asked again."""

import os
import time

import numpy as np
import pytest

from posttrace.stores import Store, StoreError, open_group, verify
from posttrace.stores.location import Location
from tests.support.stores import example
from tests.support.stores.flaky import flaky


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["cut", *(pytest.param(fault, marks=pytest.mark.exhaustive) for fault in ("429", "503"))]
)
def test_a_run_over_a_store_that_fails_now_and_then_is_whole(s3, monkeypatch, fault, tmp_path):
    reference = example.make(tmp_path / "reference")
    example.run(reference)
    with flaky(os.environ["AWS_ENDPOINT_URL"], (fault,), share=0.25) as (url, told):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = example.make(s3)
        with store.lease():
            example.run(store)
            store.finalise()
        assert verify(s3) == []
        assert example.contents(Store.open(s3)) == example.contents(reference)
        assert np.isfinite(open_group(s3, example.PATH).activation.values).all()
        assert told[fault] > 20, told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"), [("429", "the object store asks for fewer requests"), ("cut", "cannot be reached")]
)
def test_what_never_ends_is_told(s3, monkeypatch, fault, words):
    Location(s3).put("x", b"1")
    monkeypatch.setattr("posttrace.stores.retrying.PATIENCE", 3.0)
    with flaky(os.environ["AWS_ENDPOINT_URL"], (fault,), share=1.0) as (url, told):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        begun = time.monotonic()
        with pytest.raises(StoreError, match=rf"s3://.*/x: cannot read: .*{words}"):
            Location(s3).get("x")
        assert time.monotonic() - begun < 60
        assert told[fault] > 1
