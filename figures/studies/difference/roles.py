"""Dots of the Jensen-Shannon divergence by role of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.studies.difference.data import EXACT, LARGEST, Difference, mean_js

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roles(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield the figure of JS by role and pair, for each set."""
    for one in groups:
        yield Drawing(
            name=f"difference/{one.name}/roles",
            heading="Divergence by role of the token",
            caption=(
                f"{one.n}. Jensen-Shannon divergence of the next-token distributions of two stages, nats, on a "
                "logarithmic scale, by role of the token that was read: mean over documents of each one's mean, with "
                f"95 % bootstrap intervals over documents. Dotted: ln 2, the largest possible. Not normalised. "
                f"{EXACT} {one.control_note}"
            ),
            alt=f"Dots of the divergence of each pair of stages by role, for {', '.join(one.roles)}.",
            figure=_draw(one),
            complete=one.complete,
        )


def _draw(one: Difference) -> Figure:
    pairs, names = one.forward, ["all", *one.roles]
    with theme.look():
        figure = theme.new_figure(4.2, 0.75 + 0.3 * len(names))
        ax = figure.subplots()
        for i, pair in enumerate(pairs):
            colour = theme.STAGE_COLOURS[(i + 1) % len(theme.STAGE_COLOURS)]
            for y, role in enumerate([None, *one.roles]):
                found = mean_js(one, pair, role)
                if not found.n:
                    continue
                at = y + 0.18 * (i - (len(pairs) - 1) / 2)
                ax.hlines(at, max(found.low, 1e-9), found.high, color=colour, linewidth=1.0)
                (dot,) = ax.plot(
                    [found.value], [at], "o", color=colour, markersize=3, label=pair.label if y == 0 else None
                )
                note(dot, name=pair.label, n=found.n, interval=[[found.low], [found.high]])
        ax.axvline(LARGEST, color=theme.MUTED, linewidth=0.7, linestyle=":")
        if np.nanmax(one.js) > 0:
            ax.set_xscale("log")
            theme.plain_numbers(ax.xaxis)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel("JS, nats")
        theme.heading(figure, f"{one.family}  ·  {one.name}")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
