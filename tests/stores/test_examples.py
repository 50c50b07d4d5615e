"""The examples in the docstrings run as printed, one after the other, in one folder."""

from __future__ import annotations

import doctest

import numpy as np

from posttrace import stores
from tests.support import examples

STORE = "posttrace.stores.store.Store"


def test_docstring_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = {"np": np, **{name: getattr(stores, name) for name in stores.__all__}}
    found = [test for name in examples.modules(stores) for test in examples.found(name)]
    # the example of Store makes the store that the others use; those that forget units come last
    found.sort(key=lambda test: (test.name != STORE, "forget" in test.name, test.name))
    runner = doctest.DocTestRunner(optionflags=examples.OPTIONS)
    for test in found:
        test.globs |= world
        runner.run(test, clear_globs=False)
        if test.name == STORE:
            world |= {name: test.globs[name] for name in ("store", "group", "units")}
    assert runner.summarize().attempted > 20
    assert runner.summarize().failed == 0
