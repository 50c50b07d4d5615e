"""Of a multimodal checkpoint, as it is published, the text model within is opened."""

import pytest
import torch
import transformers
from safetensors import safe_open

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.loading import empty_model, load_config, open_model
from posttrace.tracers.models.mlp_neurons import find_neurons
from tests.support.models import word_tokenizer
from tests.tracers.architectures.table import tiny_config

pytestmark = pytest.mark.slow

transformers.utils.logging.disable_progress_bar()

EYE = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
    head_dim=16, depth=1, num_heads=2, out_hidden_size=32, num_position_embeddings=16,
    vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
)  # fmt: skip
WRAPPERS = {
    "Gemma3": ("gemma3_text", EYE),
    "Gemma4": ("gemma4_text", None),
    "Llama4": ("llama4_text", EYE | dict(intermediate_size=128)),
    "Mistral3": ("mistral", EYE),
    "Qwen3_5": ("qwen3_5_text", EYE),
}
"""Family -> its text model's row in the table, and the sizes of what sees."""


@pytest.fixture(params=WRAPPERS)
def wrapper(request, tmp_path):
    text, eye = WRAPPERS[request.param]
    kind = getattr(transformers, f"{request.param}Config")
    seen = {} if eye is None else {"vision_config": _taken(type(kind().vision_config), eye)}
    torch.manual_seed(0)
    config = kind(text_config=tiny_config(text).to_dict(), **seen)
    module = getattr(transformers, f"{request.param}ForConditionalGeneration")(config).eval()
    module.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return module, str(tmp_path)


def _taken(kind, sizes):
    return {key: value for key, value in sizes.items() if hasattr(kind(), key)}


def test_the_text_model_within_gives_the_wrapper_s_logits(wrapper):
    module, folder = wrapper
    model = open_model(folder, device="cpu", dtype="float32")
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.nn._module(input_ids=ids).logits, module(input_ids=ids).logits)
    assert model.n_layers == load_config(folder).num_hidden_layers == 4
    with model.nn.trace(input_ids=ids):
        left = model.nn.layers[1].output.save()
    assert left.shape == (2, 9, 32)


def test_neurons_are_read_from_its_files(wrapper):
    module, folder = wrapper
    with safe_open(f"{folder}/model.safetensors", "pt") as stored:
        assert not any(name.startswith("model.layers") for name in stored.keys())
    structure = empty_model(folder)
    layer = {"Llama4ForCausalLM": 0}.get(type(structure).__name__)
    found = neuron_weights(folder, find_neurons(structure, layer))
    inner = module.get_decoder()
    block = getattr(inner, "model", inner).layers[-1 if layer is None else layer]
    down = (block.feed_forward if hasattr(block, "feed_forward") else block.mlp).down_proj.weight
    torch.testing.assert_close(found.norm, down.detach().double().norm(dim=0), rtol=1e-12, atol=0)
    assert found.logit_var.isfinite().all() and found.logit_var.std() > 0


def test_a_wrapper_without_a_text_model_of_its_own_says_so(tmp_path):
    transformers.Qwen2_5_VLConfig(architectures=["Qwen2_5_VLForConditionalGeneration"]).save_pretrained(
        tmp_path
    )
    with pytest.raises(TracerError, match=r"no text model for qwen2_5_vl_text of its own"):
        empty_model(str(tmp_path))
