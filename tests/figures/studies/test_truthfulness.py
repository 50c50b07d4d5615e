"""What the tables and figures of the truthfulness study show, from groups whose numbers are known."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from posttrace.figures import published
from posttrace.figures.errors import FigureError
from posttrace.figures.studies.truthfulness.accuracy import accuracy_by_layer
from posttrace.figures.studies.truthfulness.coefficients import effect_by_coefficient
from posttrace.figures.studies.truthfulness.cosine import cosine_by_layer
from posttrace.figures.studies.truthfulness.data import accuracy, effect_of, parted, read
from posttrace.figures.studies.truthfulness.effects import effects_against_random
from posttrace.figures.studies.truthfulness.layers import choice_of_layers
from posttrace.figures.studies.truthfulness.projection import projections
from posttrace.figures.studies.truthfulness.tables import accuracies, columns_of, completions, effects
from posttrace.figures.tables import WRITERS
from tests.support.figures.drawn import overlaps
from tests.support.figures.truthfulness import CONTROLS, LAYERS, SETS, STAGES, statements, summary


@pytest.fixture(scope="module")
def groups():
    return [summary(), *map(statements, SETS)]


def row(table, block, label):
    (found,) = [r for b in table.blocks if b.heading == block for r in b.rows if r.label.startswith(label)]
    return dict(zip(table.columns, (cell.text for cell in found.cells), strict=True))


def test_probe_transfer_is_own_transferred_and_their_difference_in_per_cent(groups):
    table = next(accuracies(groups))
    assert table.columns == (
        *("base → base", "sft → sft", "base → sft", "Δ sft"),
        *("instruct → instruct", "base → instruct", "Δ instruct"),
    )
    cities = row(table, "mass-mean probe", "cities")
    assert cities == dict(
        zip(table.columns, ("100.0", "90.0", "95.0", "+5.0", "80.0", "90.0", "+10.0"), strict=True)
    )
    mean = row(table, "mass-mean probe", "mean over sets")
    assert float(mean["base → sft"]) == pytest.approx(100 * (1 - (1 / 20 + 1 / 12) / 2), abs=0.05)
    assert "(n = 32)" in next(r.label for r in table.blocks[0].rows if r.label.startswith("mean"))
    assert "without" not in table.caption and "TTPD has no negated set" in table.caption


def test_intervals_are_over_statements_and_paired_for_differences(groups):
    one = groups[1]
    drawn = accuracy(one, layer=2)
    assert drawn.n == 20 and drawn.draws.shape == (2000, 2, 3, 3)
    low, high = drawn.interval[:, 0, 0, 2]
    assert low < drawn.value[0, 0, 2] == 0.9 < high
    own, transferred = drawn.draws[:, 0, 2, 2], drawn.draws[:, 0, 0, 2]
    assert (transferred >= own).all(), (
        "a probe that is right wherever the other is cannot do worse on a resample"
    )


def test_the_table_of_all_pairs_has_every_ordered_pair(groups):
    _, pairs = accuracies(groups)
    assert [r.label for r in pairs.blocks[0].rows] == list(STAGES)
    assert pairs.columns == ("on base", "on sft", "on instruct")
    cells = {
        (r.label, c): cell.text
        for r in pairs.blocks[0].rows
        for c, cell in zip(pairs.columns, r.cells, strict=True)
    }
    assert cells["sft", "on base"] == cells["base", "on sft"] != cells["base", "on base"]


def test_published_numbers_stand_apart_next_to_the_sets_of_the_paper(groups):
    assert not [r for block in next(accuracies(groups)).blocks for r in block.rows if r.published], (
        "another model"
    )
    ours = [replace(group, data=group.data.assign_attrs(family="llama-3.1-8b")) for group in groups]
    table = next(accuracies(ours))
    theirs = [r for r in table.blocks[0].rows if r.published]
    assert [c.text for c in theirs[0].cells] == ["81.1", "84.5", "85.3", "0.8", "94.7", "95.9", "1.3"]
    assert len(theirs) == 2 and not [r for r in table.blocks[1].rows if r.published]
    assert published.INTERVENTION["facts"]["base", "instruct"] == 0.66
    assert published.PROBE_TRANSFER["animal_class"]["instruct", "instruct"] == 98.75


def test_effects_are_shares_of_the_way_to_certainty_next_to_random_directions(groups):
    (table,) = effects(groups)
    assert table.columns[:5] == ("base → base", "random → base", "sft → sft", "base → sft", "Δ sft")
    cities = row(table, "mean of both", "cities")
    assert cities["base → base"] == cities["base → sft"] == "0.50" and cities["Δ sft"] == "0.00"
    assert cities["random → base"] == "0.20"
    (control,) = [r.cells[1].interval for r in table.blocks[0].rows if r.label.startswith("cities")]
    assert control == "[0.01, 0.39]"
    assert "n = 16" in table.blocks[0].rows[0].label, "examples are not answered"
    assert [b.heading for b in table.blocks] == ["mean of both", "false to true", "true to false"]
    assert (table.tidy.n_random == CONTROLS).all() and set(table.tidy.kind) == {
        "both",
        "false_to_true",
        "true_to_false",
    }


def test_effect_follows_the_formula_by_label():
    one = statements("cities")
    p = one.array("p_diff").copy()
    p[1, 0, one.truth] = -1.0
    drawn = effect_of(one, p)
    np.testing.assert_allclose(drawn.value[:, 1, 0], [0.75, 0.5, 1.0], atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_tables_are_there_for_any_number_of_stages(n):
    stages = ("base", "sft", "dpo", "instruct")[:n]
    groups = [summary(stages), *(statements(name, stages) for name in SETS)]
    tables = [*accuracies(groups), *effects(groups), *completions(groups)]
    assert len(columns_of(stages)) == 1 + 3 * (n - 1)
    for table in tables:
        for write in WRITERS.values():
            text = write(table)
            assert text.strip()
        latex = WRITERS["tex"](table)
        assert r"\toprule" in latex and latex.isascii(), "pdflatex knows no other letters"
        assert WRITERS["csv"](table).startswith("study,set")
    pairs = tables[0].tidy.query("statistic == 'accuracy' and set == 'cities' and probe == 'ttpd'")
    assert len(pairs) == n * n


def test_lines_show_own_and_transferred_accuracy_by_layer(groups):
    drawing, _ = accuracy_by_layer(groups)
    first = drawing.figure.axes[0]
    assert first.get_title() == "cities (n = 20)"
    solid = [line for line in first.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == LAYERS]
    np.testing.assert_allclose(solid[0].get_ydata(), [0.5, 1, 1, 1])
    np.testing.assert_allclose(solid[2].get_ydata(), [0.5, 0.8, 0.8, 0.8])
    assert "n = 20 cities, 12 facts" in drawing.caption and drawing.complete
    (line,) = [line for line in first.lines if list(line.get_xdata()) == [2, 2]]
    assert line.get_linestyle() == ":", "the layer that was chosen"


def test_cosines_are_lines_of_every_two_stages(groups):
    (drawing,) = cosine_by_layer(groups)
    lines = drawing.figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["base, sft", "base, instruct", "sft, instruct"]
    np.testing.assert_allclose(lines[0].get_ydata(), [0.9, 1, 1, 1])


def test_points_lie_where_the_direction_puts_them(groups):
    one = groups[1]
    drawing = next(projections(groups))
    assert drawing.name == "truthfulness/cities/projection" and "block 2" in drawing.caption
    ax = drawing.figure.axes[1]
    assert ax.get_title() == "sft"
    h = one.activations(2)[1]
    h = h - h.mean(0)
    for points, label in zip(ax.collections, (True, False), strict=True):
        np.testing.assert_allclose(np.sort(points.get_offsets()[:, 0]), np.sort(h[one.truth == label, 0]))


def test_the_choice_of_layers_shows_learned_and_random_steering(groups):
    (drawing,) = choice_of_layers(groups)
    left, *panels = drawing.figure.axes
    assert {tuple(line.get_xdata()) for line in left.lines if line.get_marker() == "o"} == {(2,)}
    assert [ax.get_title() for ax in panels] == ["without cities", "without facts"]
    for ax in panels:
        (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        np.testing.assert_allclose(dashed.get_ydata(), [0.25, 0.2, 0.05, np.nan])
        (dot,) = [line for line in ax.lines if line.get_marker() == "o"]
        assert (*dot.get_xdata(), *dot.get_ydata()) == (0, 0.5), "the block that was chosen"
        (band,) = ax.collections
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].max() == 1.0 and corners[:, 1].min() == 0.05, "from the mean to the highest"
    assert "5 random directions" in drawing.caption
    (given,) = choice_of_layers([summary(swept=False)])
    assert len(given.figure.axes) == 1 and "were given" in given.caption


def test_coefficients_are_drawn_where_a_job_asked_for_several(groups):
    assert list(effect_by_coefficient(groups)) == []
    many = [summary(coefficients=(1.0, 2.0)), *(statements(name, coefficients=(1.0, 2.0)) for name in SETS)]
    (drawing,) = effect_by_coefficient(many)
    (own,) = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(own.get_ydata(), [0.25, 0.5], atol=1e-6)


def test_what_is_not_there_yet_is_said():
    groups = [summary(tested=("cities",)), statements("cities"), statements("facts", read_all=False)]
    table = next(accuracies(groups))
    assert table.caption.count("INCOMPLETE: 1 of 2 sets") == 1
    assert not [r for r in table.blocks[0].rows if r.label.startswith("facts")]
    drawing = next(accuracy_by_layer(groups))
    assert "INCOMPLETE: nothing yet for facts" in drawing.caption and not drawing.complete
    (dots,) = effects_against_random(groups)
    assert "nothing yet for facts" in dots.caption and not dots.complete
    scattered = list(projections(groups))[1]
    assert "n = 6 statements of 12, INCOMPLETE" in scattered.caption


def test_nothing_finished_draws_nothing():
    nothing = [statements("cities", read_all=False)]
    for draw in (accuracies, effects, completions, accuracy_by_layer, cosine_by_layer, choice_of_layers,
                 effect_by_coefficient, projections, effects_against_random):  # fmt: skip
        assert list(draw(nothing)) == []
    assert parted(nothing)[0] is None


def test_sample_completions_show_text_and_answer_before_and_after(groups):
    (table,) = completions(groups)
    assert table.columns == ("none", "base")
    first = table.blocks[0].rows[0]
    assert first.label == "w5 is $x_5$. (false)"
    assert [str(c) for c in first.cells] == ["TRUE / The city (-0.60)", "TRUE / The city (+0.20)"]
    assert set(table.tidy.completion) == {" TRUE\nThe city"}


@pytest.mark.slow
@pytest.mark.parametrize("stages", [STAGES, ("base",)], ids=["3 stages", "1 stage"])
def test_no_label_overlaps_another_or_is_cut(stages):
    more = dict(coefficients=(0.5, 1.0))
    groups = [summary(stages, **more), *(statements(name, stages, **more) for name in SETS)]
    for draw in (accuracy_by_layer, cosine_by_layer, choice_of_layers, projections, effects_against_random,
                 effect_by_coefficient):  # fmt: skip
        for drawing in draw(groups):
            assert overlaps(drawing.figure) == [], drawing.name


def test_a_group_of_another_study_is_refused():
    with pytest.raises(FigureError, match="no variable activation"):
        read(xr.Dataset(attrs={"set": "cities"}))
    with pytest.raises(FigureError, match="no variable sweep_effect_random_highest"):
        read(summary().data.drop_vars("sweep_effect_random_highest"))
