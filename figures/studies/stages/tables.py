"""Tables of the stages study: effects, removal with its controls, and sizes of the updates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from posttrace.figures.group import of_type
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED
from posttrace.figures.studies.stages.data import Effects, Weights
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

DIGITS = 3
INTERVALS = f"{CONFIDENCE:.0%} percentile bootstrap over prompts ({RESAMPLES} resamples, seed {SEED})"


def effects(groups: Sequence) -> Iterator[Table]:
    """Yield the table of stage effects, a block for each behaviour."""
    chosen = of_type(groups, Effects)
    if not chosen:
        return
    names = list(dict.fromkeys(update for group in chosen for update in group.updates))
    blocks, tidy = [], []
    for group in chosen:
        rows = []
        for kind in group.kinds:
            cells: dict[str, list[Cell]] = {"mean": [], "absolute": []}
            for update in names:
                if update not in group.updates:
                    for one in cells.values():
                        one.append(Cell("–"))
                    continue
                effect = group.effect(update)
                for key, values in (("mean", effect), ("absolute", np.abs(effect))):
                    e = group.estimate(values, kind)
                    cells[key].append(cell(e.value, e.low, e.high, DIGITS))
                    tidy.append({"study": "stages", "behaviour": group.name, "family": group.family, "update": update,
                                 "kind": kind, "statistic": key, "estimate": e.value, "low": e.low, "high": e.high,
                                 "n_prompts": e.n, "unit": group.unit})  # fmt: skip
            n = int(group.of_kind(kind).sum())
            rows.append(Row(f"{kind} (n = {n}), mean", tuple(cells["mean"])))
            rows.append(Row(f"{kind}, mean absolute", tuple(cells["absolute"])))
        blocks.append(Block(f"{group.name}: {group.unit}", tuple(rows)))
    yield Table(
        name="stages_effects",
        heading="Effects of the stages",
        caption=(
            f"{incomplete(chosen)}{chosen[0].family}: effect of a stage, f(stage) - f(stage before), on the same "
            "token ids; means of a column's stages sum to the whole difference. The mean absolute effect shows what "
            f"signs cancel. {measured(chosen)}{template(chosen)}In brackets: {INTERVALS}. Not normalised."
        ),
        columns=tuple(names),
        blocks=tuple(blocks),
        records=tidy,
    )


def removal(groups: Sequence) -> Iterator[Table]:
    """Yield the table of updates removed from the final weights, with the controls."""
    chosen = [group for group in of_type(groups, Effects) if not group.effects_only]
    if not chosen:
        return
    columns = ("mean", "mean absolute")
    blocks, tidy = [], []
    for group in chosen:
        alphas = group.data["alpha"].values
        for kind in group.kinds:
            rows = []
            for update in group.updates:
                removed = group.values("removed")[group.at(update)]
                measured = [(f"{update}, {alpha:g} removed", f"removed {alpha:g}", one)
                            for alpha, one in zip(alphas, removed, strict=True)]  # fmt: skip
                for label, what, values in measured:
                    e, size = group.estimate(values, kind), group.estimate(np.abs(values), kind)
                    rows.append(Row(label, (cell(e.value, e.low, e.high, DIGITS),
                                            cell(size.value, size.low, size.high, DIGITS))))  # fmt: skip
                    tidy.append(_tidy(group, kind, update, what, e.value, size.value))
                rows += _control_rows(group, kind, update, tidy)
            rows += _rounding_rows(group, kind, tidy)
            blocks.append(Block(f"{group.name}, {kind}: {group.unit}", tuple(rows)))
    yield Table(
        name="stages_removal",
        heading="Updates removed from the final weights",
        caption=(
            f"{incomplete(chosen)}{chosen[0].family}: f(final) - f(final - share x update); exact about weights, and "
            f"no estimate of training without the stage, except for the last stage at share 1. {_unknown(chosen)}"
            "Controls, as long as the "
            "update in every tensor: mean over draws and prompts, and in brackets the range of the middle 95% of the "
            "draws' means. Rounding: weights moved at random within half a last place of bfloat16. Other brackets: "
            f"{INTERVALS}. Not normalised."
        ),
        columns=columns,
        blocks=tuple(blocks),
        records=tidy,
    )


def weights(groups: Sequence) -> Iterator[Table]:
    """Yield the table of the updates' sizes, by kind of weight."""
    for group in of_type(groups, Weights):
        kinds = np.array([kind_of_weight(str(name)) for name in group.data["parameter"].values])
        update, before, changed = (
            group.data[key].values for key in ("update_norm", "weight_norm", "changed")
        )
        others = [str(name) for name in group.data["other_update"].values]
        cosine, entries = group.data["update_cosine"].values, group.data["entries"].values
        blocks, tidy = [], []
        for name in group.updates:
            k = [str(one) for one in group.data["update"].values].index(name)
            rows = []
            for kind in ("all weights", *dict.fromkeys(kinds)):
                own = np.ones(len(kinds), bool) if kind == "all weights" else kinds == kind
                norm, length = (float(np.sqrt((one[k, own] ** 2).sum())) for one in (update, before))
                share = float(np.average(changed[k, own], weights=entries[own]))
                rows.append(Row(kind, (Cell(number(norm, 3)), Cell(_percent(norm / length if length else np.nan)),
                                       Cell(_percent(share)))))  # fmt: skip
                tidy.append({"study": "stages", "family": group.family, "update": name, "weights": kind,
                             "update_norm": norm, "weight_norm": length, "changed": share})  # fmt: skip
            for o, other in enumerate(others):
                if other != name and np.isfinite(cosine[k, o]).any():
                    mean = float(np.nanmean(cosine[k, o]))
                    rows.append(
                        Row(
                            f"cosine with {other}, mean over tensors",
                            (Cell(number(mean, 3)), Cell(""), Cell("")),
                        )
                    )
            blocks.append(Block(f"update of {name}", tuple(rows)))
        lacking = "" if group.complete else f"INCOMPLETE ({group.progress}). "
        yield Table(
            name="stages_weights",
            heading="Sizes of the updates",
            caption=(
                f"{lacking}{group.family}: Frobenius norm of each update (model units), as a share of the norm of the "
                "weights before it, and the share of entries that it changed."
            ),
            columns=("norm", "share of the weights' norm", "entries changed"),
            blocks=tuple(blocks),
            records=tidy,
        )


