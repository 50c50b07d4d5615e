"""A family of random models on disk and a job that patches within and across them."""

import numpy as np
import pytest

from tests.support.commands import posttrace_anew
from tests.support.jobs import CHAT, WORDS, write_csv, write_job
from tests.support.models import random_module, word_tokenizer


@pytest.fixture(scope="session")
def family(shared):
    """A folder with the stages base and instruct: random Llamas of one shape with one tokenizer."""

    def make(folder):
        for seed, stage in enumerate(["base", "instruct"]):
            random_module("llama", seed).save_pretrained(folder / stage)
            word_tokenizer(WORDS).save_pretrained(folder / stage)

    return shared("family", make)


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
def finished(shared, family, statements):
    """The finished store of that job; for reading only."""

    def make(folder):
        done = posttrace_anew("run", write_job(folder, family, statements), "--store", folder / "store")
        assert done.returncode == 0, done.stderr

    return shared("finished", make) / "store"


@pytest.fixture(scope="session")
def inputs(shared, statements):
    """A folder with a small family and a good input of every kind; for reading only."""
    return shared("inputs", lambda folder: write_inputs(folder, statements))


def write_inputs(folder, statements):
    random_module("llama", 0).save_pretrained(folder / "model")
    tokenizer = word_tokenizer([*WORDS, "<", ">", "user", " answer", "I", " cannot", "Sure", ","])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "model")
    write_csv(folder / "cities.csv", statements)
    write_csv(folder / "other.csv", [(s.replace("city", "statement"), label) for s, label in statements])
    rows = [(f"w{i} w{i + 1}", ("direction", "validation", "test")[i % 3]) for i in range(24)]
    write_csv(folder / "harmful.csv", rows, ("instruction", "split"))
    write_csv(folder / "harmless.csv", [(f"{t} w3", s) for t, s in rows], ("instruction", "split"))
    (folder / "text.txt").write_text("\n".join(text for text, _ in statements[:16]), encoding="utf-8")
    (folder / "openings.yaml").write_text("refusal: [I cannot]\ncompliant: [Sure]\n")
    np.save(folder / "none.npy", np.linspace(-1, 1, 32, dtype=np.float32))
