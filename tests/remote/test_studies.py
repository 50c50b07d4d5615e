"""Every study through the loopback server gives the local store, and sends what it needs to and nothing else."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from posttrace.pipeline.embedded import CHECKPOINTS
from posttrace.pipeline.errors import JobError
from posttrace.stores import Store
from tests.support.models import mostly_slow
from tests.support.remote.studies import SMALL, assert_equal, overrides, run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("study", mostly_slow(SMALL, fast=["trace"]))
def test_a_study_through_the_server_gives_the_local_store(study, server, local, tmp_path):
    expected = local(study)
    store = run(study, "remote", tmp_path / "remote")
    assert_equal(store, expected)
    ran = server.since("run")
    assert ran and not any(one["foreign"] for one in ran)
    requests = [request for record in store.records().values() for request in record.get("requests", ())]
    assert len({request["job"] for request in requests}) == len(requests) == len(ran)
    assert all(request["server"]["nnsight"] == request["client"]["nnsight"] for request in requests)


@pytest.mark.slow
def test_estimates_of_the_patch_grid_too(server, local, tmp_path):
    more = ["method=attribution", "exact_share=0.5", "sets=[cities]", "stages=[base]"]
    expected = local("knowledge", *more)
    assert_equal(run("knowledge", "remote", tmp_path / "remote", *more), expected)


@pytest.mark.slow
def test_of_stages_a_server_gives_effects_alone(server, tmp_path):
    more = ["behaviours=[refusal, verdict, loss]", "sets=[cities]", "text={tokens: 24}", "max_prompts=4"]
    more += ["swaps=[]", "controls=0"]
    expected = run("stages", "local", tmp_path / "local", *more)
    store = run("stages", "remote", tmp_path / "remote", *more)
    ran = server.since("run")
    assert len(ran) == len(store.units) == 6 and not any(one["foreign"] for one in ran)
    for path, group in store.groups.items():
        assert [array.name for array in group.arrays] == ["behaviour"]
        values, wanted = (one.read(path, "behaviour") for one in (store, expected))
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    assert_equal(run("stages", "simulated", tmp_path / "remote", *more), store)


@pytest.mark.slow
def test_simulated_gives_the_local_store(local, tmp_path):
    more = ["sets=[cities]", "max_pairs=2"]
    expected = local("knowledge", *more)
    assert_equal(run("knowledge", "simulated", tmp_path / "simulated", *more), expected)


@pytest.mark.slow
def test_one_prompt_and_its_last_token(tmp_path):
    more = ["stages=[base]", 'prompts=["The city of Lyon is in"]']
    lens = "{op: lens, layers: [0, 7], tokens: all, top: 3}"
    more.append(f"operations=[{{op: read, site: resid_post, layers: [0], tokens: last}}, {lens}]")
    expected = run("trace", "local", tmp_path / "local", *more)
    assert_equal(run("trace", "simulated", tmp_path / "simulated", *more), expected)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """An interpreter whose site-packages hold this project as its wheel would put it there."""
    from tests.support.remote.isolation import make_environment

    folder = tmp_path_factory.mktemp("installed") / "environment"
    python = make_environment(folder)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "posttrace").symlink_to(ROOT / "posttrace")
    meta = site / "posttrace-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.4\nName: posttrace\nVersion: 1.0\n")
    (meta / "RECORD").write_text("posttrace/__init__.py,,\n")
    return python


@pytest.mark.slow
def test_from_site_packages_where_code_would_go_by_reference_and_without_any_network(
    server, local, installed, tmp_path
):
    """The real command line of an installed package; a hub that answers nothing must not be needed."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, not listening: whoever calls is refused
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}"
        more = ["sets=[cities]", "max_pairs=2", "stages=[base]"]
        done = subprocess.run(
            [installed, "-I", "-m", "posttrace", "run", "knowledge", "--store", tmp_path / "store"]
            + [part for one in overrides("knowledge", "remote", *more) for part in ("--set", one)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "HF_ENDPOINT": nowhere,
                "HTTPS_PROXY": nowhere,
                "HF_HOME": str(tmp_path / "hub"),
            },
        )
    assert done.returncode == 0, done.stderr
    assert "sent" in done.stderr and "received" in done.stderr, "people see what goes over the wire"
    assert server.key not in done.stdout + done.stderr
    assert not any(one["foreign"] for one in server.since("run"))
    assert_equal(Store.open(tmp_path / "store"), local("knowledge", *more))
    assert not [
        path
        for path in (tmp_path / "store").rglob("*")
        if path.is_file() and server.key.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_a_batch_of_a_within_model_grid_is_small_both_ways(server, tmp_path):
    store = run(
        "knowledge",
        "remote",
        tmp_path / "store",
        *("sets=[cities]", "stages=[base]", "max_pairs=16", "pairs_per_unit=16"),
    )
    [grid] = store.records()["knowledge/cities/grid/base/0000"]["requests"]
    assert grid["request_bytes"] < 200_000 and grid["result_bytes"] < 100_000


def test_python_of_this_test_is_not_the_server_s(running_server):
    assert running_server.log("start")[0]["prefix"] != sys.prefix


@pytest.mark.slow
def test_neurons_need_the_weights_and_say_so_before_anything_is_sent(server, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((CHECKPOINTS / "base" / name).read_bytes())
    stage = f"{{model: {tmp_path}, remote_key: posttrace/embedded-base}}"
    with pytest.raises(JobError, match="no safetensors files; neurons are found in the weights"):
        run("confidence", "remote", tmp_path / "store", "stages=[base]", f"family.stages.base={stage}")
    store = run(
        *("knowledge", "remote", tmp_path / "store", "stages=[base]", f"family.stages.base={stage}"),
        *("sets=[cities]", "max_pairs=2"),
    )
    assert not store.pending(), "the other studies need no weights"


@pytest.mark.slow
def test_activations_beyond_the_limit_are_told_before_anything_is_sent(server, tmp_path):
    more = ["sets=[cities]", "max_pairs=3", "pairs_per_unit=3", "execution.remote.max_request_mb=0.2"]
    with pytest.raises(JobError, match=r"sends 215,040 bytes .* set pairs_per_unit=2, name fewer stages"):
        run("knowledge", "remote", tmp_path / "store", *more)
    assert not (tmp_path / "store").exists() and server.since("post") == []
    assert not run("knowledge", "remote", tmp_path / "store", *more, "stages=[base]").pending()
