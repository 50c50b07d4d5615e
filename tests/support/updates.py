"""Two stages of a small random model, and behaviours of it."""

import torch

from posttrace.tracers.engines.behaviours import Entropy, LogOdds, LogProbability, Row
from posttrace.tracers.models.loading import wrap
from tests.support.models import varied_module, word_tokenizer


def two_stages(name, size=0.1):
    """A random model as the later stage, the update (by parameter), and the earlier stage's weights."""
    module = varied_module(name)
    torch.manual_seed(1)
    with torch.no_grad():
        update = {n: size * p.std() * torch.randn(p.shape) for n, p in module.named_parameters()}
        earlier = {n: p - update[n] for n, p in module.named_parameters()}
    return wrap(module, word_tokenizer(), name=f"random-{name}", check=False), update, earlier


def questions():
    """A behaviour of every kind, over prompts of unequal length; the last one has two rows."""
    ids = [tuple((7 * i + 3 * j) % 200 + 3 for j in range(n)) for i, n in enumerate((6, 9, 5, 7, 8))]
    return [
        (Row(ids[0], (len(ids[0]) - 1,), LogOdds((5, 9), (6,))),),
        (Row(ids[1], (len(ids[1]) - 1,), LogOdds((5,), (6,), -1.0)),),
        (Row(ids[2], tuple(range(4)), LogProbability(ids[2][1:], -0.25)),),
        (Row(ids[3], tuple(range(6)), Entropy()),),
        (
            Row(ids[4], (6, 7), LogProbability((11, 12))),
            Row((*ids[4][:7], 13), (6, 7), LogProbability((13, 14), -1.0)),
        ),
    ]
