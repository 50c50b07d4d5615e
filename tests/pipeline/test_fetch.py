"""What `posttrace fetch` downloads is all that a run without a network needs, and no more; families have names."""

import re
import shutil

import pytest
import yaml

from posttrace.pipeline.fetch import wanted
from posttrace.pipeline.job import load_job
from posttrace.pipeline.spec import about_families, families
from posttrace.stores import summary
from tests.support.commands import posttrace, posttrace_anew
from tests.support.hub import hub


@pytest.fixture
def repositories(tmp_path, family):
    """The hub ids lab/base (one file) and lab/instruct (in shards), with what else lies in repositories."""
    from transformers import AutoModelForCausalLM

    root = tmp_path / "hub"
    shutil.copytree(family / "base", root / "lab/base")
    AutoModelForCausalLM.from_pretrained(family / "instruct").save_pretrained(
        root / "lab/instruct", max_shard_size="60KB"
    )
    for file in (family / "instruct").glob("tokenizer*"):
        shutil.copy(file, root / "lab/instruct")
    assert len(list((root / "lab/instruct").glob("model-*.safetensors"))) > 1
    for name in ("base", "instruct"):
        (root / "lab" / name / "README.md").write_text("# a card")
        (root / "lab" / name / "pytorch_model.bin").write_bytes(b"pickle" * 1000)
        (root / "lab" / name / "original").mkdir()
        (root / "lab" / name / "original/consolidated.safetensors").write_bytes(b"again" * 1000)
    return root


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    raw = {
        "study": "trace",
        "family": {"name": "lab", "stages": {"base": "lab/base", "instruct": "lab/instruct"}},
        "prompts": ["The city of w1 is in"],
        "operations": [{"op": "read", "tokens": "last"}],
        "generate": 2,
        "execution": {"device": "cpu"},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


def variables(tmp_path, address):
    """Read by the hub's library when it is imported, so that commands must run anew."""
    return {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


@pytest.mark.slow
def test_a_fetched_job_runs_without_a_network(tmp_path, repositories, job):
    with hub(repositories) as (address, asked):
        online = {**variables(tmp_path, address), "HF_HUB_OFFLINE": "0"}
        planned = posttrace_anew("run", job, "--dry-run", env=online)
        sizes = [
            sum(f.stat().st_size for f in (repositories / "lab" / stage).glob("*.safetensors")) // 1000 + 1
            for stage in ("base", "instruct")
        ]
        parts = f"(base {sizes[0]} kB, instruct {sizes[1]} kB)"
        assert re.search(rf"^download +\d+ kB {re.escape(parts)}$", planned.stdout, re.MULTILINE), (
            planned.stdout
        )
        done = posttrace_anew("fetch", job, env=online)
        assert done.returncode == 0, done.stderr
    got = {path for method, path in asked if method == "GET" and "/resolve/" in path}
    assert not [path for path in got if path.endswith((".md", ".bin")) or "original" in path]
    assert re.search(r"lab/base: \d+ files, 0\.00 GB", done.stdout)
    offline = {**variables(tmp_path, "http://127.0.0.1:9"), "HF_HUB_OFFLINE": "1"}
    done = posttrace_anew("check", job, env=offline)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ok +download +nothing$", done.stdout, re.MULTILINE)
    done = posttrace_anew("run", job, "--store", tmp_path / "store", env=offline)
    assert done.returncode == 0, done.stderr
    assert summary(str(tmp_path / "store"))["complete"]
    weights = posttrace_anew(
        *("run", "confidence", "--store", tmp_path / "weights", "--set", "text=null", "--set", "sets=[]"),
        *("--set", "family={name: lab, stages: {base: lab/base, instruct: lab/instruct}}"),
        *("--set", "candidates=2", "--set", "top_share=0.5", "--set", "execution.device=cpu"),
        env=offline,
    )
    assert weights.returncode == 0, weights.stderr


@pytest.mark.slow
def test_what_cannot_be_fetched_says_why(tmp_path, repositories, job):
    with hub(repositories, gated=["lab/base"]) as (address, _):
        online = {**variables(tmp_path, address), "HF_HUB_OFFLINE": "0"}
        done = posttrace_anew("fetch", job, env=online)
        assert done.returncode == 2 and "accept its licence at https://huggingface.co/lab/base" in done.stderr
        done = posttrace_anew("fetch", job, "--set", "family.stages.base=lab/bsae", env=online)
        assert done.returncode == 2 and "model lab/bsae: not to be had from the hub" in done.stderr
        (repositories / "lab/instruct/adapter_config.json").write_text("{}")
        done = posttrace_anew("fetch", job, "--set", "stages=[instruct]", env=online)
        assert done.returncode == 2 and "a PEFT adapter" in done.stderr
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        done = posttrace_anew("check", job, "--set", "stages=[instruct]", env=online)
        assert done.returncode == 1 and "a PEFT adapter" in done.stdout


def test_only_the_weights_that_are_read_are_wanted():
    index = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    files = ["config.json", "model.safetensors.index.json", *index.values(), "model-9.safetensors", "x.bin"]
    assert wanted(files, True, lambda: index) == [
        "config.json",
        "model.safetensors.index.json",
        *index.values(),
    ]
    assert wanted([*files, "model.safetensors"], True, lambda: index) == ["config.json", "model.safetensors"]
    assert wanted(files, False, lambda: index) == ["config.json"]


@pytest.mark.slow
def test_every_family_has_a_base_a_licence_and_stages_that_are_hub_ids():
    for name, stages in families().items():
        assert next(iter(stages)) == "base" and about_families()[name].startswith("licence ")
        if not name.startswith("embedded"):
            assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in stages.values()), name
    job = load_job("knowledge", ["family=olmo-2-1b"])
    assert list(job.stage_names) == ["base", "sft", "dpo", "instruct"]
    listed = posttrace("ls", "models").stdout
    assert "accept it on the hub first" in next(
        line for line in listed.splitlines() if line.startswith("llama-2-7b")
    )
