"""What the figures of the confidence study say, from groups made by hand with known answers."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from posttrace.figures import FigureError, theme
from posttrace.figures.measures.calibration import calibration_error, differences, estimates
from posttrace.figures.measures.intervals import permutation_p
from posttrace.figures.studies.confidence.changes import changes
from posttrace.figures.studies.confidence.data import read
from posttrace.figures.studies.confidence.reliability import reliability
from posttrace.figures.studies.confidence.scatter import scatter
from posttrace.figures.studies.confidence.tables import (
    ablation,
    calibration,
    candidate_lists,
    overlaps,
    stages_compared,
)
from tests.support.figures.confidence import make_answers, make_neurons, make_on_text


@pytest.fixture(scope="module")
def neurons():
    return make_neurons()


@pytest.fixture(scope="module")
def on_text():
    return make_on_text()


@pytest.fixture(scope="module")
def answers():
    return make_answers()


def row(table, label, block=0):
    return [str(c) for r in table.blocks[block].rows if r.label == label for c in r.cells]


def test_the_overlap_table_counts_what_is_shared(neurons):
    table, sensitivity = overlaps([neurons])
    ((first, ratio, *_),) = [row(table, "base and instruct")]
    assert first == "3" and float(ratio) == pytest.approx(0, abs=1e-9)
    tidy = table.tidy.iloc[0]
    assert tidy.overlap == 3 and tidy.expected_hypergeometric == pytest.approx(16 / 15)
    cell = sensitivity.tidy.query("top_share == 0.25 and candidates == 5").overlap
    assert len(cell) == 1 and sensitivity.tidy.overlap.le(sensitivity.tidy.candidates).all()
    assert "–" in row(sensitivity, "top 10% by norm"), "no 10 candidates among 6 neurons"
    (which,) = candidate_lists([neurons])
    assert [r.cells[0].text for r in which.blocks[0].rows] == ["50*", "51*", "52*", "53"]


def test_the_average_ratio_difference_is_the_papers(neurons):
    norm, logit_var = neurons.norm.copy(), neurons.logit_var.copy()
    norm[1, 50] *= 1.01
    logit_var[1, 51] *= 1.5
    table, _ = overlaps([replace(neurons, norm=norm, logit_var=logit_var)])
    ratios = norm / np.log(logit_var)
    expected = np.mean([abs(ratios[0, n] - ratios[1, n]) for n in (50, 51, 52)])
    assert table.tidy.mean_ratio_difference[0] == pytest.approx(expected)


def test_the_ablation_table_sets_candidates_next_to_random_sets(on_text, neurons):
    (table,) = ablation([neurons, on_text])
    assert row(table, "4 candidates together")[0] == "0.5000 [0.5000, 0.5000]"
    assert row(table, "50 random sets, mean")[0] == "0.0490"
    assert row(table, "share with as large a change")[0] == "0.02", "1 of 51, the candidates counted in"
    assert "Mean |w_out| of candidates and random neurons: base 1.873 and 1.746" in table.caption
    assert permutation_p(-2.0, np.array([3.0, 1.0])) == pytest.approx(2 / 3)


def test_dots_are_the_changes(on_text):
    (drawing,) = changes([on_text])
    axes = [ax for ax in drawing.figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in axes] == ["entropy", "entropy, norm frozen", "loss", "loss, norm frozen"]
    random, together = (
        np.asarray(c.get_offsets())[:, 1] for c in (axes[0].collections[0], axes[0].collections[2])
    )
    np.testing.assert_allclose(np.sort(random), 0.1 * np.arange(50) / 50, atol=1e-6)
    np.testing.assert_allclose(together, [0.5], atol=1e-6)


@pytest.mark.slow
def test_documents_that_are_missing_are_left_out_and_said(on_text):
    held = {name: values.copy() for name, values in on_text.held.items()}
    for values in held.values():
        values[1, :, 8:] = np.nan
    partly = replace(on_text, held=held)
    (drawing,), (table,) = changes([partly]), ablation([partly])
    assert not drawing.complete and "INCOMPLETE" in drawing.caption and "instruct 8" in table.caption
    assert row(table, "unablated, 8 documents", block=1)
    nothing = {name: np.full_like(values, np.nan) for name, values in held.items()}
    assert not replace(on_text, held=nothing).any_finished


@pytest.mark.slow
def test_scatter_links_what_is_shared_and_marks_the_rest(neurons):
    from matplotlib.patches import ConnectionPatch

    (drawing,) = scatter([neurons])
    assert drawing.name == "confidence/neurons/scatter_base_instruct"
    links = [artist for artist in drawing.figure.artists if isinstance(artist, ConnectionPatch)]
    assert len(links) == 3
    mains = [ax for ax in drawing.figure.axes if ax.get_xlabel()]
    for stage, ax in enumerate(mains):
        everyone, shared, own = (np.asarray(c.get_offsets()) for c in ax.collections[:3])
        assert ax.get_yscale() == "log" and len(everyone) == 60 and len(shared) == 3
        np.testing.assert_allclose(own, [[neurons.norm[stage, 53 + stage], 0.004]])
    assert theme.encode(drawing.figure, "png")[1:4] == b"PNG"
    assert not any("$" in text.get_text() for ax in mains for text in ax.get_yticklabels())


def test_a_stage_that_is_not_there_yet(neurons):
    norm = neurons.norm.copy()
    norm[1] = np.nan
    partly = replace(neurons, norm=norm)
    (drawing,) = scatter([partly])
    assert drawing.name.endswith("scatter_base") and not drawing.complete
    assert not list(overlaps([partly])), "one stage has nothing to share"


def test_calibration_by_hand(answers):
    confidence, right = answers.judged("base")
    assert calibration_error(confidence, right) == pytest.approx(0.0, abs=1e-6)
    confidence, right = answers.judged("instruct")
    found = estimates(confidence, right)
    assert found["ece"].value == pytest.approx(0.19, abs=1e-6) == found["overconfidence"].value
    assert found["accuracy"].low < 0.8 < found["accuracy"].high and found["accuracy"].n == 40
    more = differences(answers.judged("base"), answers.judged("instruct"))
    assert more["confidence"].value == pytest.approx(0.19, abs=1e-6) == more["confidence"].low
    assert more["accuracy"].value == 0


def test_reliability_curves_show_each_stage(answers):
    (drawing,), (table,) = reliability([answers, replace(answers, name="more")]), calibration([answers])
    panels = [ax for ax in drawing.figure.axes if ax.get_visible()]
    assert [ax.get_title().split("  ")[0] for ax in panels] == ["cities", "more", "all sets"]
    heights = [line.get_ydata()[0] for line in panels[0].lines[1:]]
    assert heights == pytest.approx([0.8, 0.8])
    assert row(table, "ECE", block=1)[0].startswith("0.190") and "10 bins" in table.caption
    assert table.blocks[2].heading.startswith("instruct − base")


def test_confidence_stands_next_to_the_neurons(neurons, on_text, answers):
    (table,) = stages_compared([neurons, on_text, answers])
    shared, *_, ece = row(table, "instruct − base")
    assert shared == "3 of 4" and ece.startswith("0.1900")
    assert not list(stages_compared([neurons])), "nothing to compare"


def test_a_group_of_another_study_is_refused():
    with pytest.raises(FigureError, match="none of neurons, text, answers"):
        read(xr.Dataset(coords={"model": ["base"]}, attrs={"part": "other"}))
    with pytest.raises(FigureError, match="weight_norm"):
        read(xr.Dataset(coords={"model": ["base"]}, attrs={"part": "neurons", "layer": 0, "top_share": 1}))
