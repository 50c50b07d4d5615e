"""Every architecture of the table offers what the list of verified ones says, and what it offers is right."""

import pytest
import torch
import transformers

from posttrace.pipeline.cli import main
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import recognise
from posttrace.tracers.models.loading import empty_model, wrap
from posttrace.tracers.models.verified import verified
from tests.support.models import word_tokenizer
from tests.tracers.architectures.table import ROWS, tiny_module
from tests.tracers.architectures.verify import verify

pytestmark = pytest.mark.slow

COMMON = (
    "bloom", "codegen", "cohere2", "deepseek_v3", "falcon_h1", "gemma2", "gemma3_text-window", "glm4_moe", "gpt2",
    "gpt_neox", "gpt_neox_japanese", "gpt_oss-window", "granitemoe", "llama", "llama4_text", "mamba2", "minimax",
    "mistral-window", "mixtral", "olmo3", "opt-post_norm", "phi3", "qwen2", "qwen3", "qwen3_next", "smollm3",
)  # fmt: skip
"""Rows that `make test` tries: the families that people use most, and each way in which architectures differ."""
UNSEEN = {
    "gpt_neox_japanese": {"z", "attn_out", "resid_mid"},
    "llama4_text": {"mlp_out"},
    "minimax": {"attn_out", "resid_mid", "mlp_out"},
}
"""Sites that only running the model shows not to be there."""


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are so small that a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name", [name if name in COMMON else pytest.param(name, marks=pytest.mark.exhaustive) for name in ROWS]
)
def test_what_an_architecture_offers(name, tmp_path):
    module = tiny_module(name)
    model = wrap(module, word_tokenizer(), name=name)
    assert verify(model, tmp_path) == verified()[name]
    planned = recognise(module)
    assert set(planned.patchable) - set(model.architecture.patchable) == UNSEEN.get(name, set())
    assert planned.whole == model.architecture.whole


def test_the_list_has_no_other_architectures():
    assert verified().keys() == ROWS.keys()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("BertConfig", "is an encoder"),
        ("HrmTextConfig", "has no list of .* blocks"),
        ("T5Config", "describes an encoder-decoder"),
    ],
)
def test_what_cannot_be_traced_says_why(tmp_path, kind, why):
    getattr(transformers, kind)().save_pretrained(tmp_path)
    with pytest.raises(TracerError, match=why):
        recognise(empty_model(str(tmp_path)))


def test_the_list_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["ls", "architectures"])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown.keys() == ROWS.keys()
    assert shown["bloom"].startswith("whole passes; sites resid_pre, z") and "alibi" in shown["bloom"]
