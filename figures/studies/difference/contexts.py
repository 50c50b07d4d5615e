"""The contexts that change most, as text coloured by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.studies.difference.data import EXACT, LARGEST, Difference, Pair, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXTS, BEFORE, AFTER = 20, 14, 4
"""Contexts shown, and tokens of each before and after the one that changes most."""
LETTER = 0.052
"""Width of a letter, inches."""


def contexts(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield a figure for each set and pair."""
    for one in groups:
        for pair in one.forward:
            found = _largest(one.js[pair.number])
            if not found:
                continue
            yield Drawing(
                name=f"difference/{one.name}/contexts_{pair.source}_{pair.target}",
                heading=f"Contexts that change most, {pair.label}",
                caption=(
                    f"{one.n}. The {len(found)} tokens after which the distributions of {pair.label} differ most, one "
                    "of a document at most, each with its context. Colour: Jensen-Shannon divergence after each "
                    "token, nats, 0 to 0.693; bold: the token chosen, its value at the left. Chosen by their size: "
                    f"they say what can happen, not how often. {EXACT} {one.control_note}"
                ),
                alt=f"Twenty lines of text, tokens coloured by divergence, {pair.label}.",
                figure=_draw(one, pair, found),
                complete=one.complete,
            )


def _largest(js: np.ndarray) -> list[tuple[int, int]]:
    """(document, token) with the largest divergence of their documents, the largest first; none that is 0."""
    filled = np.where(np.isfinite(js), js, 0.0)
    token = filled.argmax(axis=1)
    value = filled.max(axis=1)
    order = np.argsort(-value, kind="stable")[:CONTEXTS]
    return [(int(d), int(token[d])) for d in order if value[d] > 0]


def _draw(one: Difference, pair: Pair, found: list[tuple[int, int]]) -> Figure:
    from matplotlib.colors import Normalize

    colours, norm = theme.vik(), Normalize(-LARGEST, LARGEST)
    with theme.look():
        figure = theme.new_figure(7.2, 0.45 + 0.155 * len(found))
        ax = figure.subplots()
        ax.set_axis_off()
        ax.set(xlim=(0, 7.0 / LETTER), ylim=(len(found), -0.6))
        for y, (d, t) in enumerate(found):
            ax.text(
                0, y, f"{one.js[pair.number, d, t]:.3f}", fontsize=6, va="center", family="DejaVu Sans Mono"
            )
            x = 7.0
            for k in range(max(0, t - BEFORE), min(one.texts.shape[1], t + AFTER + 1)):
                value = one.js[pair.number, d, k]
                if not np.isfinite(value):
                    break
                text = visible(one.texts[d, k]).replace("␣", " ")
                if x + len(text) > 7.0 / LETTER:
                    break
                colour = colours(norm(value))
                ax.text(
                    x,
                    y,
                    text,
                    fontsize=6,
                    va="center",
                    family="DejaVu Sans Mono",
                    fontweight="bold" if k == t else "normal",
                    color="white" if value > 0.55 * LARGEST else theme.INK,
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
                )
                x += max(1, len(text)) + 0.25
        ax.set_title(f"{one.family}  ·  {one.name}  ·  {pair.label}", loc="left", fontsize=8)
    return figure
