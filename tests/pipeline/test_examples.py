"""The examples in the docstrings of `pipeline` run as printed, those that need a model aside."""

import numpy as np
import pytest
import torch

from posttrace import pipeline
from posttrace.pipeline.job import load_job
from tests.support import examples


@pytest.mark.parametrize("name", examples.modules(pipeline, without=["posttrace.pipeline.embedded"]))
def test_docstring_examples_run(name):
    examples.check(name, {"np": np, "torch": torch, "load_job": load_job}, skipped=True)
