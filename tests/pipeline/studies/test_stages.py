"""The study `stages`: its numbers against plain PyTorch, what its behaviours are, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.studies.stages import study as study_module
from posttrace.stores import Store, open_group
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.updates import Update
from tests.support.jobs import good_job
from tests.support.models import random_module


@pytest.fixture(scope="module")
def stages(inputs, shared):
    """Three checkpoints of one tiny Llama; the second update is a tenth of the first."""
    return shared("stages", lambda folder: write_stages(folder, inputs))


def write_stages(folder, inputs):
    module = random_module("llama", 0)
    for size, stage in ((0.0, "base"), (0.1, "sft"), (0.01, "instruct")):
        torch.manual_seed(len(stage))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(size * parameter.std() * torch.randn(parameter.shape))
        module.save_pretrained(folder / stage)
        for file in inputs.joinpath("model").glob("*token*"):
            shutil.copy(file, folder / stage)
        for file in inputs.joinpath("model").glob("*.jinja"):
            shutil.copy(file, folder / stage)


@pytest.fixture(scope="module")
def job(stages, inputs, tmp_path_factory):
    """Writes the job of the tests with some keys changed, and loads it."""

    def load(**keys):
        raw = good_job("stages", inputs) | {"max_prompts": 4} | keys
        names = keys.get("family", {s: str(stages / s) for s in ("base", "sft", "instruct")})
        raw["family"] = {"name": "tiny", "stages": names}
        path = tmp_path_factory.mktemp("job") / "job.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return load_job(str(path))

    return load


@pytest.fixture(scope="module")
def store(job, shared):
    def make(folder):
        run_job(job(), str(folder / "store"), say=lambda line: None)

    return Store.open(shared("stages-run", make) / "store")


class Plain:
    """The two ends of an update and the log-odds of a prompt, with nothing of this project."""

    def __init__(self, stages, earlier, later, prompt, true, false):
        load = AutoModelForCausalLM.from_pretrained
        self.earlier, self.later = (
            load(stages / s, dtype=torch.float32).state_dict() for s in (earlier, later)
        )
        self.model = load(stages / later, dtype=torch.float32).eval()
        self.prompt, self.true, self.false = prompt, true, false

    def f(self, weights):
        self.model.load_state_dict(weights)
        logits = self.model(torch.tensor([self.prompt])).logits[0, -1]
        return logits[self.true] - logits[self.false]

    def mixed(self, share):
        return {n: w + share * (self.later[n] - w) for n, w in self.earlier.items()}

    def attribution(self, layer, n_nodes):
        """Of the MLP of a block with the norm that feeds it, by token: slopes of outputs times what is added there."""
        names = [
            n for n in self.later if f"layers.{layer}.mlp." in n or f"layers.{layer}.post_attention" in n
        ]
        total = torch.zeros(len(self.prompt))
        for place, weight in zip(*np.polynomial.legendre.leggauss(n_nodes), strict=True):
            seen, hooks = {}, []
            for name in names:
                module = self.model.get_submodule(name.removesuffix(".weight"))

                def keep(module, inputs, output, name=name, seen=seen):
                    output.retain_grad()
                    seen[name] = inputs[0].detach(), output

                hooks.append(module.register_forward_hook(keep))
            f = self.f(self.mixed((place + 1) / 2))
            f.backward()
            for hook in hooks:
                hook.remove()
            for name, (x, y) in seen.items():
                change = self.later[name] - self.earlier[name]
                if change.dim() == 2:
                    added = x @ change.T
                else:
                    epsilon = self.model.config.rms_norm_eps
                    added = change * x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
                total += weight / 2 * (y.grad * added)[0].sum(-1)
        return total.detach().numpy()


@pytest.fixture(scope="module")
def plain(stages, store):
    data = open_group(store, "stages/verdict/cities")
    tokenizer = AutoTokenizer.from_pretrained(stages / "instruct")
    true, false = tokenizer.convert_tokens_to_ids([" TRUE", " FALSE"])
    labels = [str(t) for t in data["token_label"].values[0] if t]
    prompt = tokenizer.convert_tokens_to_ids(labels)
    sign = 1 if str(data["kind"].values[0]) == "true" else -1
    return Plain(stages, "base", "sft", prompt, true, false), sign


@pytest.mark.slow
def test_an_attribution_map_is_what_plain_pytorch_gives(store, plain):
    data, (reference, sign) = open_group(store, "stages/verdict/cities"), plain
    nodes = int(data["nodes"][0, 0])
    assert nodes >= 8
    for layer in (0, 2):
        found = data["attribution"].sel(update="sft", module="mlp", layer=layer)[0].values
        wanted = sign * reference.attribution(layer, 64)
        n = len(wanted)
        np.testing.assert_allclose(found[:n], wanted, atol=0.02 * np.abs(wanted).max() + 0.002)
        assert np.isnan(found[n:]).all()
    total = (
        np.nansum(data["attribution"].values, axis=(2, 3, 4))
        + np.nansum(data["attribution_embed"].values, axis=2)
        + data["attribution_unembed"].values
    )
    effect = np.diff(data["behaviour"].values, axis=0)
    np.testing.assert_allclose(total - effect, data["residual"], atol=1e-3)
    assert (np.abs(data["residual"].values) <= 0.02 * np.abs(effect) + 0.011).all()


@pytest.mark.slow
def test_a_swap_grid_is_what_plain_pytorch_gives(store, plain):
    data, (reference, sign) = open_group(store, "stages/verdict/cities"), plain
    halves = {"attn": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
    with torch.no_grad():
        before, after = (sign * float(reference.f(w)) for w in (reference.earlier, reference.later))
        assert float(data["behaviour"][0, 0]) == pytest.approx(before, abs=1e-4)
        for layer in range(3):
            for module, parts in halves.items():
                own = [n for n in reference.later if any(f"layers.{layer}.{part}." in n for part in parts)]
                assert len(own) in (4, 5)
                inserted = reference.earlier | {n: reference.later[n] for n in own}
                removed = reference.later | {n: reference.earlier[n] for n in own}
                at = dict(update="sft", layer=layer, module=module)
                insert, remove = (float(data[kind].sel(at)[0]) for kind in ("insert", "remove"))
                assert insert == pytest.approx(sign * float(reference.f(inserted)) - before, abs=5e-4)
                assert remove == pytest.approx(after - sign * float(reference.f(removed)), abs=5e-4)
        head = {n: reference.later[n] for n in ("model.norm.weight", "lm_head.weight")}
        end = float(data["insert_ends"].sel(update="sft", end="unembed")[0])
        assert end == pytest.approx(sign * float(reference.f(reference.earlier | head)) - before, abs=5e-4)
    f, cumulative = data["behaviour"].values, data["cumulative"].values
    for k in range(2):
        np.testing.assert_array_equal(cumulative[k, :, -1], np.stack([f[k + 1]] * 2))
        np.testing.assert_array_equal(cumulative[k, :, 0], np.stack([f[k]] * 2))


@pytest.mark.slow
def test_where_memory_is_short_a_second_checkpoint_is_read_again_and_nothing_changes(
    job, store, tmp_path, monkeypatch
):
    kept = []
    make = study_module.Streamed
    monkeypatch.setattr(study_module, "free_host_memory", lambda: 0)
    monkeypatch.setattr(study_module, "Streamed", lambda *a, keep: kept.append(keep) or make(*a, keep=keep))
    short = run_job(job(), str(tmp_path / "store"), say=lambda line: None)
    assert kept and not any(kept) and short.fingerprint == store.fingerprint
    for name in ("attribution", "residual", "insert", "remove", "cumulative", "removed", "control_removed"):
        for path in set(store.groups) - {"stages"}:
            np.testing.assert_array_equal(short.read(path, name), store.read(path, name), err_msg=name)


@pytest.mark.slow
def test_weights_held_as_their_bfloat16_files_have_them(job, stages, tmp_path):
    """In half the memory, with the numbers of float32, down to its spot checks."""
    for stage in ("base", "sft"):
        shutil.copytree(stages / stage, tmp_path / stage)
        AutoModelForCausalLM.from_pretrained(stages / stage, dtype=torch.bfloat16).save_pretrained(
            tmp_path / stage
        )
    keys = dict(family={s: str(tmp_path / s) for s in ("base", "sft")}, behaviours=["refusal"], controls=1)
    half, full = (
        run_job(job(**keys, dtype=dtype), str(tmp_path / dtype), say=lambda line: None)
        for dtype in ("bfloat16", "auto")
    )
    for path, group in full.groups.items():
        for array in group.arrays:
            found, wanted = (one.read(path, array.name) for one in (half, full))
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=array.name)
    with pytest.raises(JobError, match="dtype: bfloat16 would round the weights of stage base"):
        prepare(job(dtype="bfloat16"))


@pytest.mark.slow
def test_effects_and_removals(store, stages, plain):
    data, (reference, sign) = open_group(store, "stages/verdict/cities"), plain
    f = data["behaviour"].values
    np.testing.assert_allclose(data["removed"].sel(update="instruct", alpha=1), f[2] - f[1], atol=1e-3)
    final = AutoModelForCausalLM.from_pretrained(stages / "instruct", dtype=torch.float32).state_dict()
    with torch.no_grad():
        half = {n: w - 0.5 * (reference.later[n] - reference.earlier[n]) for n, w in final.items()}
        wanted = sign * float(reference.f(final) - reference.f(half))
    assert float(data["removed"].sel(update="sft", alpha=0.5)[0]) == pytest.approx(wanted, abs=5e-4)
    slope = data["slope"].values
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(
        slope[1, 1], slope[1, 2], rtol=1e-4, atol=1e-4
    )  # the last update ends at the last stage
    controls = data["control_removed"].values
    assert controls.shape == (2, 2, 2, 4) and np.abs(controls[0]).mean() > 3 * np.abs(controls[1]).mean()


@pytest.mark.slow
def test_norms_and_cosines_of_the_updates(store, stages):
    data = open_group(store, "stages")
    name = "model.layers.1.mlp.up_proj.weight"
    base, sft, instruct = (
        AutoModelForCausalLM.from_pretrained(stages / s, dtype=torch.float32).state_dict()[name].double()
        for s in ("base", "sft", "instruct")
    )
    at = dict(parameter=name)
    assert float(data["update_norm"].sel(at)[0]) == pytest.approx(float((sft - base).norm()), rel=1e-5)
    assert float(data["weight_norm"].sel(at)[1]) == pytest.approx(float(sft.norm()), rel=1e-6)
    assert float(data["changed"].sel(at)[0]) == pytest.approx(1.0, abs=0.01)
    cosine = torch.nn.functional.cosine_similarity((sft - base).flatten(), (instruct - sft).flatten(), 0)
    for one, other in (("sft", "instruct"), ("instruct", "sft")):
        found = float(data["update_cosine"].sel(**at, update=one, other_update=other))
        assert found == pytest.approx(float(cosine), abs=1e-6)


@pytest.mark.slow
def test_behaviours_of_ones_own(job, stages, tmp_path):
    """Log P of one answer, of one against another (of one token, or more), loss and entropy of texts."""
    prompts = ["The city of w1 is", "The city"]
    mine = [
        {"name": "one", "prompts": prompts, "answers": [" in w7"]},
        {"name": "two", "prompts": prompts, "answers": [" in", " of"]},
        {"name": "long", "prompts": prompts, "answers": [" in w7", " of"]},
        {"name": "asked", "prompts": ["w1"], "answers": ["I"], "chat": True},
        {"name": "text", "texts": ["The city of w1 is in w2."]},
        "answer",
        "entropy",
    ]
    keys = dict(behaviours=mine, text={"tokens": 12}, max_prompts=3, swaps=[], controls=0)
    study = prepare(job(**keys))
    assert {g.path for g in study.groups} >= {"stages/one", "stages/answer/cities", "stages/entropy"}
    store = run_job(job(**keys), str(tmp_path / "store"), say=lambda line: None)
    model = AutoModelForCausalLM.from_pretrained(stages / "sft", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stages / "sft")

    def log_p(text, n, **options):
        ids = tokenizer(text, return_tensors="pt", **options)["input_ids"]
        with torch.no_grad():
            found = model(ids).logits[0, :-1].log_softmax(-1)
        return float(found[range(ids.shape[1] - 1), ids[0, 1:]][-n:].sum())

    def values(name):
        return open_group(store, f"stages/{name}")["behaviour"].sel(model="sft").values

    for i, prompt in enumerate(prompts):
        one, of = log_p(f"{prompt} in w7", 2), log_p(f"{prompt} of", 1)
        assert values("one")[i] == pytest.approx(one, abs=1e-4)
        assert values("two")[i] == pytest.approx(log_p(f"{prompt} in", 1) - of, abs=1e-4)
        assert values("long")[i] == pytest.approx(one - of, abs=1e-4)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert values("asked")[0] == pytest.approx(log_p(f"{chat}I", 1, add_special_tokens=False), abs=1e-4)
    text = "The city of w1 is in w2."
    n = len(tokenizer(text)["input_ids"]) - 1
    assert values("text")[0] == pytest.approx(-log_p(text, n) / n, abs=1e-4)
    assert (values("answer/cities") < 0).all() and (values("entropy") > 0).all()
    found = open_group(store, "stages/long")
    total = np.nansum(found["attribution"].values, axis=(2, 3, 4)) + np.nansum(
        found["attribution_embed"], axis=2
    )
    effect = np.diff(found["behaviour"].values, axis=0)
    assert (
        np.abs(total + found["attribution_unembed"].values - effect) <= 0.02 * np.abs(effect) + 0.011
    ).all()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(behaviours=["verdict"], sets=[]), "verdict is asked of statements; give sets"),
        (dict(behaviours=["refusal", "refusal"]), "give each behaviour a name of its own"),
        (dict(behaviours=[{"name": "loss", "texts": ["a"]}]), r"\['loss'\]: give each behaviour a name"),
        (
            dict(behaviours=[{"name": "x", "prompts": ["a"], "texts": ["b"], "answers": ["c"]}]),
            "or texts alone",
        ),
        (
            dict(behaviours=[{"name": "x", "prompts": ["a"], "answers": ["b", "c", "d"]}]),
            "with 3 answers; give",
        ),
        (dict(behaviours=[{"name": "a/b", "texts": ["a"]}]), "no usable name"),
        (dict(alphas=[0.5, 0.5]), "has a value twice"),
        (dict(template="User: {x}"), "neither chat nor a text with"),
        (dict(stages=["sft"]), "give at least two"),
        (dict(dtype="float16"), "dtype"),
    ],
)
def test_jobs_that_make_no_sense(job, keys, words):
    with pytest.raises(JobError, match=words):
        job(**keys)


def test_prompts_that_cannot_be_read(job):
    mine = {"name": "x", "prompts": ["The city of Xyzzy"], "answers": [" is"]}
    with pytest.raises(
        JobError, match=r"behaviour x: stage instruct: .*words that the tokenizer does not know"
    ):
        prepare(job(behaviours=[mine]))
    with pytest.raises(TracerError, match="has no token; give it a text"):
        prepare(job(behaviours=[{"name": "x", "texts": [""]}]))


def changed_checkpoint(stages, folder, **config):
    shutil.copytree(stages / "sft", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_stages_whose_updates_mean_nothing(job, stages, tmp_path):
    wider = changed_checkpoint(stages, tmp_path / "wider", vocab_size=310)
    family = {"base": str(stages / "base"), "sft": str(wider)}
    with pytest.raises(
        JobError, match=r"embed_tokens.weight has shape \(300, 32\) in base and \(310, 32\) in sft"
    ):
        prepare(job(family=family))
    with pytest.raises(TracerError, match=r"base: model.embed_tokens.weight has shape \(300, 32\)"):
        _update(stages / "base", wider)
    adapter = changed_checkpoint(stages, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(TracerError, match=r"a PEFT adapter.*; merge it first"):
        prepare(job(family={"base": str(stages / "base"), "sft": str(adapter)}))
    quantised = changed_checkpoint(
        stages, tmp_path / "quantised", quantization_config={"quant_method": "fp8", "bits": 8}
    )
    with pytest.raises(JobError, match=r"stage sft: .* is quantised"):
        prepare(job(family={"base": str(stages / "base"), "sft": str(quantised)}))


def _update(earlier, later):
    from posttrace.tracers.models.loading import empty_model
    from posttrace.tracers.models.safetensors import Checkpoint

    return Update(empty_model(str(later)), Checkpoint(str(earlier)), Checkpoint(str(later)))
