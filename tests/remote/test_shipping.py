"""Engines and arguments as bytes: what travels, what is refused before anything is sent."""

import importlib
import inspect
import io
import json
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from transformers import LlamaConfig

from posttrace import tracers
from posttrace.tracers.checked import checked_grid
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import PatchGrid
from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import Steer
from posttrace.tracers.prompts import encode
from posttrace.tracers.remote.keys import model_key
from posttrace.tracers.remote.request import request
from posttrace.tracers.remote.result import rebuilt
from posttrace.tracers.remote.serving import checksum, packed, raw
from posttrace.tracers.remote.shipping import shipped
from posttrace.tracers.remote.simulated import simulated
from posttrace.tracers.remote.view import weightless
from tests.support.models import random_model, word_tokenizer
from tests.support.remote import unfit
from tests.support.remote.asked import asked_of, some_prompts

NOT_ENGINES = {f"posttrace.tracers.models.{name}" for name in ("loading", "validation", "files", "identity")}

LOCAL_ONLY = {
    *(f"posttrace.tracers.engines.{name}" for name in ("behaviours", "path_attribution", "swaps", "weights")),
    *("posttrace.tracers.models.weighted", "posttrace.tracers.oracles.stages"),
}
"""Of the study `stages`, which needs the weights of two checkpoints: no server has both in one request."""


def engines():
    """Public functions of the tracers whose first argument is a model."""
    for info in pkgutil.walk_packages(tracers.__path__, "posttrace.tracers."):
        if (
            info.ispkg
            or info.name in NOT_ENGINES | LOCAL_ONLY
            or info.name.startswith("posttrace.tracers.remote.")
        ):
            continue
        module = importlib.import_module(info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            first = next(iter(inspect.signature(function).parameters), None)
            if function.__module__ == info.name and not name.startswith("_") and first == "model":
                yield pytest.param(function, id=f"{info.name}.{name}")


@pytest.mark.parametrize("engine", list(engines()))
def test_every_engine_travels_by_value(engine):
    blob, sources = shipped(engine)
    assert f"{engine.__module__}.{engine.__qualname__}" in sources
    assert names_in(blob).isdisjoint({"posttrace"})


def names_in(blob):
    """First parts of the modules that a pickle names."""
    found = set()

    class Looking(pickle._Unpickler):
        def find_class(self, module, name):
            found.add(module.partition(".")[0])
            return super().find_class(module, name)

    Looking(io.BytesIO(blob)).load()
    return found


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (unfit.decorated, "its decorator decorate would be lost"),
        (unfit.with_nonlocal, r"uses super\(\) or nonlocal"),
        (unfit.Child.name, r"uses super\(\) or nonlocal"),
        (unfit.importing, "imports posttrace.tracers.sites when it runs"),
        (unfit.with_foreign_module, "a server does not have the module"),
    ],
)
def test_what_would_run_otherwise_on_a_server_is_refused(engine, why, monkeypatch):
    monkeypatch.setattr("posttrace.tracers.remote.shipping.OURS", "tests")
    if engine is unfit.importing:
        monkeypatch.setattr("posttrace.tracers.remote.shipping.OURS", "posttrace.tracers")
        monkeypatch.setattr(engine, "__module__", "posttrace.tracers.example")
    with pytest.raises(TracerError, match=why):
        shipped(engine)


def test_a_lambda_in_an_argument_is_refused():
    model = random_model("llama")
    with pytest.raises(TracerError, match="<lambda> cannot be sent"):
        request(model, read_statements, ([],), {"key": lambda value: value}, dtype="torch.float32")


@pytest.fixture(scope="module")
def view():
    model = random_model("llama")
    return model


def test_a_simulated_run_gives_what_the_engine_gives():
    model = random_model("llama")
    prompts = some_prompts(model.tokenizer)
    options = dict(site="mlp_out", layers=(0, 2), answers=(5, 6))
    here, there = (m.run(read_statements, prompts, **options) for m in (model, simulated(model)))
    assert torch.equal(here.values.nan_to_num(), there.values.nan_to_num())
    assert torch.equal(here.logit_diff, there.logit_diff)


def test_a_view_of_a_large_tensor_takes_only_itself_along(view):
    large = torch.randn(1000, 1000)
    prompts = some_prompts(view.tokenizer)
    asked = request(view, checked_grid, (prompts, large[:1, :1]), {}, dtype="torch.float32")
    assert len(asked.blob) < 40_000
    assert asked.constants == 4


def test_a_request_holds_no_path_of_this_machine_and_no_key(view, monkeypatch, tmp_path):
    monkeypatch.setenv("NDIF_API_KEY", "not-to-be-sent-anywhere")
    config = LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    opened = weightless(str(tmp_path), None, model_key(str(tmp_path), key="some/model"), torch.float32)
    options = dict(site="resid_post", layers=(0, 1), answers=(5, 6))
    asked = request(
        opened, read_statements, (some_prompts(opened.tokenizer),), options, dtype="torch.float32"
    )
    sent = zstandard.ZstdDecompressor().decompress(asked.blob)
    for text in (
        str(tmp_path),
        str(Path(tracers.__file__).resolve().parents[1]),
        str(Path.home()),
        "not-to-be-sent",
    ):
        assert text.encode() not in sent, text


DIGEST = """
from tests.support.remote import unfit
from tests.support.models import random_model
from tests.support.remote.asked import asked_of
print(asked_of(random_model("llama")).digest)
"""


@pytest.mark.slow
def test_the_same_call_has_the_same_digest_in_another_process(view):
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert there.stdout.strip() == asked_of(view).digest, there.stderr