def kind_of_weight(name: str) -> str:
    """Return the name of a weight without the number of its block and what lies around it.

    Example
    -------
    >>> kind_of_weight("model.layers.3.mlp.down_proj.weight")
    'mlp.down_proj.weight'
    """
    return re.sub(r"^.*\.\d+\.", "", name).removeprefix("model.")


def _control_rows(group: Effects, kind: str, update: str, tidy: list[dict[str, Any]]) -> Iterator[Row]:
    if "control_removed" not in group.data:
        return
    for name, draws in zip(
        group.data["control"].values, group.values("control_removed")[group.at(update)], strict=True
    ):
        yield _draws_row(f"{update}, {name} instead", draws[:, group.of_kind(kind)])
        mean, size = (float(np.mean(one[:, group.of_kind(kind)])) for one in (draws, np.abs(draws)))
        tidy.append(_tidy(group, kind, update, str(name), mean, size))


def _rounding_rows(group: Effects, kind: str, tidy: list[dict[str, Any]]) -> Iterator[Row]:
    if "rounding" not in group.data:
        return
    draws = group.values("rounding")[:, group.of_kind(kind)]
    yield _draws_row("rounding", draws)
    tidy.append(_tidy(group, kind, "", "rounding", float(draws.mean()), float(np.abs(draws).mean())))


def _draws_row(label: str, draws: np.ndarray) -> Row:
    cells = []
    for values in (draws.mean(axis=1), np.abs(draws).mean(axis=1)):
        low, high = np.quantile(values, [0.025, 0.975])
        cells.append(cell(float(values.mean()), float(low), float(high), DIGITS))
    return Row(label, tuple(cells))


def _tidy(group: Effects, kind: str, update: str, what: str, mean: float, size: float) -> dict[str, Any]:
    return {"study": "stages", "behaviour": group.name, "family": group.family, "kind": kind, "update": update,
            "what": what, "mean": mean, "mean_absolute": size, "unit": group.unit}  # fmt: skip


def _unknown(groups: Sequence[Effects]) -> str:
    """Say what only retraining would show, where nothing was trained again."""
    earlier = groups[0].updates[:-1]
    if not earlier or any(group.left_out for group in groups):
        return ""
    return f"What training without {' or '.join(earlier)} would have given is unknown: only training again shows it. "


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.2g}%"


def incomplete(groups: Sequence[Effects]) -> str:
    """Return the words that begin a caption where a behaviour is not finished."""
    missing = ", ".join(f"{group.name}: {group.progress}" for group in groups if not group.complete)
    return f"INCOMPLETE ({missing}). " if missing else ""


def measured(groups: Sequence[Effects]) -> str:
    """Return what is not there where the stages were on a server."""
    if not any(group.effects_only for group in groups):
        return ""
    return (
        "Measured on a server, which hands out no weights: effects alone, without attribution, swaps, removed updates "
        "and controls. "
    )


def template(groups: Sequence[Effects]) -> str:
    """Return the warning of behaviours whose template the first stage may not know."""
    return next((group.untrained_template for group in groups if group.untrained_template), "")
