"""Training of the embedded family as plain PyTorch does it: modules, a backward pass, its own optimizer."""

import torch
from torch import nn

from posttrace.pipeline.embedded import train


def by_pytorch(model, recipe, data, start):
    """Train a model from some weights on the batches of each step; return its weights and the gradients' norms."""
    model.load_state_dict(start)
    reference = {name: weight.clone() for name, weight in start.items()}
    groups = [{"params": [p for p in model.parameters() if (p.ndim == 2) == matrix],
               "weight_decay": recipe.weight_decay * matrix} for matrix in (True, False)]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, betas=train.BETAS, eps=train.EPSILON)
    norms = []

    def before(batch):
        with torch.no_grad():
            return train.logits_of(
                lambda ids, **inputs: torch.func.functional_call(model, reference, (ids,), inputs), batch
            )

    for step, batches in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(recipe, step)
        optimizer.zero_grad()
        train.loss_of(recipe, batches, lambda batch: train.logits_of(model, batch), before).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), train.CLIP)))
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, norms
