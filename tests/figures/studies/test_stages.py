"""What the figures and tables of the stages study show, from groups whose numbers are known."""

import numpy as np
import pytest
import xarray as xr

from posttrace.figures.errors import FigureError
from posttrace.figures.studies.stages.agreement import agree, agreement
from posttrace.figures.studies.stages.bars import credit
from posttrace.figures.studies.stages.curves import cumulative, dose
from posttrace.figures.studies.stages.data import read
from posttrace.figures.studies.stages.estimators import estimators, scatter
from posttrace.figures.studies.stages.maps import by_position, modules, tokens
from posttrace.figures.studies.stages.tables import effects, removal, weights
from posttrace.figures.studies.stages.verdict import verdict
from tests.support.figures import stages


@pytest.fixture(scope="module")
def group():
    return stages.behaviour()


def cells(table, block, label):
    rows = {row.label: row.cells for row in table.blocks[block].rows}
    return [str(cell) for cell in rows[label]]


def test_effects_with_means_that_cancel(group):
    table = next(effects([stages.weights(), group]))
    assert table.columns == ("sft", "instruct")
    mean = cells(table, 0, "harmful (n = 4), mean")
    assert mean[0] == "6.000 [6.000, 6.000]" and mean[1].startswith("0.000 [-1.000")
    assert cells(table, 0, "harmful, mean absolute")[1] == "1.000 [1.000, 1.000]"
    assert cells(table, 0, "harmless (n = 4), mean")[0].startswith("-2.000")
    assert "base may never have been trained on" in table.caption and "INCOMPLETE" not in table.caption


def test_removal_stands_next_to_its_controls(group):
    table = next(removal([group]))
    assert cells(table, 0, "sft, 0.5 removed")[0].startswith("3.000")
    mean, size = cells(table, 0, "sft, gaussian instead")
    assert mean.startswith("0.000 [-0.100, 0.100]") and size.startswith("0.100 [0.100, 0.100]")
    assert cells(table, 1, "rounding")[1].startswith("0.010")
    tidy = table.tidy.set_index(["kind", "update", "what"])
    assert tidy.loc[("harmless", "sft", "removed 1"), "mean"] == -2.0


def test_sizes_of_updates_weigh_tensors_by_their_entries():
    table = next(weights([stages.weights()]))
    whole = cells(table, 0, "all weights")
    assert whole == ["3.162", "29%", "88%"]  # sqrt(1 + 9) of sqrt(100 + 16); (300 + 50) / 400
    assert cells(table, 0, "cosine with instruct, mean over tensors")[0] == "0.000"
    assert cells(table, 1, "mlp.up_proj.weight") == ["2.000", "20%", "25%"]


def test_prompts_whose_sum_misses_their_effect_are_left_out_and_counted(group):
    assert group.flagged("sft") == 1 and group.flagged("instruct") == 0
    drawing = next(modules([group]))
    assert "(n: sft 7, instruct 8)" in drawing.caption and "0.01 nats: sft 1, instruct 0." in drawing.caption
    assert agree(group, "sft", "harmful").n == 3


def test_tokens_are_counted_from_the_end(group):
    labels, found = by_position(group)
    assert labels[0] == "earlier" and labels[-2:] == ["<answer>", "\\n"] and labels[1] == "12"
    assert found.shape[-1] == len(labels) == 13
    np.testing.assert_allclose(found[0, :, 1, 0, -1], np.r_[[3.0] * 4, [-1.0] * 4])
    # The fourth token is among the earlier ones of the longer prompts only.
    np.testing.assert_allclose(found[0, 4:, 1, 0, 0], [0, -1, 0, -1])
    np.testing.assert_allclose(found.sum(axis=(2, 3, 4)), [group.effect("sft"), group.effect("instruct")])


def test_agreement_names_how_far_inserts_are_from_adding_up(group):
    found = agree(group, "sft", "harmful")
    assert found.r == pytest.approx(1.0) and found.missed == pytest.approx(3.0)
    assert found.attribution.tolist() == pytest.approx([0, 0, 0, 6, 0, 0])
    drawing = next(agreement([group]))
    assert "sft, harmful: r = 1.000 over parts" in drawing.caption
    assert "inserts miss the effect by 3 on average (n = 3)" in drawing.caption
    assert agree(read(group.data.drop_vars(["insert", "remove"])), "sft", "harmful") is None


