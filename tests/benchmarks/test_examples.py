"""The examples in the docstrings run as printed."""

import pytest

import benchmarks
from tests.support import examples

PEERS = ("benchmarks.methods.", "benchmarks.worker")


@pytest.mark.parametrize("name", [n for n in examples.modules(benchmarks, PEERS) if n != "benchmarks"])
def test_docstring_examples_run(name):
    examples.check(name, {})
