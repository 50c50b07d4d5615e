"""A `stages` job that trains the later stages again: against plain PyTorch, resumed, and refused elsewhere."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.figures.rendering import render
from posttrace.pipeline.embedded import STAGES, train
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import fingerprint, prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.study import Study
from posttrace.stores import open_group
from tests.support.training import by_pytorch

PROMPTS = ["The city of Lyon is in", "Explain how to"]
TINY = {
    "base": replace(train.RECIPES["base"], steps=2, warmup=1, rows=2, row=32),
    "sft": replace(train.RECIPES["sft"], steps=3, warmup=1, rows=2, row=32, learning_rate=1e-2),
    "instruct": replace(train.RECIPES["instruct"], steps=5, warmup=1, rows=2, learning_rate=3e-3),
    "narrow": replace(train.RECIPES["narrow"], steps=3, warmup=1, rows=2, row=32, learning_rate=3e-3),
}
FINAL = STAGES[-1]


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family of one small block, trained for a few steps."""
    monkeypatch.setattr(train, "RECIPES", TINY)
    monkeypatch.setattr(train, "compiled", lambda forward: forward)
    train.train(tmp_path / "family", shape=train.Shape(1, 32, 48, 2), recipes=TINY)
    return tmp_path / "family"


def job_of(folder, family, stages=STAGES, **keys):
    mine = {"name": "mine", "prompts": PROMPTS, "answers": [" the", " in"]}
    raw = {"study": "stages", "family": {"name": "tiny", "stages": {s: str(family / s) for s in stages}}}
    raw |= {"behaviours": [mine], "swaps": [], "controls": 0, "execution": {"device": "cpu"}} | keys
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_job(str(folder / "job.yaml"))


class Plain:
    """The checkpoints of a family, and the behaviour as plain PyTorch computes it."""

    def __init__(self, family):
        load = AutoModelForCausalLM.from_pretrained
        self.model = load(family / FINAL, dtype=torch.float32).eval()
        self.weights = {s: load(family / s, dtype=torch.float32).state_dict() for s in STAGES}
        tokenizer = AutoTokenizer.from_pretrained(family / FINAL)
        self.ids = [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in PROMPTS]
        self.answers = tokenizer.convert_tokens_to_ids(["Ġthe", "Ġin"])

    def f(self, weights):
        self.model.load_state_dict(weights)
        with torch.no_grad():
            logits = torch.stack([self.model(ids).logits[0, -1, self.answers] for ids in self.ids])
        return (logits[:, 0] - logits[:, 1]).numpy()

    def trained_again(self, start):
        """The final weights if the stages after sft begin at `start`."""
        encoder, weights = train.Encoder(), self.weights[start]
        for stage in STAGES[STAGES.index("sft") + 1 :]:
            recipe = TINY[stage]
            data = [train.batches_of(encoder, recipe, step, f"0-{stage}") for step in range(recipe.steps)]
            weights = by_pytorch(self.model, recipe, data, weights)[0]
        return weights