def lines(ax):
    return [line.get_ydata() for line in ax.get_lines()]


def test_dose_and_cumulative_lines(group):
    ax = next(dose([group])).figure.axes[0]
    assert lines(ax)[0].tolist() == [0, 3, 6]
    band = ax.patches[0].get_extents()
    assert band.height > 0
    ax = next(cumulative([group])).figure.axes[0]
    below, above = lines(ax)[:2]
    assert below[0] == above[0] == 0 and below[-1] == above[-1] == 6


def test_bars_of_every_behaviour(group):
    drawing = next(credit([group, stages.behaviour("loss", at_end=False)]))
    heights = [bar.get_height() for bar in drawing.figure.axes[0].patches]
    assert heights == [6, -2, 0, 0]
    assert drawing.figure.axes[1].get_title() == "loss" and drawing.complete
    assert list(tokens([stages.behaviour("loss", at_end=False)])) == []


@pytest.mark.slow
def test_what_is_not_finished_is_said():
    partly = stages.behaviour(finished=5)
    assert not partly.complete and partly.any_finished and partly.progress == "10 of 16 attributions"
    half = stages.behaviour(finished=5, retrained=True)
    for draw in (effects, removal, credit, dose, tokens, modules, agreement, cumulative, estimators, scatter):
        for product in draw([half if draw in (estimators, scatter) else partly]):
            assert product.caption.startswith("INCOMPLETE"), draw
    whole = stages.behaviour("loss", at_end=False)
    assert next(credit([whole, partly])).caption.startswith(
        f"INCOMPLETE ({partly.name}: 10 of 16 attributions). "
    )
    assert not stages.behaviour(finished=0).any_finished


def test_estimates_stand_between_no_estimate_and_another_order():
    group = stages.behaviour(retrained=True)
    table = next(estimators([stages.weights(), group]))
    rows = {row.label: [str(cell) for cell in row.cells] for row in table.blocks[-1].rows}
    assert table.blocks[-1].heading.startswith("refusal without sft, all (n = 8): log-odds")
    assert list(rows) == ["nothing changes", "base as it is", "task vector", "propagated", "propagated, linear",
                          "trained in another order"]  # fmt: skip
    assert rows["task vector"] == ["1.000", "1.000 [1.000, 1.000]"]
    assert rows["propagated"][1].startswith("0.200") and rows["propagated, linear"][0] == "–"
    assert rows["trained in another order"][1].startswith("0.100")
    assert rows["base as it is"][1].startswith("0.250") and rows["nothing changes"][1].startswith("4.000")
    assert "comes back at refusal r = 1.0000" in table.caption
    harmful = table.tidy.set_index(["kind", "estimator"])["mae"]
    assert harmful["harmful", "nothing changes"] == pytest.approx(5.75)
    drawing = next(scatter([group]))
    assert "without sft: nothing changes 4.00, base as it is 0.25, task vector 1.00" in drawing.caption
    panels = [ax for ax in drawing.figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == list(rows)[1:]
    x, y = np.ma.concatenate([c.get_offsets() for c in panels[1].collections]).T
    np.testing.assert_allclose(y - x, 1.0)


def test_the_verdict_says_which_estimates_are_none():
    found = verdict([stages.behaviour(retrained=True)])
    assert "Trained again without sft, mean absolute error of refusal" in found.sentence
    assert "propagated 0.200" in found.sentence and "trained in another order 0.100" in found.sentence
    assert "task vector, propagated, linear no better than 'base as it is'" in found.caveat


def test_without_a_recipe_training_without_a_stage_is_unknown(group):
    assert list(estimators([group])) == [] and list(scatter([group])) == []
    unknown = "What training without sft would have given is unknown: only training again shows it."
    assert unknown in next(removal([group])).caption
    assert "unknown" not in next(removal([stages.behaviour(retrained=True)])).caption


def test_a_group_of_another_study_is_refused():
    with pytest.raises(FigureError, match="part answers is not known"):
        read(xr.Dataset(attrs={"part": "answers"}))
    with pytest.raises(FigureError, match="no variable entries"):
        read(stages.weights().data.drop_vars("entries"))
    with pytest.raises(FigureError, match="no variable behaviour"):
        read(xr.Dataset(attrs={"part": "behaviour", "set": "loss"}))
