"""Training without a stage: what estimates it, against retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import kept, of_type
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import Estimate
from posttrace.figures.studies.stages.bars import short
from posttrace.figures.studies.stages.data import ALL, Effects, correlation
from posttrace.figures.studies.stages.tables import DIGITS, INTERVALS, incomplete
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "nothing changes"
CEILING = "trained in another order"
LABELS = {
    "task_vector": "task vector",
    "propagated": "propagated",
    "propagated_linear": "propagated, linear",
}
"""Estimator in the store -> its label."""
COLOURS = {"harmful": "#b3423a", "harmless": "#2a7fa8", "true": "#2a7fa8", "false": "#b3423a", ALL: "#555f6b"}


@dataclass(frozen=True)
class Fit:
    """How well an estimate gives the behaviour of the retrained model on prompts of one kind."""

    r: float
    """Correlation of levels over prompts, not of effects: these have f(final) on both sides."""
    mae: Estimate
    """Mean absolute error, nats."""


def levels(group: Effects, without: str) -> dict[str, np.ndarray]:
    """Return label -> estimated behaviour of the model trained without a stage; dims prompt.

    First what needs no estimate, last the model that was retrained on the same data in another order.
    """
    at = group.left_out.index(without)
    f, estimates = group.values("behaviour"), group.values("estimate")[at]
    before = group.stages.index(without) - 1
    names = [LABELS.get(str(name), str(name)) for name in group.data["estimator"].values]
    return {
        NOTHING: f[-1],
        f"{group.stages[before]} as it is": f[before],
        **dict(zip(names, estimates, strict=True)),
        CEILING: group.values("retrained")[at, 1],
    }


@kept
def fits(group: Effects, without: str, kind: str) -> dict[str, Fit]:
    """Return label -> how well it gives the model retrained on the data as they came."""
    truth, chosen = group.retrained(without), group.of_kind(kind)
    return {
        label: Fit(correlation(values[chosen], truth[chosen]), group.estimate(np.abs(values - truth), kind))
        for label, values in levels(group, without).items()
    }


def estimators(groups: Sequence) -> Iterator[Table]:
    """Yield the table of estimates of training without a stage."""
    chosen = [group for group in of_type(groups, Effects) if group.left_out]
    if not chosen:
        return
    blocks, tidy = [], []
    for group, without, kind in _panels(chosen):
        rows = []
        for label, fit in fits(group, without, kind).items():
            mae = fit.mae
            rows.append(Row(label, (Cell(number(fit.r, DIGITS)), cell(mae.value, mae.low, mae.high, DIGITS))))
            tidy.append({"study": "stages", "behaviour": group.name, "family": group.family, "without": without,
                         "kind": kind, "estimator": label, "r_levels": fit.r, "mae": mae.value, "low": mae.low,
                         "high": mae.high, "n_prompts": mae.n, "unit": group.unit})  # fmt: skip
        n = int(group.of_kind(kind).sum())
        blocks.append(Block(f"{group.name} without {without}, {kind} (n = {n}): {group.unit}", tuple(rows)))
    yield Table(
        name="stages_estimators",
        heading="Training without a stage, and what estimates it",
        caption=(
            f"{incomplete(chosen)}{chosen[0].family}: later stages trained again from the stage before the one left "
            "out, and estimates of the behaviour of that model from checkpoints alone (task vector) or from a replay "
            "of the training that did happen (propagated). r is that of levels, over prompts: effects would share "
            f"f(final). First rows: no estimate at all. Last row, the ceiling: {CEILING}, the same data. "
            f"{_replays(chosen)} In brackets: {INTERVALS}. Not normalised."
        ),
        columns=("r of levels", "mean absolute error"),
        blocks=tuple(blocks),
        records=tidy,
    )


def scatter(groups: Sequence) -> Iterator[Drawing]:
    """Yield, for each behaviour, estimates against the retrained model."""
    for group in of_type(groups, Effects):
        if not group.left_out:
            continue
        kind = ALL
        words = "; ".join(
            f"without {without}: "
            + ", ".join(
                f"{label} {number(fit.mae.value, 2)}" for label, fit in fits(group, without, kind).items()
            )
            for without in group.left_out
        )
        yield Drawing(
            name=f"stages/{group.name}/scatter",
            heading=f"Training without a stage: {group.name}",
            caption=(
                f"{group.incomplete}{group.family}, {group.name} ({group.unit}), levels by prompt (n = "
                f"{len(group.prompts)}): estimates against the model whose later stages were trained again without "
                f"the stage, lines where both are the same; not normalised. Mean absolute error, {words}. The last "
                f"panel is the ceiling: {CEILING}. {_replays([group])}"
            ),
            alt=f"Scatter of estimates of training without a stage against retraining, for {group.name}.",
            figure=_draw(group),
            complete=group.complete,
        )


def _draw(group: Effects) -> Figure:
    rows, columns = len(group.left_out), len(levels(group, group.left_out[0])) - 1
    with theme.look():
        figure = theme.new_figure(0.5 + 1.55 * columns, 0.6 + 1.8 * rows, w_pad=0.03, h_pad=0.04)
        axes = figure.subplots(rows, columns, squeeze=False, sharex="row")
        for row, without in zip(axes, group.left_out, strict=True):
            truth = group.retrained(without)
            shown = dict(list(levels(group, without).items())[1:])
            for ax, (label, values) in zip(row, shown.items(), strict=True):
                for kind in group.kinds:
                    own = group.of_kind(kind)
                    colour = COLOURS.get(kind, COLOURS[ALL])
                    dots = ax.scatter(truth[own], values[own], s=6, color=colour, linewidths=0, label=kind)
                    if "prompt_text" in group.data:
                        note(dots, name=[str(text) for text in group.data["prompt_text"].values[own]])
                line = ax.axline((0, 0), slope=1, color=theme.GUIDE, linewidth=0.6, zorder=0)
                note(line, guide=True)
                ax.set_title(label, pad=3)
                ax.set_xlabel(f"retrained without {without}", labelpad=2)
            row[0].set_ylabel(short(group.unit), labelpad=2)
        if group.kinds != (ALL,):
            axes[0, 0].legend()
        theme.heading(figure, f"{group.family}  ·  {group.name}")
    return figure


def _panels(groups: Sequence[Effects]) -> Iterator[tuple[Effects, str, str]]:
    for group in groups:
        for without in group.left_out:
            for kind in dict.fromkeys([*group.kinds, ALL]):
                yield group, without, kind


def _replays(groups: Sequence[Effects]) -> str:
    """Say how well the replay gives back the final stage as it was shipped."""
    found = [
        f"{group.name} r = {correlation(replayed, group.values('behaviour')[-1]):.4f}"
        for group in groups
        for replayed in group.values("replayed")
    ]
    return f"Replayed in float32 with every stage, the final stage comes back at {', '.join(found)}."
