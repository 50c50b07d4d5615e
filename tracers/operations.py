"""Operations on a model: frozen specs that survive YAML and hash the same everywhere."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from posttrace.tracers.sites import TABLE, Site

SITES = tuple(row.name for row in TABLE)
"""Where in a block a value is read or written, in the order in which a forward pass reaches them:
`resid_pre` enters the block; `z` (TransformerLens's `hook_z`) is the output of each attention head before the
projection that sums them into `attn_out`: a value per head, patched one head at a time; `attn_out` and `mlp_out` are
what the two halves add to the stream; `resid_mid` lies between them; `resid_post` leaves the block."""

STREAM_SITES = tuple(row.name for row in TABLE if not row.per_head)
"""The sites that are as wide as the stream."""

Tokens = Literal["statement", "last", "all"] | tuple[int, ...]


Coefficient = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Factor of a direction. A larger one drowns the activation, and its square overflows float32."""
Length = Annotated[float, Field(ge=1e-6, le=1e6)]
"""The same where it must be positive; a smaller one is lost in rounding."""


class Operation(BaseModel):
    """Common to every operation: where it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    site: Site = "resid_post"
    """Place within the block."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Block numbers, from 0; `all` for every block of the model."""
    tokens: Tokens = "statement"
    """`statement`: every token of the prompt's statement, its suffix included; `last`: the final one; `all`: every
    token of the prompt and, while generating, every new one; or positions, negative ones from the end (-1: last)."""

    @field_validator("layers")
    @classmethod
    def _sorted_once(cls, layers):
        if layers == "all":
            return layers
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError("layers are listed once each, in increasing order, at least one")
        return layers

    @field_validator("tokens")
    @classmethod
    def _some(cls, tokens):
        if not tokens:
            raise ValueError("tokens: statement, last, all, or a list of positions, at least one")
        return tokens

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """Return the block numbers meant for a model with `n_layers` blocks.

        >>> Read(layers="all").layers_of(3)
        (0, 1, 2)

        Raises ValueError when a number is out of range.
        """
        if self.layers == "all":
            return tuple(range(n_layers))
        beyond = [layer for layer in self.layers if layer >= n_layers]
        if beyond:
            raise ValueError(
                f"layers: {beyond[0]} is not in 0-{n_layers - 1} (the model has {n_layers} blocks); edit layers"
            )
        return self.layers


class Read(Operation):
    """Keep the activations at a site.

    >>> Read(site="resid_post", layers=(0, 4), tokens="last").layers
    (0, 4)
    """

    op: Literal["read"] = "read"
    """Which operation it is."""


class Lens(Operation):
    """Keep what the model would say next if the blocks after a site were skipped: the logit lens.

    The final norm and the unembedding are applied to the stream at the site. Source: nostalgebraist 2020,
    "interpreting GPT: the logit lens".

    >>> Lens(layers=(0, 4), tokens="all", top=3).site
    'resid_post'
    """

    op: Literal["lens"] = "lens"
    """Which operation it is."""
    site: Literal["resid_pre", "resid_mid", "resid_post"] = "resid_post"
    """Place within the block; the stream itself, not what is added to it."""
    top: int = Field(default=5, ge=1, le=1000)
    """Most probable tokens to keep of each cell."""


class Patch(Operation):
    """Replace the activations at a site by those of another run, one (layer, token) cell at a time.

    >>> Patch(source="base").site
    'resid_post'
    """

    op: Literal["patch"] = "patch"
    """Which operation it is."""
    source: str
    """Stage whose clean run the activations come from."""


class Steer(Operation):
    """Add a direction to the activations at a site, or remove their component along it.

    >>> Steer(direction="refusal", mode="ablate", tokens="all").coefficient
    1.0
    """

    op: Literal["steer"] = "steer"
    """Which operation it is."""
    direction: str
    """Name of the direction; the vector itself comes with the run."""
    mode: Literal["add", "subtract", "ablate"] = "add"
    """`add`, `subtract`: coefficient times the direction as it is; `ablate`: remove the component along it."""
    coefficient: Coefficient = 1.0
    """Factor of `add` and `subtract`."""


def canonical_hash(declaration: object) -> str:
    """Hash of a JSON-able declaration, the same for every key order and Python version (hex, 64 characters).

    >>> canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    True
    """
    if isinstance(declaration, BaseModel):
        declaration = declaration.model_dump(mode="json")
    text = json.dumps(declaration, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
