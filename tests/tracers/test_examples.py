"""The examples in the docstrings of `tracers` run as printed, those that need a model aside."""

import numpy as np
import pytest
import torch

from posttrace import tracers
from tests.support import examples


@pytest.mark.parametrize("name", examples.modules(tracers))
def test_docstring_examples_run(name):
    examples.check(name, {"np": np, "torch": torch}, skipped=True)
