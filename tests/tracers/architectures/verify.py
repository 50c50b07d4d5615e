"""Verify what one architecture offers, against plain PyTorch: forward hooks, autograd, and weights by hand."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.attribution import attribution_grid
from posttrace.tracers.engines.directions import mean_nll
from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.patching import patch_grid
from posttrace.tracers.engines.steered_answers import steered_answers
from posttrace.tracers.engines.steering import ablation
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.models.entropy_neurons import neuron_weights
from posttrace.tracers.models.loading import empty_model
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.models.validation import one_of_each_kind
from posttrace.tracers.prompts import Prompt

ANSWERS = (5, 6)
TOLERANCE = 2e-4
"""Of the largest value."""
NATS = 1e-4
"""Of whatever is measured in nats."""


def verify(model, folder) -> dict:
    """What `model` offers, each part of it compared; raises AssertionError where something differs.

    folder: an empty one, for a checkpoint.
    """
    module = model.nn._module
    drawn = torch.Generator().manual_seed(0)
    clean, corrupt = prompts(drawn), prompts(drawn)
    layers = sorted({*one_of_each_kind(model), model.n_layers - 1})
    for site in model.architecture.patchable:
        hooks = Hooks(model, site)
        source = read_statements(model, clean, site=site, layers=layers, answers=ANSWERS).values
        close(source, hooks.read(clean, layers), f"read {site}")
        grid = patch_grid(model, corrupt, source[None], site=site, layers=layers, answers=ANSWERS)
        close(grid.patched[0], hooks.grid(corrupt, source, layers), f"patch {site}", nats=True)
        estimate = attribution_grid(model, corrupt, source[None], site=site, layers=layers, answers=ANSWERS)
        change = estimate.patched[0] - estimate.unpatched[:, None, None]
        close(change, hooks.slopes(corrupt, source, layers), f"attribution {site}", nats=True)
    check_steering(model, module, corrupt, drawn)
    check_answers(model, module, corrupt)
    return {
        "class": type(module).__name__,
        "level": "whole passes" if model.architecture.whole else "full",
        "why": model.architecture.whole,
        "sites": list(model.architecture.patchable),
        "weights": check_weights(module, folder),
    }


def prompts(drawn) -> list[Prompt]:
    """Prompts of unequal length on prefixes of unequal length."""
    made = []
    for start, length in ((9, 3), (9, 3), (7, 2)):
        ids = tuple(torch.randint(3, 300, (start + length,), generator=drawn).tolist())
        made.append(Prompt("", ids, start, ((0, 0),) * length))
    return made


class Hooks:
    """Values at a site by PyTorch's own hooks on the modules, one prompt at a time."""

    def __init__(self, model, site: str):
        self.model, self.module, self.site = model, model.nn._module, site
        self.blocks = self.module.get_submodule(model.architecture.layers)
        self.heads, self.width = site_shape(model.config, site)

    @contextmanager
    def changed(self, layer: int, to):
        """Within, the value at the site of a block becomes to(value)."""
        form, block, site = self.model.architecture.form, self.blocks[layer], self.site
        entered = {}

        def of_tuple(out, change):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        def stream(value):
            if form.stream is None:
                return to(value)
            value = value.clone()
            value[form.stream] = to(value[form.stream])
            return value

        def half(value):
            added = value * form.factor
            if site == "resid_mid":
                return (to(entered["stream"] + added) - entered["stream"]) / form.factor
            return to(added) / form.factor

        def enter(_, args, kwargs):
            given = args[0] if args else kwargs["hidden_states"]
            entered["stream"] = given if form.stream is None else given[form.stream]
            if site != "resid_pre":
                return None
            return (
                ((stream(given), *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": stream(given)})
            )

        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if site == "resid_post":
                hook = block.register_forward_hook(lambda _, args, out: of_tuple(out, stream))
                stack.callback(hook.remove)
            elif site == "z":
                part = self.part(block, "heads")
                hook = part.register_forward_pre_hook(lambda _, args: (to(args[0]), *args[1:]))
                stack.callback(hook.remove)
            elif site != "resid_pre":
                part = self.part(block, "mlp_add" if site == "mlp_out" else "attn_add")
                stack.callback(part.register_forward_hook(lambda _, args, out: of_tuple(out, half)).remove)
            yield

    @contextmanager
    def each(self, layers, to):
        """Within, the value at the site of the i-th of the blocks becomes to(i, value)."""
        with ExitStack() as stack:
            for i, layer in enumerate(layers):
                stack.enter_context(self.changed(layer, partial(to, i)))
            yield

    def part(self, block, role: str):
        """The module that plays a role in a block of this kind."""
        for path in getattr(self.model.architecture, role):
            try:
                return block.get_submodule(path)
            except AttributeError:
                continue
        raise AssertionError(role)

    def logits(self, ids):
        return self.module(input_ids=torch.tensor(ids), use_cache=False).logits[:, -1]

    def read(self, some, layers):
        """dims prompt x (layer, head) x token x width, as `read_statements` gives them."""
        found = torch.full(
            (len(some), len(layers) * self.heads, max(len(p.statement) for p in some), self.width), torch.nan
        )
        for row, prompt in enumerate(some):
            kept = []
            with torch.no_grad(), self.each(layers, lambda _, value, kept=kept: kept.append(value) or value):
                self.logits([prompt.ids])
            values = torch.cat(kept)[:, prompt.start :].unflatten(-1, (self.heads, self.width))
            found[row, :, : len(prompt.statement)] = values.transpose(1, 2).flatten(0, 1)
        return found

    def grid(self, some, source, layers):
        """dims prompt x place x token: a batch of whole passes, each row with its own patch."""
        found = torch.full(source.shape[:3], torch.nan)
        for row, prompt in enumerate(some):
            n = len(prompt.statement)
            shape = (len(layers), self.heads, n)
            cells = list(itertools.product(*map(range, shape)))

            def to(i, value, row=row, cells=cells, prompt=prompt):
                value = value.clone()
                for cell, (layer, head, token) in enumerate(cells):
                    if layer == i:
                        part = slice(head * self.width, (head + 1) * self.width)
                        value[cell, prompt.start + token, part] = source[row, i * self.heads + head, token]
                return value

            with torch.no_grad(), self.each(layers, to):
                logits = self.logits([prompt.ids] * len(cells))
            found[row, :, :n] = (logits[:, ANSWERS[0]] - logits[:, ANSWERS[1]]).reshape(-1, n)
        return found

    def slopes(self, some, source, layers):
        """(source - own) . slope by autograd; dims prompt x place x token."""
        found = torch.full(source.shape[:3], torch.nan)
        for row, prompt in enumerate(some):
            n = len(prompt.statement)
            kept = []

            def to(_, value, kept=kept):
                kept.append(value.clone())
                return kept[-1].clone()  # which the block may change in place

            with torch.enable_grad(), self.each(layers, to):
                logits = self.logits([prompt.ids])[0]
            slopes = torch.autograd.grad(logits[ANSWERS[0]] - logits[ANSWERS[1]], kept)
            own, by = (
                torch.cat(values)[:, prompt.start :].unflatten(-1, (self.heads, self.width)).transpose(1, 2)
                for values in ([value.detach() for value in kept], slopes)
            )
            change = source[row, :, :n] - own.flatten(0, 1)
            found[row, :, :n] = (change * by.flatten(0, 1)).sum(-1)
        return found


def check_steering(model, module, some, drawn) -> None:
    """Eight tokens with a direction ablated everywhere and another added, and steered answers, against hooks."""
    direction, added = torch.randn(2, model.hidden_size, generator=drawn)
    layer, sites = model.n_layers // 2, model.architecture.sites
    add = Edit(site="resid_post", layers=(layer,), mode="add", values=added, coefficient=2.0)
    unit = direction / direction.norm()

    def without(value):
        return value - (value @ unit)[..., None] * unit

    with torch.no_grad(), ExitStack() as stack:
        for site in ("resid_pre", "resid_mid", "resid_post"):
            for block in range(model.n_layers) if site in sites else ():
                stack.enter_context(Hooks(model, site).changed(block, without))
        stack.enter_context(Hooks(model, "resid_post").changed(layer, lambda value: value + 2.0 * added))
        expected = []
        for prompt in some:
            ids = list(prompt.ids)
            for _ in range(8):
                ids.append(int(Hooks(model, "resid_post").logits([ids]).argmax()))
            expected.append(tuple(ids[len(prompt.ids) :]))
    edits = [*ablation(direction, sites, model.n_layers), add]
    done = generate(model, [p.ids for p in some], edits, None, max_new_tokens=8)
    assert done.ids == tuple(expected), f"steered generation: {done.ids} are not {expected}"
    at = Edit(site="resid_post", layers=(layer,), mode="add", values=added, columns=(-2, -1))
    found = steered_answers(model, some, [[None, at]] * len(some), answers=ANSWERS)

    def at_the_end(value):
        value = value.clone()
        value[:, -2:] += added
        return value

    expected = torch.empty(len(some), 2)
    for row, prompt in enumerate(some):
        for variant, to in enumerate((lambda value: value, at_the_end)):
            with torch.no_grad(), Hooks(model, "resid_post").changed(layer, to):
                p = Hooks(model, "resid_post").logits([prompt.ids])[0].softmax(-1)
            expected[row, variant] = p[ANSWERS[0]] - p[ANSWERS[1]]
    close(found, expected, "steered answers", least=1.0)


def check_answers(model, module, some) -> None:
    """Answer probabilities, and the likelihood of texts, against plain calls of the model."""
    texts = [(7, 8, 9), (7, 8, 9), (9, 4)]
    found, nll = read_answers(model, some, answers=ANSWERS), mean_nll(model, [p.ids for p in some], texts)
    for row, (prompt, text) in enumerate(zip(some, texts, strict=True)):
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([[*prompt.ids, *text]]), use_cache=False).logits[0]
        log_p = logits.log_softmax(-1)
        end = len(prompt.ids) - 1
        close(found.logit_diff[row], logits[end, ANSWERS[0]] - logits[end, ANSWERS[1]], "answers", nats=True)
        following = [log_p[end + i, token] for i, token in enumerate(text)][1:]
        close(nll[row], -torch.stack(following).mean(), "mean NLL", nats=True)


def check_weights(module, folder) -> str | None:
    """Why the neurons of the last block cannot be read from files; None where they can, and are right."""
    module.save_pretrained(folder)
    try:
        neurons = find_neurons(empty_model(str(folder)))
    except TracerError as error:
        return str(error).partition(": ")[2].partition(";")[0]
    found = neuron_weights(str(folder), neurons)
    down = module.get_submodule(neurons.block).get_submodule(neurons.down).weight.detach().double()
    w_out = down if neurons.rows else down.T
    norm = module.get_submodule(neurons.norm)
    x = 64 * torch.randn(1, neurons.hidden_size)
    with torch.no_grad():
        slope = ((norm(x[None]) - norm(-x[None])) / 2)[0, 0].double()
        moved = (norm(x[None]) - norm(x[None] + 100)).abs().max()
    centres = bool(moved < 0.1 * slope.abs().max())
    x = x[0].double() - (x[0].double().mean() if centres else 0)
    w_u = module.get_output_embeddings().weight.detach().double() * (slope * x.square().mean().sqrt() / x)
    if centres:
        w_u, w_out = (w - w.mean(1, keepdim=True) for w in (w_u, w_out))
    w_u = w_u - w_u.mean(0)
    cosines = (w_out / w_out.norm(dim=1, keepdim=True)) @ (w_u / w_u.norm(dim=1, keepdim=True)).T
    close(found.norm, w_out.norm(dim=1), "neuron norms")
    close(found.logit_var, cosines.var(dim=1), "LogitVar")
    return None


def close(found, expected, what: str, least: float = 0.0, nats: bool = False) -> None:
    """Check that values, NaN in the same places, differ by no more than rounding."""
    found, expected = found.detach(), expected.detach()
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: values are missing"
    scale = max(least, float(expected.nan_to_num().abs().max()))
    away = float((found - expected).nan_to_num().abs().max())
    allowed = NATS if nats else TOLERANCE * scale
    assert away <= allowed, f"{what}: {away:.3g} away, of values up to {scale:.3g}"
