"""A model that is opened is the one that was meant, whole, and its sites are where they should be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors

from posttrace.tracers import TracerError
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import empty_model, open_model, placement
from posttrace.tracers.models.validation import check_sites
from posttrace.tracers.prompts import answer_ids, encode
from tests.support.models import CONFIGS, random_model, random_module, word_tokenizer


@pytest.fixture
def checkpoint(tmp_path):
    random_module("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(checkpoint, edit):
    weights = load_file(checkpoint / "model.safetensors")
    edit(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_passes_its_self_check(name):
    check_sites(random_model(name))


def test_a_site_that_is_misnamed_is_found_out():
    """The normed stream taken for the stream itself: a plausible shape, wrong sums."""
    from dataclasses import replace

    from nnsight import TransformersModel

    model = random_model("llama")
    wrong = replace(model.architecture, mid=("mlp",))
    nn = TransformersModel(
        random_module("llama"), tokenizer=model.tokenizer, task="text-generation", rename=wrong.rename
    )
    with pytest.raises(TracerError, match="site resid_mid"):
        check_sites(replace(model, nn=nn, architecture=wrong))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.9, 2, 2], {"device_map": "cuda:1"}),
        ([2, 2, 2], {"device_map": "cuda:0"}),
        ([0.7, 0.4, 0.7], {"device_map": "auto", "max_memory": {0: 0.7, 2: 0.7}}),
        ([0.2, 0.2, 0.2], {"device_map": "auto", "max_memory": {0: 0.2, 1: 0.2, 2: 0.2}}),
    ],
)
def test_auto_takes_the_fewest_gpus_that_hold_the_model(checkpoint, monkeypatch, times, expected):
    """times: free memory of each GPU, as a multiple of the weights."""
    size = 4 * sum(one.numel() for one in empty_model(str(checkpoint)).parameters())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(times))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (times[i] * size, 2 * size))
    placed = placement("auto", str(checkpoint), None, torch.float32)
    if "max_memory" in placed:
        placed["max_memory"] = {i: pytest.approx(free / size) for i, free in placed["max_memory"].items()}
    assert placed == expected


def test_weights_that_are_missing_are_not_made_up(checkpoint):
    change(checkpoint, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(TracerError, match=r"lack 1 of the weights.*lm_head\.weight"):
        open_model(str(checkpoint), device="cpu")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"),
            "cannot be loaded",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "t5"})),
            "no decoder-only",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_message(checkpoint, damage, words):
    damage(checkpoint)
    with pytest.raises(TracerError, match=words):
        open_model(str(checkpoint), device="cpu")


def test_pickled_weights_are_not_loaded(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(TracerError, match="safetensors"):
        open_model(str(checkpoint), device="cpu")


def test_the_identity_changes_with_any_tensor_and_with_the_tokenizer_alone(checkpoint, tmp_path):
    before = model_identity(str(checkpoint))
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "trainer_state.json").write_text("{}")
    assert model_identity(str(tmp_path / "elsewhere")) == before
    change(checkpoint, lambda weights: weights["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    assert model_identity(str(checkpoint)) != before
    config = tmp_path / "elsewhere" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert model_identity(str(tmp_path / "elsewhere")) != before


def test_a_tokenizer_that_ends_every_text_is_understood():
    tokenizer = word_tokenizer()
    plain = encode(tokenizer, "w1.\n", "w2 w3.")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("w1")["input_ids"][-1] == 2
    assert encode(tokenizer, "w1.\n", "w2 w3.") == plain
    assert answer_ids(tokenizer, "w2 w3.", [" TRUE", " FALSE"]) == (5, 6)


def test_a_device_that_is_not_there_is_named(checkpoint):
    with pytest.raises(TracerError, match="'cuda:99' is not on this machine"):
        open_model(str(checkpoint), device="cuda:99")
