"""The benchmark of memory reads the checkpoint that it makes, in a process of its own, and the page tells of it."""

import json

import pytest

from benchmarks.page import page
from benchmarks.weights_memory import TINY, main, make_checkpoint
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.loading import empty_model
from posttrace.tracers.models.mlp_neurons import find_neurons


def test_a_sharded_checkpoint_of_the_wanted_shapes(tmp_path):
    size, shards = make_checkpoint(tmp_path / "made", TINY | dict(vocab_size=500), shard_bytes=20_000)
    files = sorted((tmp_path / "made").glob("*.safetensors"))
    assert len(files) == shards > 2 and sum(f.stat().st_size for f in files) == size
    neurons = find_neurons(empty_model(str(tmp_path / "made")))
    assert (neurons.vocabulary, neurons.n_neurons) == (500, 32)
    found = neuron_weights(str(tmp_path / "made"), neurons)
    assert (found.logit_var > 0).all() and len(set(found.logit_var.tolist())) == 32


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_page_has_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.weights_memory.SMALL", TINY)
    main(quick=True, json_file=tmp_path / "memory.json", folder=tmp_path, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["memory.json"], "the checkpoint is removed"
    run = json.loads((tmp_path / "memory.json").read_text())
    row = run["records"][0]
    assert row["largest_tensor_bytes"] == 2 * 64 * 16 and row["neurons"] == 32 and row["finite"]
    assert row["peak_total_bytes"] == row["peak_bytes"] + row["baseline_bytes"] > 0
    assert run["benchmark"] == "weights memory" and f"{run['records'][0]['shards']} shards" in page(tmp_path)