@pytest.mark.slow
def test_later_stages_are_trained_again_and_goes_on_where_it_was_stopped(family, tmp_path, monkeypatch):
    job, run, ran = job_of(tmp_path / "job", family, recipe="embedded"), Study.run, []

    def stopping(self, work, model, store):
        if work.kind == "retrain" and "stop" not in ran:
            ran.append("stop")
            raise KeyboardInterrupt
        ran.append(work.unit.id)
        return run(self, work, model, store)

    monkeypatch.setattr(Study, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, str(tmp_path / "store"), say=lambda line: None)
    store = run_job(job, str(tmp_path / "store"), say=lambda line: None)
    assert sorted(unit for unit in ran if unit != "stop") == sorted(store.units), "a unit was done twice"
    assert ran.count("stages/replay/sft") == 1 and "stages/retrain/sft/0001" in ran

    plain, data = Plain(family), open_group(store, "stages/mine")
    f = {stage: plain.f(weights) for stage, weights in plain.weights.items()}
    np.testing.assert_allclose(data["behaviour"], [f[stage] for stage in STAGES], atol=1e-5)
    retrained = data["retrained"].sel(without="sft").values
    np.testing.assert_allclose(retrained[0], plain.f(plain.trained_again("base")), atol=1e-4)
    assert 1e-4 < np.abs(retrained[1] - retrained[0]).max() < np.abs(retrained[0] - f[FINAL]).max()
    np.testing.assert_allclose(data["replayed"][0], plain.f(plain.trained_again("sft")), atol=1e-4)
    np.testing.assert_allclose(data["replayed"][0], f[FINAL], atol=0.02)  # that one is rounded to bfloat16

    final, moved = plain.weights[FINAL], store.read("stages", "propagated_update")[0]
    update = {name: plain.weights["sft"][name] - plain.weights["base"][name] for name in final}
    parts = torch.from_numpy(moved).split([weight.numel() for weight in final.values()])
    propagated = {name: part.view(final[name].shape) for name, part in zip(final, parts, strict=True)}
    for name, removed in (("task_vector", update), ("propagated", propagated)):
        wanted = plain.f({key: weight - removed[key] for key, weight in final.items()})
        np.testing.assert_allclose(data["estimate"].sel(without="sft", estimator=name), wanted, atol=1e-4)
    h = 1e-3
    ends = [plain.f({key: w + sign * h * propagated[key] for key, w in final.items()}) for sign in (1, -1)]
    linear = f[FINAL] - (ends[0] - ends[1]) / (2 * h)
    found = data["estimate"].sel(without="sft", estimator="propagated_linear")
    np.testing.assert_allclose(found, linear, atol=0.01)
    assert np.abs(found - f[FINAL]).max() > 0.05

    names = [path.name for path in render(store.url, tmp_path / "figures")]
    assert {"stages_estimators.csv", "scatter.png"} <= set(names)


@pytest.mark.slow
def test_a_family_that_was_trained_in_part_has_a_recipe_too(family, tmp_path):
    written = json.loads((family / "training.json").read_text())
    del written["narrow"]
    (family / "training.json").write_text(json.dumps(written))
    shutil.rmtree(family / "narrow")
    job = job_of(tmp_path / "job", family, stages=STAGES[:3], recipe="embedded")
    run_job(job, str(tmp_path / "store"), say=lambda line: None)
    data = open_group(str(tmp_path / "store"), "stages/mine").load()
    assert data["retrained"].without.values.tolist() == ["sft"], "after the last update nothing is trained"
    np.testing.assert_allclose(data["replayed"][0], data["behaviour"][-1], atol=0.02)


@pytest.mark.slow
def test_recipes_are_refused_where_they_are_not_known(family, tmp_path):
    with_recipe = job_of(tmp_path / "job", family, recipe="embedded")
    assert fingerprint(prepare(with_recipe)) != fingerprint(prepare(job_of(tmp_path / "job", family)))
    plan = prepare(with_recipe)
    training = [work for work in plan.work if work.kind in ("replay", "retrain")]
    assert len(training) == 6 and all(plan.cost(work).multiply_adds > 1e6 for work in training)
    with pytest.raises(JobError, match="recipe: after the update of sft nothing is trained; take recipe out"):
        job_of(tmp_path / "job", family, stages=STAGES[:2], recipe="embedded")
    with pytest.raises(
        JobError, match=r"its stages are not base, sft, instruct, narrow, of one folder and in this order"
    ):
        prepare(job_of(tmp_path / "job", family, stages=("sft", "base", *STAGES[2:]), recipe="embedded"))
    (family / "training.json").unlink()
    unknown = (
        r"recipe: family tiny was not trained by .*What it would be without sft or instruct is unknown.*take "
        r"recipe out"
    )
    with pytest.raises(JobError, match=unknown):
        prepare(job_of(tmp_path / "job", family, recipe="embedded"))


@pytest.mark.slow
def test_a_plan_loads_what_threads_must_not():
    code = (
        "import sys; from posttrace.pipeline.job import load_job; from posttrace.pipeline.plan import prepare; "
        "name = 'torch._decomp.decompositions_for_jvp'; before = name in sys.modules; "
        "prepare(load_job('stages', ['recipe=embedded'])); print(before, name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
