"""The examples in the docstrings run as printed, one after the other, in one folder."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np

from posttrace import stores


def test_docstring_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"posttrace.stores.{module.name}" for module in pkgutil.iter_modules(stores.__path__)]
    modules = [importlib.import_module(name) for name in names]
    world = {"np": np, **{name: getattr(stores, name) for name in stores.__all__}}
    found = [test for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]
    # the example of Store makes the store that the others use; those that forget units come last
    found.sort(
        key=lambda test: (test.name != "posttrace.stores.store.Store", "forget" in test.name, test.name)
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found:
        test.globs = {**test.globs, **world}
        runner.run(test, clear_globs=False)
        if test.name == "posttrace.stores.store.Store":
            world.update({name: test.globs[name] for name in ("store", "group", "units")})
    assert runner.summarize().attempted > 20
    assert runner.summarize().failed == 0
