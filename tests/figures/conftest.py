"""Stores written once and read by many tests."""

import json
from pathlib import Path

import pytest

from posttrace.figures import render
from tests.support.figures import knowledge as synthetic


@pytest.fixture(scope="session")
def finished_store(shared):
    """Two sets, one free-form, two stages: everything done."""
    stages = ("base", "instruct")

    def make(folder):
        groups = [
            synthetic.template_group("cities", stages=stages, pairs=12),
            synthetic.free_group(stages=stages, pairs=10),
        ]
        synthetic.write_store(folder / "finished", groups)

    return shared("finished-figures", make) / "finished"


@pytest.fixture(scope="session")
def unfinished_store(shared):
    """Three stages, 24 pairs: nothing patched into sft, and the last third of the pairs missing in instruct."""

    def skip(unit):
        return "grid/sft" in unit or "grid/instruct/0016" in unit

    groups = [synthetic.template_group("cities")]

    def make(folder):
        synthetic.write_store(folder / "unfinished", groups, skip)

    return shared("unfinished", make) / "unfinished"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Planned, and not a unit done."""
    groups = [synthetic.template_group("cities")]
    return synthetic.write_store(tmp_path_factory.mktemp("stores") / "empty", groups, lambda unit: True)


@pytest.fixture(scope="session")
def drawn(finished_store, shared):
    """Everything of the finished store with its page: folder, index, and what was told while it went on."""

    def make(folder):
        told: list[str] = []
        files = render(finished_store, folder / "out", progress=told.append, page=True)
        (folder / "told.json").write_text(json.dumps([list(map(str, files)), told]))

    folder = shared("drawn", make)
    files, told = json.loads((folder / "told.json").read_text())
    return folder / "out", list(map(Path, files)), told
