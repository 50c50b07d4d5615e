"""What users get wrong ends in one message, on the real command line, and costs nothing that was done."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from posttrace.stores import Store
from tests.support.commands import posttrace, wait_for_units
from tests.support.jobs import WORDS, write_csv
from tests.support.models import random_module, word_tokenizer


def changed(job_file, **keys):
    job = yaml.safe_load(job_file.read_text())
    job.update(keys)
    job_file.write_text(yaml.safe_dump(job))
    return job_file


def refused(job_file, *arguments):
    done = posttrace("run", job_file, "--store", job_file.parent / "none", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not (job_file.parent / "none").exists()
    return done.stderr


def checkpoint(folder, name):
    random_module(name).save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    return str(folder)


def test_a_site_that_the_architecture_lacks(job_file, tmp_path):
    stages = {"base": checkpoint(tmp_path / "neox", "gpt_neox")}
    said = refused(changed(job_file, family={"name": "x", "stages": stages}, site="resid_mid"))
    assert "resid_mid is no site of" in said and "resid_pre, z, attn_out, mlp_out, resid_post" in said


def test_stages_of_different_size(job_file, tmp_path, family):
    module = random_module("llama")
    module.model.layers = module.model.layers[:2]
    module.config.num_hidden_layers = 2
    module.save_pretrained(tmp_path / "short")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "short")
    stages = {"base": str(family / "base"), "short": str(tmp_path / "short")}
    assert "differ in num_hidden_layers" in refused(changed(job_file, family={"name": "x", "stages": stages}))


def test_a_prompt_longer_than_the_model(job_file, tmp_path):
    path = checkpoint(tmp_path / "gpt2", "gpt2")
    config = tmp_path / "gpt2" / "config.json"
    config.write_text(config.read_text().replace('"n_positions": 1024', '"n_positions": 20'))
    said = refused(changed(job_file, family={"name": "x", "stages": {"base": path}}))
    assert "the model takes 20; lower few_shot" in said


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(f"w{i} is w1.", label) for i in range(9) for label in (1, 0)], "have the same tokens"),
        ([(f"zz{i} is w{label}.", label) for i in range(9) for label in (1, 0)], "does not know"),
    ],
)
def test_pairs_that_mean_nothing(job_file, tmp_path, rows, words):
    write_csv(tmp_path / "odd.csv", rows)
    odd = {"name": "odd", "csv": "odd.csv", "pairs": "free"}
    assert words in refused(changed(job_file, sets=[odd], max_pairs=None, few_shot=0))


def test_an_id_column_that_numbers_the_rows_ties_nothing(job_file, tmp_path):
    rows = [(i, f"w{i // 2} is w{7 + label}.", label) for i, label in enumerate([1, 0] * 9)]
    write_csv(tmp_path / "ids.csv", rows, ("id", "statement", "label"))
    job = changed(job_file, sets=[{"name": "ids", "csv": "ids.csv", "pairs": "free"}])
    done = posttrace("run", job, "--dry-run")
    assert done.returncode == 0 and "5 of 5" in done.stdout.replace("  ", " ")


def test_a_file_of_that_name_elsewhere_is_not_taken(job_file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_csv(tmp_path / "elsewhere" / "missing.csv", [("w1.", 1)])
    changed(job_file, sets=["missing.csv"])
    done = posttrace("run", job_file, "--dry-run", cwd=tmp_path / "elsewhere")
    assert done.returncode == 2 and f"no file {tmp_path / 'missing.csv'}" in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -m posttrace ls datasets | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_terminated_run_can_go_on_even_where_ctrl_c_is_ignored(job_file, tmp_path):
    """As in a background job of a script, which starts with SIGINT ignored."""
    command = [sys.executable, "-m", "posttrace", "run", str(job_file), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    wait_for_units(tmp_path / "store", 1, process)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in said
    assert len(Store.open(tmp_path / "store").done()) >= 1


@pytest.mark.slow
def test_how_a_job_is_written_down_does_not_matter(finished, job_file):
    """All stages named, or none; a key without effect: the same store goes on."""
    same = posttrace(
        *("run", job_file, "--store", finished),
        *("--set", "stages=[base, instruct]", "--set", "exact_share=0.5"),
    )
    assert same.returncode == 0 and "0 to go" in same.stderr
