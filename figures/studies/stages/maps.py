"""Heat maps of the attribution of a stage's effect: layer by token, and layer by module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import of_type
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.hover import Items
from posttrace.figures.studies.stages.bars import short
from posttrace.figures.studies.stages.data import Effects

SHOWN = 12
"""Tokens shown one by one, counted from a prompt's end; those before are summed."""
EARLIER = "earlier"
ORDER = (
    "Where swaps of single modules do not add up (see their agreement), how credit is shared depends on the order in "
    "which modules are counted."
)


def tokens(groups: Sequence) -> Iterator[Drawing]:
    """Yield the maps by layer and token of behaviours that are read after the last token."""
    for group in of_type(groups, Effects):
        if group.effects_only or not bool(group.data.attrs["read_at_end"]):
            continue
        labels, summed = by_position(group)
        panels, matrices, each = [], [], {}
        for update in group.updates:
            for kind in group.kinds:
                chosen = group.converged(update) & group.of_kind(kind)
                row = []
                for m, module in enumerate(map(str, group.data["module"].values)):
                    matrix = summed[group.at(update)][chosen][:, :, m].mean(axis=0) if chosen.any() else None
                    title = f"{update} · {kind} · {module}"
                    row.append(Panel(title, matrix, note="no prompt", of=(title,)))
                    each[title] = _only(chosen, summed[group.at(update)][:, :, m])
                    matrices.append(matrix)
                panels.append(row)
        yield Drawing(
            name=f"stages/{group.name}/tokens",
            heading=f"Where the effect arises, by layer and token: {group.name}",
            caption=(
                f"{_beginning(group)}Columns: tokens counted from the prompt's end, with their text where all prompts "
                f"share it; {EARLIER} sums all tokens before them. {ORDER} Embeddings and unembedding are in "
                "the map by module."
            ),
            alt=f"Heat maps of the attribution of each stage's effect on {group.name} by layer and token.",
            figure=heatmap_grid(
                panels,
                labels,
                [],
                group.layers,
                theme.centred_scale(matrices, f"attribution, {short(group.unit)}"),
                f"{group.family}  ·  {group.name}",
                columns_are="token, from the end",
            ),
            complete=group.complete,
            items=_prompts(group, each),
        )


def modules(groups: Sequence) -> Iterator[Drawing]:
    """Yield the maps by layer and module, summed over tokens."""
    for group in of_type(groups, Effects):
        if group.effects_only:
            continue
        panels, matrices, each = [], [], {}
        for update in group.updates:
            credit, row = group.credit(update), []
            for kind in group.kinds:
                chosen = group.converged(update) & group.of_kind(kind)
                matrix, note = None, "no prompt"
                if chosen.any():
                    mean = credit[chosen].mean(axis=0)
                    matrix = mean[1:-1].reshape(len(group.layers), -1)
                    note = f"embed {mean[0]:.2g}, unembed {mean[-1]:.2g}"
                name = f"{update} · {kind}"
                row.append(Panel(f"{name} ({note})", matrix, note=note, of=(name,)))
                each[name] = _only(chosen, credit[:, 1:-1].reshape(len(credit), len(group.layers), -1))
                matrices.append(matrix)
            panels.append(row)
        yield Drawing(
            name=f"stages/{group.name}/modules",
            heading=f"Where the effect arises, by layer and module: {group.name}",
            caption=(
                f"{_beginning(group)}Summed over tokens; embeddings and unembedding are in the titles. "
                f"{ORDER}"
            ),
            alt=f"Heat maps of the attribution of each stage's effect on {group.name} by layer and module.",
            figure=heatmap_grid(
                panels,
                [str(module) for module in group.data["module"].values],
                [],
                group.layers,
                theme.centred_scale(matrices, f"attribution, {short(group.unit)}"),
                f"{group.family}  ·  {group.name}",
            ),
            complete=group.complete,
            items=_prompts(group, each),
        )


def _only(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(chosen[:, None, None], values, np.nan)


def _prompts(group: Effects, values: dict[str, np.ndarray]) -> Items:
    """Return maps of single prompts, dims prompt x layer x column each, with the prompts' texts."""
    texts = [(str(text),) for text in group.data["prompt_text"].values]
    return Items("prompt", ("text",), texts, values, f"attribution, {short(group.unit)}")


def by_position(group: Effects) -> tuple[list[str], np.ndarray]:
    """Return labels of the last tokens, and attributions by token from the end.

    Dims update x prompt x layer x module x column; the first column sums all tokens before the last ones.
    """
    values = group.values("attribution")
    texts = group.data["token_label"].values
    lengths = [int(np.isfinite(values[:, i, 0, 0]).any(axis=0).sum()) for i in group.prompts]
    columns = min(SHOWN, max(1, min((n for n in lengths if n), default=1)))
    found = np.full((*values.shape[:-1], columns + 1), np.nan)
    for i, n in enumerate(lengths):
        if n:
            found[:, i, ..., 0] = values[:, i, ..., : n - columns].sum(axis=-1)
            found[:, i, ..., 1:] = values[:, i, ..., n - columns : n]
    labels = [EARLIER]
    for back in range(columns, 0, -1):
        shared = {str(texts[i, n - back]) for i, n in enumerate(lengths) if n}
        labels.append(f"{back}" if len(shared) != 1 else shared.pop().strip() or "\\n")
    return labels, found


def _beginning(group: Effects) -> str:
    left = [int(group.converged(update).sum()) for update in group.updates]
    counts = ", ".join(f"{update} {n}" for update, n in zip(group.updates, left, strict=True))
    flagged = ", ".join(f"{update} {group.flagged(update)}" for update in group.updates)
    tolerance = float(group.data.attrs["tolerance"])
    return (
        f"{group.incomplete}{group.family}, {group.name} ({group.unit}): part of f(stage) - f(stage before) that "
        f"arises in each place along the straight path of weights, mean over prompts (n: {counts}); not normalised, "
        f"red raises the behaviour. Left out, as their parts miss their effect by more than {tolerance:.0%} + 0.01 "
        f"nats: {flagged}. {group.untrained_template}"
    )
