"""Whatever is in a folder, it is one model for everything that reads it, or what is wrong is said before it is read."""

import json
import os
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrace.pipeline.cli import main
from posttrace.tracers import TracerError
from posttrace.tracers.models import hashes
from posttrace.tracers.models.files import folder_of
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import check_weights, load_config, load_tokenizer, open_model
from posttrace.tracers.models.safetensors import Checkpoint
from tests.support.models import random_module, word_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    random_module("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(original, tmp_path):
    return shutil.copytree(original, tmp_path / "ckpt" / "base")


def shards(folder, factor=1.0):
    """Write the weights, times a factor, as two shards with an index, next to whatever is there."""
    weights = {name: factor * value for name, value in load_file(folder / "model.safetensors").items()}
    names = sorted(weights)
    where = {}
    for n, some in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{n}-of-00002.safetensors"
        save_file({name: weights[name] for name in some}, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(some, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_read_alike(folder):
    """The weights that transformers loads are those that our reader finds."""
    loaded = open_model(str(folder), device="cpu", check=False).nn._module.state_dict()
    files = Checkpoint(str(folder))
    for name in ("lm_head.weight", "model.layers.2.mlp.down_proj.weight"):
        torch.testing.assert_close(files.tensor(name).read(), loaded[name], rtol=0, atol=0)
    return loaded["lm_head.weight"]


def test_both_readers_take_the_same_file_where_there_are_two(checkpoint):
    plain = assert_read_alike(checkpoint)
    shards(checkpoint, factor=2.0)
    torch.testing.assert_close(assert_read_alike(checkpoint), plain)
    (checkpoint / "model.safetensors").unlink()
    torch.testing.assert_close(assert_read_alike(checkpoint), 2 * plain)


def test_a_file_that_the_configuration_names_comes_first(checkpoint):
    weights = {name: 3 * value for name, value in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "other.safetensors", metadata={"format": "pt"})
    plain = assert_read_alike(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "other.safetensors"})
    )
    torch.testing.assert_close(assert_read_alike(checkpoint), 3 * plain)
    (checkpoint / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "../other.safetensors"})
    )
    with pytest.raises(TracerError, match="names weights elsewhere"):
        check_weights(str(checkpoint))


@pytest.mark.parametrize("installed", [False, True])
def test_an_adapter_is_refused_whatever_is_installed(checkpoint, monkeypatch, installed):
    (checkpoint / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"})
    )
    if installed:
        monkeypatch.setitem(sys.modules, "peft", types.ModuleType("peft"))
    for ask in (load_config, open_model, model_identity, check_weights):
        with pytest.raises(TracerError, match=r"a PEFT adapter.*merge_and_unload"):
            ask(str(checkpoint))
    (checkpoint / "config.json").unlink()
    with pytest.raises(TracerError, match="a PEFT adapter"):
        load_config(str(checkpoint))


def test_a_misspelled_folder_is_missing_and_no_hub_is_asked(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent.parent)
    for ask in (load_config, load_tokenizer, model_identity, Checkpoint):
        with pytest.raises(
            TracerError, match=r"ckpt/bsae: no such folder \(did you mean base\? ckpt has base\)"
        ):
            ask("ckpt/bsae")
    assert folder_of("ckpt/bsae", revision="main") is None, "with a revision it is a hub id"
    assert folder_of("elsewhere/base") is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: os.truncate(f / "model.safetensors", 90_000), "has 90,000 bytes, its header says"),
        (lambda f: os.truncate(f / "model.safetensors", 100), "was cut short"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs"), "Git LFS pointer"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "weights are pickled"),
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "weights are a GGUF file"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda f: (shards(f), (f / "model.safetensors").unlink(), (f / "model-00002-of-00002.safetensors").unlink()),
         "in model-00002-of-00002.safetensors, which is not there"),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole_are_told_from_their_headers(checkpoint, damage, words):
    damage(checkpoint)
    with pytest.raises(TracerError, match=words):
        check_weights(str(checkpoint))


def test_a_shard_that_lacks_what_the_index_promises(checkpoint):
    shards(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    known["weight_map"]["made.up"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(known))
    with pytest.raises(
        TracerError, match=r"puts made\.up in model-00001-of-00002\.safetensors, which lacks it"
    ):
        check_weights(str(checkpoint))


def test_a_folder_without_a_tokenizer_says_so(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(TracerError, match=r"no tokenizer there \(none of tokenizer\.json, "):
        load_tokenizer(str(checkpoint))


def test_a_quantised_checkpoint_is_refused_by_name_where_it_cannot_be_opened(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    for quantised in (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "of-tomorrow"},
    ):
        (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
        with pytest.raises(
            TracerError, match=rf"quantised \({quantised['quant_method']}\).*cannot open here"
        ):
            check_weights(str(checkpoint), device="cpu")


def test_a_file_written_anew_in_its_place_has_another_identity(checkpoint, monkeypatch, tmp_path):
    """Also where its size stays, its time is set back and only its last bytes differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 0)
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    file = checkpoint / "model.safetensors"
    read = []
    monkeypatch.setattr(
        hashes, "_hash", lambda file, plain=hashes._hash: read.append(file.name) or plain(file)
    )
    before = model_identity(str(checkpoint))
    assert "model.safetensors" in read
    read.clear()
    assert model_identity(str(checkpoint)) == before and read == [], "nothing changed: nothing is read"
    about = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_size == about.st_size and file.stat().st_mtime_ns == about.st_mtime_ns
    assert model_identity(str(checkpoint)) != before and read == ["model.safetensors"]


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "merges.txt"]
)
def test_another_tokenizer_is_another_model(checkpoint, name):
    before = model_identity(str(checkpoint))
    (checkpoint / name).write_text("{}")
    assert model_identity(str(checkpoint)) != before


def test_without_a_place_for_hashes_files_are_read_again(checkpoint, monkeypatch, tmp_path):
    before = model_identity(str(checkpoint))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(hashes, "LARGE", 0)
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    assert model_identity(str(checkpoint)) == before


def test_a_file_that_may_still_change_is_not_kept(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 0)
    model_identity(str(checkpoint))
    assert not (tmp_path / "cache").exists(), "it was written less than two seconds ago"


def cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_weights_of_another_kind(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_too_many_tokens(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([f"new{i}" for i in range(5000)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut_short, "model.safetensors"),
        (with_an_adapter, "a PEFT adapter"),
        (without_weights, "neither model.safetensors nor"),
        (with_weights_of_another_kind, "safetensors"),
        (with_too_many_tokens, "new4999"),
    ],
)
def test_check_says_in_a_line_what_is_wrong_with_a_folder(checkpoint, tmp_path, capsys, spoil, why):
    spoil(checkpoint)
    job = {
        "study": "trace",
        "family": {"name": "mine", "stages": {"base": str(checkpoint)}},
        "prompts": ["a new4999"],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "job.json")])
    (line,) = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1 and line.startswith("wrong ") and str(checkpoint) in line and why in line
