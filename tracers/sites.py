"""The sites of a block: one row each, with how to read and how to replace the value there.

Sites are read and replaced within `with model.trace(...)`; nnsight serves values in forward order, so a site may be
asked for only after the ones before it. To add a site, add its name to `Site` and a row to `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Site = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""Names of the sites, in the order in which a forward pass reaches them."""


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """What is known of one site."""

    name: Site
    read: Callable
    """Block -> value; dims batch x token x hidden (at a site per head, all heads side by side)."""
    change: Callable
    """Block, function -> nothing: the value becomes function(value)."""
    past_attention: bool
    """Whether a change reaches other tokens only through the attention of later blocks."""
    per_head: bool = False
    """Whether it holds a value per attention head, patched one head at a time, not one as wide as the stream."""
    requires: str | None = None
    """Name in `tracers.models.architecture.Architecture` without which a model does not have the site."""


@dataclass(frozen=True)
class Form:
    """What some architectures' blocks do with the values at their sites; a block's `form`, if it is not this one."""

    factor: float = 1.0
    """What the block multiplies with what its halves give, before it adds it to the stream (Granite)."""
    stream: int | None = None
    """Of several streams that blocks hand each other, stacked before the batch, the one that its halves read and write
    (Gemma 3n); None for a single stream."""
    returns_tuple: bool = False
    """Whether the block gives its stream first in a tuple (GPT-J)."""


PLAIN = Form()


def form_of(block) -> Form:
    """Return what a block does with the values at its sites."""
    return getattr(block, "form", PLAIN)


def added(block, out):
    """Return what a block adds to the stream of what one of its halves gives."""
    factor = form_of(block).factor
    return first(out) if factor == 1.0 else factor * first(out)


def with_added(block, out, value):
    """Return what the half gives for the block to add `value` (see `added`)."""
    factor = form_of(block).factor
    return with_first(out, value if factor == 1.0 else value / factor)


def _stream(block, hidden):
    """Return the stream in what enters or leaves a block."""
    index = form_of(block).stream
    return first(hidden) if index is None else hidden[index]


def _with_stream(block, hidden, value):
    """Return what enters or leaves a block, with its stream replaced."""
    index = form_of(block).stream
    if index is None:
        return with_first(hidden, value)
    hidden = hidden.clone()
    hidden[index] = value
    return hidden


def _read_resid_pre(block):
    return _stream(block, block.input)


def _change_resid_pre(block, to):
    hidden = block.input
    block.input = _with_stream(block, hidden, to(_stream(block, hidden)))


def _read_z(block):
    return block.heads.input


def _change_z(block, to):
    block.heads.input = to(block.heads.input)


def _read_attn_out(block):
    return added(block, block.attn_add.output)


def _change_attn_out(block, to):
    out = block.attn_add.output
    block.attn_add.output = with_added(block, out, to(added(block, out)))


def _read_resid_mid(block):
    return block.mid.input


def _change_resid_mid(block, to):
    # No module's output: the stream here is resid_pre + attn_out, so attn_out is set to what makes the sum right.
    entered = block.input
    out = block.attn_add.output
    block.attn_add.output = with_added(block, out, to(entered + added(block, out)) - entered)


def _read_mlp_out(block):
    return added(block, block.mlp_add.output)


def _change_mlp_out(block, to):
    out = block.mlp_add.output
    block.mlp_add.output = with_added(block, out, to(added(block, out)))


def _read_resid_post(block):
    return _stream(block, block.output)


def _change_resid_post(block, to):
    out = block.output
    block.output = _with_stream(block, out, to(_stream(block, out)))


TABLE = (
    SiteRow(name="resid_pre", read=_read_resid_pre, change=_change_resid_pre, past_attention=False),
    SiteRow(name="z", read=_read_z, change=_change_z, past_attention=True, per_head=True, requires="heads"),
    SiteRow(
        name="attn_out",
        read=_read_attn_out,
        change=_change_attn_out,
        past_attention=True,
        requires="attn_add",
    ),
    SiteRow(
        name="resid_mid", read=_read_resid_mid, change=_change_resid_mid, past_attention=True, requires="mid"
    ),
    SiteRow(
        name="mlp_out", read=_read_mlp_out, change=_change_mlp_out, past_attention=True, requires="mlp_add"
    ),
    SiteRow(name="resid_post", read=_read_resid_post, change=_change_resid_post, past_attention=True),
)
"""The sites, in the order in which a forward pass reaches them."""

ROWS: dict[str, SiteRow] = {row.name: row for row in TABLE}


def get(block, site: str):
    """Value at `site` of `block` (float, dims batch x token x hidden; at `z` all heads side by side)."""
    return ROWS[site].read(block)


def get_on_path(block, site: str):
    """As `get`, a value that the rest of the pass is computed from, so that gradients reach it."""
    if form_of(block) == PLAIN:
        return get(block, site)
    kept: list = []

    def keep(value):
        kept.append(value)
        return value

    change(block, site, keep)
    return kept[0]


def change(block, site: str, to) -> None:
    """Replace the value at `site` of `block` by `to(value)`; dims batch x token x hidden."""
    ROWS[site].change(block, to)


def is_per_head(site: str) -> bool:
    """Whether a site holds a value per attention head."""
    return ROWS[site].per_head


def is_past_attention(site: str) -> bool:
    """Whether a change at a site reaches other tokens only through the attention of later blocks."""
    return ROWS[site].past_attention


def put(block, site: str, rows, columns, values, head=0) -> None:
    """Replace `site` of `block` at the cells (rows[i], columns[i]) by values[i] (dims cell x hidden or head size).

    Parameters
    ----------
    head
        The head that the values are of, or dims cell; 0 at a site that is not per head.
    """
    change(block, site, lambda value: replaced(value, rows, columns, values, head))


def first(output):
    """Return the tensor of a module that returns one, or returns it first in a tuple (attention does)."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output, value):
    """`output` with its tensor replaced by `value`, in the form that the module returns."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def at(hidden, *index):
    """`hidden[index]`, wherever the indices are: a model on several devices gives each block's values on its own."""
    return hidden[_there(hidden, *index)]


def replaced(hidden, rows, columns, values, head=0):
    """Copy of `hidden` with some cells replaced; the original may be a tensor that others still hold.

    Parameters
    ----------
    head
        Of several values side by side, each as wide as `values`, the one that is replaced (or dims cell).
    """
    hidden = hidden.clone()
    hidden.unflatten(-1, (-1, values.shape[-1]))[_there(hidden, rows, columns, head)] = values.to(hidden)
    return hidden


def _there(hidden, *index):
    return tuple(one.to(hidden.device) if hasattr(one, "to") else one for one in index)


def skip(block, stream) -> None:
    """Let a block give `stream` without running."""
    block.skip((stream, None) if form_of(block).returns_tuple else stream)


def run_mlp_at(block, rows, columns) -> None:
    """Let the block's MLP see the cells (rows[i], columns[i]) only; elsewhere it adds nothing.

    For the last block of a run of which only those cells are read: an MLP works on each token alone. Where the MLP is
    no module that adds to the stream, it sees all.
    """
    if not hasattr(block, "mlp"):
        return
    hidden = block.mlp.input
    some = block.mlp(at(hidden, rows, columns)[:, None])
    block.mlp.skip(
        with_first(some, replaced(hidden.new_zeros(hidden.shape), rows, columns, first(some)[:, 0]))
    )
