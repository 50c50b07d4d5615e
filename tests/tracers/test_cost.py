"""What the planner counts is what the engine runs."""

import torch

from posttrace.tracers.batching import prefix_cache
from posttrace.tracers.cost import Cost, cells_cost, run_cost, shape_of
from posttrace.tracers.engines import activations, patching
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import first_block, grid_plan, patch_grid
from tests.support.models import random_model
from tests.support.prompts import ANSWERS, prompts


def test_the_count_equals_the_multiply_adds_of_every_linear_layer_and_attention(monkeypatch):
    """Counted by hooks on the real modules and by the shapes that attention sees, for one grid on two prefixes."""
    model = random_model("llama")
    shapes, n_sources = [(9, 4), (9, 4), (7, 4)], 2
    rng = torch.Generator().manual_seed(0)
    options = dict(site="resid_post", layers=range(model.n_layers), answers=ANSWERS)
    corrupt = prompts(rng, shapes)
    source = torch.stack(
        [read_statements(model, prompts(rng, shapes), **options).values for _ in range(n_sources)]
    )

    seen = {"linear": 0, "attention": 0, "forwards": 0}
    blocks = model.nn._module.model.layers
    for module in blocks.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda m, args, out: seen.update(
                    linear=seen["linear"] + args[0].numel() // m.in_features * m.weight.numel()
                )
            )
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, value, **kwargs):
        rows, heads, slots, size = query.shape
        seen["attention"] += 2 * rows * heads * slots * key.shape[2] * size
        return attend(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for module, name in [
        (prefix_cache, "_run_prefixes"),
        (activations, "_trace_read"),
        (patching, "trace_cells"),
    ]:
        traced = getattr(module, name)

        def once(*args, traced=traced, **options):
            seen["forwards"] += 1
            return traced(*args, **options)

        monkeypatch.setattr(module, name, once)
    patch_grid(model, corrupt, source, **options)

    shape = shape_of(model.nn._module)
    expected = run_cost(shape, [9, 7], [4, 4, 4])
    for packed, which in grid_plan(
        [4, 4, 4], None, n_sources=n_sources, site="resid_post", layers=range(3), n_layers=3
    ):
        expected += cells_cost(
            shape, packed, [first_block(layer, "resid_post") for layer in which], n_keys=9 + 4
        )
    norms = 2 * 32  # a block's two norms have weights but no multiply-adds in a linear layer
    assert expected.forwards == seen["forwards"]
    counted_tokens = (expected.multiply_adds - seen["linear"] - seen["attention"]) / norms
    assert counted_tokens == int(counted_tokens) and 0 < counted_tokens < 1000
    assert expected.multiply_adds < 1.01 * (seen["linear"] + seen["attention"])


def test_costs_add_up():
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
