"""Prompts of unequal length, directions and plain PyTorch hooks for the engines that steer and generate."""

from contextlib import contextmanager

import torch

from posttrace.tracers.engines.generation import Openings

OPENINGS = Openings(refusal=(11, 12), compliant=(21, 22, 23))
BLOCKS = {
    "llama": ("model.layers", "self_attn"),
    "mistral": ("model.layers", "self_attn"),
    "gpt2": ("transformer.h", "attn"),
    "gemma2": ("model.layers", "post_attention_layernorm"),
    "gpt_neox_sequential": ("gpt_neox.layers", "attention"),
    "gpt_neox": ("gpt_neox.layers", None),
}
"""Where plain hooks find the blocks, and in a block what is added before the MLP (None: the halves are parallel)."""


def prompts(seed=0, lengths=(3, 12, 7, 1, 12, 5)):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (n,), generator=rng).tolist() for n in lengths]


def vector(seed=0):
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


@contextmanager
def plain_hooks(module, name, change_pre, change_mid, change_post):
    """Forward hooks alone: each change gets the block's number and the stream, and gives the new stream."""
    blocks, added = BLOCKS[name]
    handles = []
    for number, block in enumerate(module.get_submodule(blocks)):
        entered = {}

        def before(_, args, kwargs, number=number, entered=entered):
            stream = change_pre(number, args[0] if args else kwargs["hidden_states"])
            entered["stream"] = stream
            return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

        def between(_, args, output, number=number, entered=entered):
            out = output[0] if isinstance(output, tuple) else output
            new = change_mid(number, entered["stream"] + out) - entered["stream"]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        def after(_, args, output, number=number):
            return change_post(number, output)

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        if added is not None:
            handles.append(block.get_submodule(added).register_forward_hook(between))
        handles.append(block.register_forward_hook(after))
    yield
    for handle in handles:
        handle.remove()