def test_another_argument_has_another_digest(view):
    prompts = some_prompts(view.tokenizer)
    options = dict(site="resid_post", layers=(0, 1), answers=(5, 6))
    digests = {
        request(view, read_statements, (given,), {**options, **more}, dtype=dtype).digest
        for given, more, dtype in [
            (prompts, {}, "torch.float32"),
            (prompts[:1], {}, "torch.float32"),
            (prompts, {"layers": (0, 2)}, "torch.float32"),
            (prompts, {}, "torch.bfloat16"),
        ]
    }
    assert len(digests) == 4


def test_results_of_every_kind_come_back_as_they_were():
    result = {
        "grid": PatchGrid(torch.tensor([[float("nan"), 1.0]]), torch.tensor([2.0])),
        "list": [torch.arange(3), (True, None, "text", -1)],
        "numbers": (0.1, float("inf")),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    back = rebuilt(packed(result))
    assert torch.equal(back["grid"].unpatched, result["grid"].unpatched)
    assert torch.equal(back["half"], result["half"]) and back["numbers"] == result["numbers"]
    assert torch.equal(back["list"][0], result["list"][0]) and back["list"][1] == result["list"][1]


def odd_strides():
    """Tensors of one value or column with strides that no fresh tensor has, all of them contiguous to torch."""
    values = torch.arange(24, dtype=torch.float32).view(4, 6)
    yield values[:1, :1]
    yield values[:, :1][2:3]
    yield values[:1, :1].expand(1, 1).as_strided((1, 1, 1), (5, 7, 9), 3)
    yield values.bfloat16()[1:2, 1:2]
    yield values[:, 2]  # not contiguous
    yield values.T
    yield values[:0]


@pytest.mark.parametrize("tensor", list(odd_strides()), ids=lambda t: f"{tuple(t.shape)}-{t.stride()}")
def test_tensors_travel_whatever_their_strides(tensor, view):
    plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    assert raw(tensor) == raw(plain) and checksum("", [tensor]) == checksum("", [plain])
    outcome = packed({"x": tensor})
    assert outcome["checksum"] == packed({"x": plain})["checksum"]
    assert torch.equal(rebuilt(outcome)["x"], plain)
    asked = [request(view, read_statements, (one,), {}, dtype="torch.float32") for one in (tensor, plain)]
    assert asked[0].digest == asked[1].digest


def test_a_server_cannot_name_a_class_of_its_choice():
    outcome = packed({"x": torch.zeros(1)})
    for name in (
        "subprocess:Popen",
        "posttrace.tracers.models.loading:open_model",
        "posttrace.tracers.remote.server:Server",
    ):
        outcome["structure"] = json.dumps({"data": [name, {}]})
        with pytest.raises(TracerError, match="no result of an engine"):
            rebuilt(outcome)


def test_operations_travel_with_their_defaults():
    blob, _ = shipped(Steer(direction="truth", mode="ablate"))
    there = pickle.loads(blob)
    assert type(there) is not Steer
    assert (there.direction, there.mode, there.coefficient) == ("truth", "ablate", 1.0)
    assert there.layers_of(3) == (0, 1, 2)


def test_a_batch_of_an_8b_model_is_small_both_ways(tmp_path):
    """32 blocks, 16 pairs of 25 tokens after four examples: the request, and its answer of incompressible numbers."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    key = model_key(str(tmp_path), key="meta-llama/Llama-3.1-8B")
    opened = weightless(str(tmp_path), None, key, torch.bfloat16)
    words = [f" w{i}" for i in range(90)]
    rng = torch.Generator().manual_seed(0)

    def text(n):
        return "".join(words[int(i)] for i in torch.randint(len(words), (n,), generator=rng))

    pairs = [
        [encode(opened.tokenizer, prefix, text(24) + ".") for _ in range(2)]
        for prefix in (text(100) + "\n" for _ in range(16))
    ]
    clean, corrupt = zip(*pairs, strict=True)
    others = torch.empty((0, 16, 32, 25, 4096), dtype=torch.bfloat16)
    options = dict(site="resid_post", layers=tuple(range(32)), answers=(5, 6), own=0, clean=clean, share=0.01)
    asked = request(opened, checked_grid, (corrupt, others), options, dtype="torch.bfloat16")
    assert len(asked.blob) < 200_000
    answer = io.BytesIO()
    torch.save({"outcome": packed(PatchGrid(torch.randn(1, 16, 32, 25), torch.randn(16)))}, answer)
    assert len(zstandard.compress(answer.getvalue())) < 100_000


def test_a_file_that_was_edited_since_it_was_loaded_is_not_shipped(tmp_path, monkeypatch):
    """Python keeps running what it has loaded, while a source would be read anew."""
    file = tmp_path / "tracers_example.py"
    file.write_text('"""An engine."""\n\n\ndef engine(model):\n    return 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("posttrace.tracers.remote.shipping.OURS", "tracers_example")
    module = importlib.import_module("tracers_example")
    shipped(module.engine)
    importlib.import_module("posttrace.tracers.remote.shipping")._source.cache_clear()
    file.write_text('"""An engine, edited."""\n\n\ndef engine(model):\n    return 2\n')
    with pytest.raises(TracerError, match="changed after this process had read it"):
        shipped(module.engine)


def test_another_constant_of_a_shipped_function_has_another_digest(view, monkeypatch):
    prompts, source = some_prompts(view.tokenizer), torch.zeros(1, 2, 1, 5, 32)
    options = dict(site="resid_post", layers=(0,), answers=(5, 6))

    def digest():
        return request(view, checked_grid, (prompts, source), options, dtype="torch.float32").digest

    before = digest()
    monkeypatch.setattr("posttrace.tracers.batching.packing.CAPACITY", 64)
    assert digest() != before
