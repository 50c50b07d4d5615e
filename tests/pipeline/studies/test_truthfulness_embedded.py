"""The study on the checkpoints that ship: truth is read in every stage, and effects are those of plain hooks."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.pipeline.spec import families
from posttrace.stores import open_group
from tests.support.models import probability_difference

SETS = ("cities", "animal_class", "inventors")
LAYERS = (2, 4)
CHANGES = [
    "stages=[base, instruct]",
    f"sets=[{', '.join(SETS)}]",
    "max_statements=24",
    f"intervene_layer={LAYERS[0]}",
    f"probe_layer={LAYERS[1]}",
    "samples=0",
    "execution.device=cpu",
]


@pytest.fixture(scope="module")
def store(shared):
    def make(folder):
        run_job(load_job("truthfulness", CHANGES), str(folder / "store"), say=lambda line: None)

    return shared("embedded-truth", make) / "store"


@pytest.mark.slow
def test_probes_find_truth_on_sets_left_out_and_transfer_from_base_to_instruct(store):
    data = open_group(str(store), "truthfulness").load().sel(layer=LAYERS[1], probe="mass_mean")
    own = data.accuracy.sel(source="instruct", target="instruct")
    transferred = data.accuracy.sel(source="base", target="instruct")
    assert float(own.mean()) >= 0.85
    assert float(abs(transferred - own).max()) <= 0.05
    assert float(data.cosine.sel(source="base", target="instruct").min()) > 0.9


@pytest.mark.slow
def test_early_layers_know_nothing_of_truth_yet(store):
    """The control of the test above: the same probe at chance, so that accuracy is not an accident of the labels."""
    data = open_group(str(store), "truthfulness").load()
    early = data.accuracy.sel(probe="mass_mean", source="base", target="base", layer=0)
    assert float(early.mean()) < 0.7


@pytest.mark.slow
def test_the_effect_of_a_transferred_direction_is_that_of_hooks_in_plain_transformers(store):
    """Where the effect is large: instruct steered along base's direction, and a random one of the same norm."""
    summary = open_group(str(store), "truthfulness").load()
    data = open_group(str(store), "truthfulness/cities").load()
    folder = families()["embedded"]["instruct"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    true, false = (tokenizer.encode(t, add_special_tokens=False)[0] for t in (" TRUE", " FALSE"))
    vector = torch.tensor(summary.direction.sel(model="base", held_out="cities", layer=LAYERS[1]).values)
    used = np.flatnonzero(~data.example.values)
    before, after = [], []
    for i in used:
        ids = tokenizer(str(data.prompt.values[i]), return_tensors="pt").input_ids
        period = ids.shape[1] - 5
        assert tokenizer.decode(ids[0, period]) == "."
        before.append(probability_difference(model, ids, true, false))
        steer = vector if data.label.values[i] == 0 else -vector
        hooks = [
            model.model.layers[layer].register_forward_hook(adding(steer, period))
            for layer in range(LAYERS[0], LAYERS[1] + 1)
        ]
        after.append(probability_difference(model, ids, true, false))
        for hook in hooks:
            hook.remove()
    np.testing.assert_allclose(data.p_diff.sel(direction="none", target="instruct")[used], before, atol=1e-4)
    np.testing.assert_allclose(data.p_diff.sel(direction="base", target="instruct")[used], after, atol=1e-4)
    y, before, after = data.label.values[used] == 1, np.array(before), np.array(after)
    up = (after[~y].mean() - before[~y].mean()) / (1 - before[~y].mean())
    down = (after[y].mean() - before[y].mean()) / (-1 - before[y].mean())
    assert abs(up + down) / 2 > 0.1, "no effect: nothing is tested"
    effect = summary.effect.set_index(direction="direction_name").sel(target="instruct", held_out="cities")
    assert float(effect.sel(direction="base")) == pytest.approx((up + down) / 2, abs=1e-4)
    controls = effect.sel(direction=[f"random-{i}" for i in range(20)])
    assert np.isfinite(controls).all() and float(controls.std()) > 0


@pytest.mark.slow
def test_a_direction_learned_on_other_sets_turns_answers_beyond_every_random_one(store):
    effect = open_group(str(store), "truthfulness").load().effect.set_index(direction="direction_name")
    random = effect.sel(direction=[f"random-{i}" for i in range(20)]).max("direction")
    for source in ("base", "instruct"):
        assert float((effect.sel(direction=source) - random).min()) > 0.1, source
    transferred = effect.sel(target="instruct", direction="base") - effect.sel(
        target="instruct", direction="instruct"
    )
    assert float(abs(transferred).max()) < 0.1


def adding(vector, period):
    def add(_module, _inputs, output):
        output = output.clone()
        output[0, [period - 1, period]] += vector
        return output

    return add
