"""Synthetic stores are whole stores, and memory is that of the process that reads them."""

import pytest

from benchmarks.real_size import TINY, make_inputs, make_store, measured, prepared
from posttrace.pipeline.stages import Stages
from posttrace.stores import verify


@pytest.mark.slow
def test_a_synthetic_store_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(Stages, "check_weights", Stages.check_weights)  # put back what `prepared` takes away
    make_inputs(tmp_path, TINY, statements=8)
    study = prepared("trace", tmp_path)
    make_store(study, str(tmp_path / "store"))
    assert verify(str(tmp_path / "store")) == []


def test_the_peak_is_that_of_the_command_and_not_of_this_process():
    found = measured(["timeit", "-n", "1", "-r", "1", "import time; x = bytearray(2**26); time.sleep(0.3)"])
    assert found["status"] == 0 and 64 < found["peak_mib"] < 150
    failed = measured(["posttrace.no_such_module"])
    assert failed["status"] == 1 and "No module named" in failed["said"]
