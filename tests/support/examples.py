"""Run the examples in docstrings; tests of each package give them the names and stores that they use."""

import doctest
import importlib
import pkgutil

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def found(name):
    """The docstrings of a module that have examples."""
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]


def modules(package, without=()):
    """Names of the modules of a package that have examples."""
    names = [package.__name__]
    names += [m.name for m in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")]
    return [name for name in names if not name.startswith(tuple(without)) and found(name)]


def check(name, world, *, skipped=False):
    """Run the examples of a module as printed.

    world: names besides the module's own. skipped: whether some examples may be skipped (those that need a model).
    """
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in found(name):
        skips = any(one.options.get(doctest.SKIP) for one in test.examples)
        assert skipped or not skips, f"{test.name} is skipped"
        test.globs |= world
        runner.run(test)
    assert runner.summarize().failed == 0
