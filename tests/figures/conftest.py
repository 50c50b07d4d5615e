"""Stores written once and read by many tests."""

import pytest

from posttrace.figures import render
from tests.support.figures import knowledge as synthetic


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory):
    """Two sets, one free-form, two stages: everything done."""
    stages = ("base", "instruct")
    groups = [
        synthetic.template_group("cities", stages=stages, pairs=12),
        synthetic.free_group(stages=stages, pairs=10),
    ]
    return synthetic.write_store(tmp_path_factory.mktemp("stores") / "finished", groups)


@pytest.fixture(scope="session")
def unfinished_store(tmp_path_factory):
    """Three stages, 24 pairs: nothing patched into sft, and the last third of the pairs missing in instruct."""

    def skip(unit):
        return "grid/sft" in unit or "grid/instruct/0016" in unit

    groups = [synthetic.template_group("cities")]
    return synthetic.write_store(tmp_path_factory.mktemp("stores") / "unfinished", groups, skip)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Planned, and not a unit done."""
    groups = [synthetic.template_group("cities")]
    return synthetic.write_store(tmp_path_factory.mktemp("stores") / "empty", groups, lambda unit: True)


@pytest.fixture(scope="session")
def drawn(finished_store, tmp_path_factory):
    """Everything of the finished store with its page: folder, index, and what was told while it went on."""
    out, told = tmp_path_factory.mktemp("drawn"), []
    return out, render(finished_store, out, progress=told.append, page=True), told
