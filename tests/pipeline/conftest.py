"""A family of random models on disk and a job that patches within and across them."""

import csv
import os
import subprocess
import sys

import pytest
import yaml

from tests.models import random_module, word_tokenizer

CHAT = "<user> {{ messages[0].content }} <answer>"
WORDS = ["The", " city", " of", " is", " in", ".", " This", " statement", ":", "'", " not"]


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A folder with the stages base and instruct: random Llamas of one shape with one tokenizer."""
    folder = tmp_path_factory.mktemp("family")
    for seed, stage in enumerate(["base", "instruct"]):
        random_module("llama", seed).save_pretrained(folder / stage)
        word_tokenizer(WORDS).save_pretrained(folder / stage)
    return folder


@pytest.fixture(scope="session")
def statements():
    """Rows of a set with subjects of two words (some of one) and three objects."""
    rows = []
    for i in range(36):
        subject = f"w{i} w{99 - i}" if i % 6 else f"w{i}"
        rows.append((f"The city of {subject} is in w{i % 3 + 50}.", 1))
        rows.append((f"The city of {subject} is in w{(i + 1) % 3 + 50}.", 0))
    return rows


@pytest.fixture
def job_file(tmp_path, family, statements):
    """A job over the random family: a set of template pairs and one of free-form pairs, paths relative to it."""
    return write_job(tmp_path, family, statements)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, family, statements):
    """The finished store of that job; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    done = posttrace("run", write_job(folder, family, statements), "--store", folder / "store")
    assert done.returncode == 0, done.stderr
    return folder / "store"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, statements):
    """A folder with a small family and a good input of every kind."""
    folder = tmp_path_factory.mktemp("inputs")
    random_module("llama", 0).save_pretrained(folder / "model")
    tokenizer = word_tokenizer([*WORDS, "<", ">", "user", " answer", "I", " cannot", "Sure", ","])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "model")
    write_csv(folder / "cities.csv", statements)
    write_csv(folder / "other.csv", [(s.replace("city", "statement"), label) for s, label in statements])
    rows = [(f"w{i} w{i + 1}", ("direction", "validation", "test")[i % 3]) for i in range(24)]
    write_csv(folder / "harmful.csv", rows, ("instruction", "split"))
    write_csv(folder / "harmless.csv", [(f"{t} w3", s) for t, s in rows], ("instruction", "split"))
    (folder / "openings.yaml").write_text("refusal: [I cannot]\ncompliant: [Sure]\n")
    return folder


def good_job(study, inputs):
    family = {"name": "x", "stages": {"base": str(inputs / "model")}}
    cities, other = str(inputs / "cities.csv"), str(inputs / "other.csv")
    return {"study": study, "family": family, "execution": {"device": "cpu"}} | {
        "knowledge": {"sets": [cities], "max_pairs": 7},
        "truthfulness": {"sets": [cities, other], "intervene_layer": 1, "probe_layer": 1},
        "confidence": {"sets": [], "candidates": 2, "top_share": 0.5, "controls": 50},
        "refusal": {
            "harmful": str(inputs / "harmful.csv"),
            "harmless": str(inputs / "harmless.csv"),
            "openings": str(inputs / "openings.yaml"),
            "templates": {"base": "User: {instruction}\nAssistant:"},
        },
        "trace": {
            "prompts": ["The city of w1 is in"],
            "operations": [{"op": "steer", "direction": "up", "tokens": "last"}],
            "directions": {"up": {"file": str(inputs / "none.npy")}},
        },
    }[study]


def write_job(folder, family, statements):
    write_csv(folder / "cities.csv", statements)
    free = []
    for i in range(12):
        middle = " is" * (i % 4)
        free += [(f"w{i}{middle} w7 of w8.", 1), (f"w{i}{middle} w{9 + i % 2} of w8.", 0)]
    write_csv(folder / "free.csv", free)
    job = {
        "study": "knowledge",
        "family": {
            "name": "random",
            "stages": {"base": str(family / "base"), "instruct": str(family / "instruct")},
        },
        "sets": [
            {"name": "cities", "csv": "cities.csv"},
            {"name": "free", "csv": "free.csv", "pairs": "free"},
        ],
        "max_pairs": 7,
        "pairs_per_unit": 3,
        "execution": {"device": "cpu"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def write_csv(path, rows, header=("statement", "label")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def posttrace(*arguments, cwd=None, env=None, module="posttrace"):
    """Run the real command line in its own process."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
