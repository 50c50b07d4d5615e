"""Read and write one site of one block, inside a tracing context.

Functions of a block are called within `with model.trace(...)`; nnsight serves values in forward order, so a site
may be asked for only after the ones before it.
"""

from __future__ import annotations

import torch


def get(block, site: str):
    """Value at `site` of `block` (float, dims batch x token x hidden; at `head_out` all heads side by side)."""
    if site == "resid_pre":
        return block.input
    if site == "head_out":
        return block.heads.input
    if site == "attn_out":
        return first(block.attn_add.output)
    if site == "resid_mid":
        return block.mid.input
    if site == "mlp_out":
        return first(block.mlp_add.output)
    return block.output


def change(block, site: str, to) -> None:
    """Replace the value at `site` of `block` by `to(value)`; dims batch x token x hidden.

    `resid_mid` is no module's output: the stream there is `resid_pre + attn_out`, so what attention adds is
    set to the value that makes the sum right.
    """
    if site == "resid_pre":
        block.input = to(block.input)
    elif site == "head_out":
        block.heads.input = to(block.heads.input)
    elif site == "attn_out":
        out = block.attn_add.output
        block.attn_add.output = with_first(out, to(first(out)))
    elif site == "resid_mid":
        entered = block.input
        out = block.attn_add.output
        block.attn_add.output = with_first(out, to(entered + first(out)) - entered)
    elif site == "mlp_out":
        out = block.mlp_add.output
        block.mlp_add.output = with_first(out, to(first(out)))
    else:
        block.output = to(block.output)


def put(block, site: str, rows, columns, values, head=0) -> None:
    """Replace `site` of `block` at the cells (rows[i], columns[i]) by values[i] (dims cell x hidden or head size).

    head: the head that the values are of, or dims cell; at other sites than `head_out` there is but one value.
    """
    change(block, site, lambda value: replaced(value, rows, columns, values, head))


def steered(hidden, vector, mode: str, coefficient: float = 1.0):
    """`hidden` (dims ... x hidden) pushed along `vector` (dims hidden), or without its component along it.

    >>> steered(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 0.0]), "ablate")
    tensor([[0., 4.]])
    """
    if mode == "ablate":
        return without(hidden, (vector / vector.norm()).to(hidden))
    sign = -1.0 if mode == "subtract" else 1.0
    return hidden + (sign * coefficient * vector).to(hidden)


def without(hidden, unit):
    """`hidden` (dims ... x hidden) without its component along `unit` (dims hidden, length 1)."""
    return hidden - (hidden @ unit)[..., None] * unit


def first(output):
    """The tensor of a module that returns one, or returns it first in a tuple (attention does)."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output, value):
    """`output` with its tensor replaced by `value`, in the form that the module returns."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def at(hidden, *index):
    """`hidden[index]`, wherever the indices are: a model on several devices gives each block's values on its own."""
    return hidden[_there(hidden, *index)]


def replaced(hidden, rows, columns, values, head=0):
    """Copy of `hidden` with some cells replaced; the original may be a tensor that others still hold.

    head: of several values side by side, each as wide as `values`, the one that is replaced (or dims cell).
    """
    hidden = hidden.clone()
    hidden.unflatten(-1, (-1, values.shape[-1]))[_there(hidden, rows, columns, head)] = values.to(hidden)
    return hidden


def _there(hidden, *index):
    return tuple(one.to(hidden.device) if isinstance(one, torch.Tensor) else one for one in index)


def run_mlp_at(block, rows, columns) -> None:
    """Let the block's MLP see the cells (rows[i], columns[i]) only; elsewhere it adds nothing.

    For the last block of a run of which only those cells are read: an MLP works on each token alone.
    """
    hidden = block.mlp.input
    some = block.mlp(at(hidden, rows, columns)[:, None])
    block.mlp.skip(with_first(some, replaced(torch.zeros_like(hidden), rows, columns, first(some)[:, 0])))
