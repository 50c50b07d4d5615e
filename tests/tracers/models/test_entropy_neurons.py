"""Norm and LogitVar from files are those of TransformerLens's processed weights, and bad files are refused."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models import entropy_neurons
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.loading import empty_model
from posttrace.tracers.models.mlp_neurons import find_neurons
from tests.support.models import random_module, varied_module

transformers.utils.logging.disable_progress_bar()


def processed(module, name, layer):
    """W_out (neuron x hidden) and W_U (hidden x vocabulary) as TransformerLens processes them, from the loaded model.

    fold_ln: W_U takes the final norm's scale, and a LayerNorm's centring; center_writing_weights: a LayerNorm model's
    W_out has mean 0 over the hidden dimension; center_unembed: W_U has mean 0 over the vocabulary.
    """
    if name == "gpt2":
        norm, w_out = module.transformer.ln_f, module.transformer.h[layer].mlp.c_proj.weight
        w_u = module.transformer.wte.weight.T
    elif name == "gpt_neox":
        norm, w_out = (
            module.gpt_neox.final_layer_norm,
            module.gpt_neox.layers[layer].mlp.dense_4h_to_h.weight.T,
        )
        w_u = module.lm_head.weight.T
    else:
        norm, w_out = module.model.norm, module.model.layers[layer].mlp.down_proj.weight.T
        w_u = module.lm_head.weight.T
    gamma = norm.weight.detach().double() + (1 if name.startswith("gemma") else 0)
    w_out, w_u = w_out.detach().double(), w_u.detach().double() * gamma[:, None]
    if isinstance(norm, torch.nn.LayerNorm):
        w_u = w_u - w_u.mean(0, keepdim=True)
        w_out = w_out - w_out.mean(1, keepdim=True)
    return w_out, w_u - w_u.mean(1, keepdim=True)


@pytest.mark.parametrize("layer", [None, 0])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "qwen2"])
def test_the_numbers_are_those_of_transformer_lens(tmp_path, name, layer):
    module = varied_module(name)
    module.save_pretrained(tmp_path)
    found = neuron_weights(str(tmp_path), find_neurons(empty_model(str(tmp_path)), layer))
    w_out, w_u = processed(module, name, 2 if layer is None else layer)
    cosines = (w_out / w_out.norm(dim=1, keepdim=True)) @ (w_u / w_u.norm(dim=0))
    torch.testing.assert_close(found.norm, w_out.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.logit_var, cosines.var(dim=1, unbiased=True), rtol=1e-9, atol=0)


def test_a_tied_unembedding_is_read_from_the_embedding(tmp_path):
    module = varied_module("llama")
    module.config.tie_word_embeddings = True
    module.tie_weights()
    module.save_pretrained(tmp_path)
    neurons = find_neurons(empty_model(str(tmp_path)))
    found = neuron_weights(str(tmp_path), neurons)
    module.lm_head.weight = torch.nn.Parameter(module.model.embed_tokens.weight.detach().clone())
    w_out, w_u = processed(module, "llama", 2)
    cosines = (w_out / w_out.norm(dim=1, keepdim=True)) @ (w_u / w_u.norm(dim=0))
    torch.testing.assert_close(found.logit_var, cosines.var(dim=1), rtol=1e-9, atol=0)


def test_files_that_name_tensors_without_the_model_s_prefix(tmp_path):
    """As those of GPT-2 on the hub do, whose unembedding is `wte.weight`."""
    varied_module("gpt2").save_pretrained(tmp_path)
    neurons = find_neurons(empty_model(str(tmp_path)))
    expected = neuron_weights(str(tmp_path), neurons)
    stored = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in stored.items()}
    assert "wte.weight" in bare and "lm_head.weight" not in bare
    save_file(bare, tmp_path / "model.safetensors")
    assert torch.equal(neuron_weights(str(tmp_path), neurons).logit_var, expected.logit_var)


def test_shards_and_blocks_change_nothing(tmp_path, monkeypatch):
    module = varied_module("llama")
    module.save_pretrained(tmp_path / "one")
    module.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    neurons = find_neurons(empty_model(str(tmp_path / "one")))
    one = neuron_weights(str(tmp_path / "one"), neurons)
    # Seven rows, of 300 and of 64.
    monkeypatch.setattr(entropy_neurons, "BLOCK_BYTES", 7 * 8 * neurons.hidden_size)
    many = neuron_weights(str(tmp_path / "many"), neurons)
    torch.testing.assert_close(many.norm, one.norm, rtol=1e-13, atol=0)
    torch.testing.assert_close(many.logit_var, one.logit_var, rtol=1e-11, atol=0)


def test_bfloat16_weights_are_taken_as_they_are(tmp_path):
    module = varied_module("llama").to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    found = neuron_weights(str(tmp_path), find_neurons(empty_model(str(tmp_path))))
    w_out, _ = processed(module, "llama", 2)
    torch.testing.assert_close(found.norm, w_out.norm(dim=1), rtol=1e-12, atol=0)


def test_only_the_shards_in_use_are_needed(sharded):
    used = {"lm_head.weight", "model.norm.weight", "model.layers.2.mlp.down_proj.weight"}
    where = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {where[name] for name in used}
    removed = [f for f in sharded.glob("*.safetensors") if f.name not in needed]
    assert removed
    before = neuron_weights(str(sharded), find_neurons(empty_model(str(sharded))))
    for file in removed:
        file.unlink()
    after = neuron_weights(str(sharded), find_neurons(empty_model(str(sharded))))
    assert torch.equal(before.logit_var, after.logit_var)


@pytest.fixture
def sharded(tmp_path):
    varied_module("llama").save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    return tmp_path / "sharded"


def refused(folder):
    with pytest.raises(TracerError) as caught:
        neuron_weights(str(folder), find_neurons(empty_model(str(folder))))
    return str(caught.value)


def test_pickled_weights_are_refused(tmp_path):
    module = varied_module("llama")
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    said = refused(tmp_path)
    assert "pickled (pytorch_model.bin)" in said and "convert them to safetensors" in said


def test_no_weights_at_all(tmp_path):
    varied_module("llama").config.save_pretrained(tmp_path)
    assert "neither model.safetensors nor model.safetensors.index.json" in refused(tmp_path)


def test_a_missing_shard_is_named(sharded):
    where = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    shard = where["lm_head.weight"]
    (sharded / shard).unlink()
    assert f"puts lm_head.weight in {shard}, which is not there" in refused(sharded)


def test_an_index_that_names_an_absent_tensor(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    wrong = next(s for s in shards if s != content["weight_map"]["lm_head.weight"])
    content["weight_map"]["lm_head.weight"] = wrong
    index.write_text(json.dumps(content))
    assert f"puts lm_head.weight in {wrong}, which lacks it" in refused(sharded)


def test_an_index_that_leads_out_of_the_folder(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    assert "names files outside the checkpoint" in refused(sharded)
    index.write_text("{")
    assert "is not readable" in refused(sharded)


def test_a_file_cut_short(tmp_path):
    varied_module("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(tmp_path)
    file.write_bytes(whole[:40])
    assert "cut short" in refused(tmp_path)


def test_a_checkpoint_without_its_unembedding(tmp_path):
    module = varied_module("llama")
    module.save_pretrained(tmp_path)
    module.config.vocab_size = 299
    module.config.save_pretrained(tmp_path)
    neurons = find_neurons(empty_model(str(tmp_path)))
    assert neuron_weights(str(tmp_path), neurons).norm.shape == (64,)  # the file's own vocabulary counts
    module.model.save_pretrained(tmp_path / "headless")
    shutil.copy(tmp_path / "config.json", tmp_path / "headless")
    assert "no tensor lm_head.weight" in refused(tmp_path / "headless")


def test_files_that_do_not_fit_their_config(tmp_path):
    module = varied_module("llama")
    module.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 48'))
    assert "has shape (32, 64), its config.json asks for (32, 48)" in refused(tmp_path)


@pytest.mark.parametrize("shards", ["50GB", "30KB"])
def test_a_hub_id_is_read_from_its_cache(tmp_path, monkeypatch, shards):
    """As the hub's client lays it out; with no network, and of several files only those in use there."""
    from huggingface_hub import constants

    place = tmp_path / "models--someone--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    folder = place / "snapshots" / "c0ffee"
    varied_module("llama").save_pretrained(folder, max_shard_size=shards)
    neurons = find_neurons(empty_model(str(folder)))
    expected = neuron_weights(str(folder), neurons)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(neuron_weights("someone/model", neurons).logit_var, expected.logit_var)
    with pytest.raises(
        TracerError, match=r"nobody/none: no such folder, and neither model.safetensors nor .* is to be had"
    ):
        neuron_weights("nobody/none", neurons)


def test_a_layer_out_of_range():
    with pytest.raises(TracerError, match="layer: 3 is not in 0-2"):
        find_neurons(random_module("llama"), 3)


def test_a_mixture_of_experts_has_no_single_list_of_neurons():
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(TracerError, match="block 0 has experts, not a single list of neurons"):
        find_neurons(module)
