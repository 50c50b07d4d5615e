"""Replaying a stage of training, and a change of its start, against plain PyTorch training."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from posttrace.pipeline.embedded import CHECKPOINTS, train
from posttrace.pipeline.embedded.corpus import Mix
from posttrace.pipeline.embedded.replay import ATTENTION, Trained, model_loss, plain_attention, trained
from tests.support.training import by_pytorch

TEXT = train.Recipe(
    steps=4, learning_rate=1e-3, warmup=2, curriculum=((1.0, Mix(1.0, 0.0, 0.0, 0.0)),), rows=2, row=32
)
PREFERENCES = replace(
    train.RECIPES["instruct"], steps=4, learning_rate=1e-3, warmup=2, rows=2, weight_decay=0.05, beta=0.5
)


class Norm(nn.Module):
    """What Llama's norm computes, in the precision of its input."""

    def __init__(self, weight, epsilon):
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()


@pytest.fixture(scope="module")
def precise():
    """A random model of two blocks in float64, and its weights."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, plain_attention)
    shape = train.Shape(layers=2, hidden=16, feed_forward=24, heads=2)
    model = train.new_model(shape, train.Encoder(), seed=0).double().eval()
    model.config._attn_implementation = ATTENTION
    for path, module in list(model.named_modules()):
        if "Norm" in type(module).__name__:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, Norm(module.weight, module.variance_epsilon))
    return model, {name: one.detach().clone() for name, one in model.named_parameters()}


def data_of(recipe):
    encoder = train.Encoder()
    drawn = [train.batches_of(encoder, recipe, step, "0-test") for step in range(recipe.steps)]
    return [tuple(train.Batch(**vars(b) | {"weights": b.weights.double()}) for b in step) for step in drawn]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "clip"), [(TEXT, 0.86), (PREFERENCES, 1.0)], ids=["text", "preferences"])
def test_a_change_of_the_start_becomes_what_finite_differences_of_training_give(
    precise, recipe, clip, monkeypatch
):
    monkeypatch.setattr(train, "CLIP", clip)
    (model, start), data = precise, data_of(recipe)
    torch.manual_seed(0)
    change = {name: 0.1 * torch.randn_like(weight) for name, weight in start.items()}
    weights, moved = trained(model_loss(model, recipe, data), recipe, start, change)
    plain, norms = by_pytorch(model, recipe, data, start)
    assert max(norms) > clip, "no gradient was clipped"
    h = 1e-8  # with a larger h, AdamW is not linear where a gradient is nearly 0
    sides = [
        by_pytorch(model, recipe, data, {name: start[name] + sign * h * change[name] for name in start})[0]
        for sign in (1, -1)
    ]
    for name, weight in plain.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-11)
        wanted = (sides[0][name] - sides[1][name]) / (2 * h)
        assert float((wanted - change[name]).norm()) > 0.01, f"training did nothing to the change of {name}"
        miss = float((moved[name] - wanted).norm() / (wanted - change[name]).norm())
        assert miss < 5e-5, f"{name}: {miss}"


@pytest.mark.slow
def test_no_change_stays_none(precise):
    model, start = precise
    nothing = {name: torch.zeros_like(weight) for name, weight in start.items()}
    loss = model_loss(model, PREFERENCES, data_of(PREFERENCES))
    weights, moved = trained(loss, PREFERENCES, start, nothing)
    wanted, none = trained(loss, PREFERENCES, start)
    assert none is None and not any(tensor.any() for tensor in moved.values())
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-11)


def test_another_order_has_the_same_batches():
    family = Trained(CHECKPOINTS)
    first, second = ([step[0].ids for step in family.batches("instruct", order)] for order in (0, 1))
    assert [len(ids) for ids in first] == [16] * 40
    key = [ids.flatten().tolist() for ids in first]
    assert key != [ids.flatten().tolist() for ids in second]
    assert sorted(key) == sorted(ids.flatten().tolist() for ids in second)


def test_a_folder_that_training_did_not_write(tmp_path):
    with pytest.raises(ValueError, match=r"has no training\.json"):
        _ = Trained(tmp_path).seed
    (tmp_path / "training.json").write_text('{"base": {"seed": 0, "steps": 3}}')
    with pytest.raises(ValueError, match="base took 3 steps, not 4000"):
        _ = Trained(tmp_path).seed
