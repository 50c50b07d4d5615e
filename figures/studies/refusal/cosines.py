"""Heat maps of the cosine similarity of the stages' refusal directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.studies.refusal.data import Refusal


def cosines(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield `refusal/cosines`: the cosine of the directions of every two stages, layer by position."""
    for group in groups:
        pairs = list(combinations(group.stages, 2))
        found = [(f"{a} · {b}", cosine(group.direction(a), group.direction(b))) for a, b in pairs]
        n = int(sum(group.data.attrs["n_direction"]))
        panels = [Panel(title, matrix, n=n) for title, matrix in found if np.isfinite(matrix).any()]
        if not panels:
            continue
        yield Drawing(
            name="refusal/cosines",
            heading="Cosine similarity of the stages' directions",
            caption=(
                f"{group.incomplete}{group.family}: cosine between the refusal directions of two stages at the same "
                "layer (input of the block) and the same position from the prompt's end; each is the difference of "
                f"the mean streams of {group.data.attrs['n_direction'][0]} harmful and "
                f"{group.data.attrs['n_direction'][1]} harmless prompts. White: no direction, because both kinds "
                "have the same token there. The stages' templates differ, so the same position need not be the same "
                f"token. Two random directions of {group.data.sizes['hidden']} dimensions have a cosine of 0 ± "
                f"{1 / np.sqrt(group.data.sizes['hidden']):.2f} (standard deviation)."
            ),
            alt=f"Heat maps of cosines, layer by position, for {', '.join(panel.title for panel in panels)}.",
            figure=heatmap_grid(
                [panels],
                [str(p) for p in group.positions],
                [],
                group.layers,
                _cosine_scale(),
                f"{group.family}  ·  cosine of refusal directions",
                "position from the end",
            ),
            complete=bool(np.isfinite(group.data["class_distance"].values).all()),
        )


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine along the last axis; NaN if either vector is NaN.

    Examples
    --------
    >>> cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))
    array([0.96])
    """
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / norms


def _cosine_scale() -> theme.Scale:
    from matplotlib.colors import Normalize

    return theme.Scale(theme.vik(), Normalize(-1, 1), (-1.0, -0.5, 0.0, 0.5, 1.0), "cosine similarity")
