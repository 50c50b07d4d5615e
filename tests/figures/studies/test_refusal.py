"""What the figures and tables of the refusal study show, from a store written as a run writes it."""

import io

import numpy as np
import pandas as pd
import pytest

from posttrace.figures import render, tables
from posttrace.figures.measures.intervals import wilson
from posttrace.figures.studies.refusal.coefficients import coefficients
from posttrace.figures.studies.refusal.cosines import cosine, cosines
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.figures.studies.refusal.sweep import sweep
from posttrace.figures.studies.refusal.tables import completions, scores, selection
from posttrace.stores import open_group
from tests.support.figures.refusal import LAYERS, NAMES, POSITIONS, STAGES, VALIDATION, N, write


def opened(url):
    return Refusal.from_dataset(open_group(url, "refusal"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("refusal") / "store")


@pytest.fixture(scope="module")
def refusal(store):
    return opened(store)


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """No answers of instruct with its own direction yet, nothing of sft, and base not read."""
    gone = (
        "refusal/answers/2/2",
        "refusal/directions/0",
        *(f"refusal/answers/1/{d}" for d in range(len(NAMES))),
    )
    return opened(write(tmp_path_factory.mktemp("partly") / "store", lambda unit: unit in gone))


def rows(table, heading):
    block = next(b for b in table.blocks if b.heading == heading)
    return {row.label: dict(zip(table.columns, map(str, row.cells), strict=True)) for row in block.rows}


def test_the_talks_table_for_any_number_of_stages(refusal):
    table = next(scores([refusal]))
    assert table.columns == ("baseline", "own", "base", "sft", "instruct", "random")
    found = rows(table, "into instruct")["harmful, ablation ↓"]
    low, high = wilson(1 / N, N)
    assert found["baseline"].startswith("1.00 [0.76") and found["own"] == f"0.08 [{low:.2f}, {high:.2f}]"
    assert found["base"].startswith("1.00") and found["sft"].startswith("0.00") and found["instruct"] == "own"
    assert found["random"] == "1.00 [1.00, 1.00]"
    assert rows(table, "into instruct")["harmless, addition ↑"]["own"].startswith("1.00")
    assert not [row for block in table.blocks for row in block.rows if row.published], "another model"
    table = next(scores([Refusal(refusal.data.assign_attrs(family="llama-3.1-8b"))]))
    published = [row for block in table.blocks for row in block.rows if row.published]
    assert [str(c) for c in published[2].cells] == ["0.98", "0.01", "0.95", "–", "–", "–"]
    assert "n = 12 harmful and 12 harmless" in table.caption and "Wilson" in table.caption


def test_every_measure_has_its_table_with_intervals(refusal):
    found = {table.name: table for table in scores([refusal])}
    assert list(found) == ["refusal_refused", "refusal_log_odds", "refusal_mean_nll", "refusal_repeated"]
    frame = pd.read_csv(io.StringIO(tables.as_csv(found["refusal_log_odds"]))).fillna("")
    assert len(frame) == 3 * (1 + 2 * len(NAMES)) * 2, "both interventions, both kinds, every direction"
    one = frame[(frame.target == "instruct") & (frame.direction == "instruct") & (frame.kind == "harmful")]
    value = one.set_index("intervention").loc["ablation"]
    data = refusal.data.log_odds.isel(direction=2, target=2, intervention=1, prompt=slice(0, N))
    assert (
        value.estimate == pytest.approx(float(data.mean()), rel=1e-5)
        and value.low < value.estimate < value.high
    )
    assert value.unit == "nats" and value.n_prompts == N and bool(value.own)
    for table in found.values():
        assert "INCOMPLETE" not in table.caption and tables.as_latex(table).count("&") > 20


@pytest.mark.slow
def test_what_is_not_finished_is_left_out_and_said(partly):
    table = next(scores([partly]))
    assert table.caption.startswith("INCOMPLETE")
    assert rows(table, "into instruct")["harmful, ablation ↓"]["own"] == "–"
    assert rows(table, "into sft")["harmful, ablation ↓"]["baseline"] == "–"
    (chosen,) = selection([partly])
    assert [row.label for row in chosen.blocks[0].rows] == ["sft", "instruct"], "base was not read yet"
    for draw in (sweep, cosines, coefficients):
        (drawing,) = draw([partly])
        assert "INCOMPLETE" in drawing.caption and not drawing.complete


def test_the_selection_is_told(refusal):
    (table,) = selection([refusal])
    found = rows(table, "stage")
    assert found["base"]["qualifies"] == "no" and found["instruct"]["qualifies"] == "–"
    assert [found["sft"][c] for c in ("layer", "position", "token", "added")] == ["4", "-2", "':'", "3.00"]


def test_the_sweep_has_a_line_for_each_position_and_a_ring_where_it_was_chosen(refusal):
    (drawing,) = sweep([refusal])
    axes = drawing.figure.axes
    assert len(axes) == 9
    bypass = axes[3]  # sft
    for position in range(POSITIONS):
        expected = refusal.data.bypass[1, :, position].mean("validation_harmful", skipna=False)
        np.testing.assert_allclose(bypass.lines[position].get_ydata(), expected, rtol=1e-5)
    ring = bypass.lines[-1]
    assert ring.get_xdata() == [4]
    assert ring.get_ydata()[0] == pytest.approx(float(refusal.data.bypass[1, 4, 1].mean()), rel=1e-5)
    assert f"n = {VALIDATION}" in drawing.caption
    assert bypass.patches[0].get_x() == 4.5, "grey: from layer 5 on, 4 of 6 is before 0.8 of the depth"


def test_cosines_compare_every_two_stages_at_every_place(refusal):
    (drawing,) = cosines([refusal])
    panels = {ax.get_title(): ax for ax in drawing.figure.axes if ax.get_title()}
    assert list(panels) == ["base · sft", "base · instruct", "sft · instruct"]
    shown = np.ma.asarray(panels["sft · instruct"].collections[0].get_array()).reshape(LAYERS, POSITIONS)
    assert np.ma.getmaskarray(shown)[0].all() and np.allclose(shown[1:], 1, atol=1e-5)
    one = cosine(refusal.direction("base"), refusal.direction("sft"))
    other = np.ma.asarray(panels["base · sft"].collections[0].get_array()).reshape(LAYERS, POSITIONS)
    np.testing.assert_allclose(other[1:], one[1:])


def test_coefficients_are_drawn_only_where_they_were_searched(refusal, tmp_path):
    (drawing,) = coefficients([refusal])
    lines = drawing.figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), [0.5, 1.0, 1.5])
    np.testing.assert_allclose(
        lines[0].get_ydata(), refusal.data.search_refused[0].mean("validation_harmless")
    )
    assert list(coefficients([opened(write(tmp_path / "plain", search=False))])) == []


def test_answers_stand_side_by_side_and_all_of_them_in_the_csv(refusal):
    (table,) = completions([refusal])
    assert len(table.blocks) == 10 and table.columns == STAGES and table.prose
    block = table.blocks[0]
    assert block.heading == "harmful: Do_it 0"
    assert [row.label for row in block.rows] == [
        "unsteered", "without base", "without sft", "without instruct", "without random-0",
    ]  # fmt: skip
    assert [str(c) for c in block.rows[0].cells] == [
        "Sure. First do $x^2$ & 50 % of it",
        *["× I cannot | help_you."] * 2,
    ]
    frame = pd.read_csv(io.StringIO(tables.as_csv(table)))
    assert len(frame) == 3 * 2 * N * (1 + 2 * len(NAMES))
    assert r"\$x\textasciicircum{}2\$ \& 50 \%" in tables.as_latex(table) and "p{0.267" in tables.as_latex(
        table
    )


@pytest.mark.slow
def test_the_store_gives_the_same_files_each_time_with_a_page_of_its_own(store, tmp_path):
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in render(store, tmp_path / "a", page=True)}
    assert len(first) == 6 * 3 + 3 * 2 + 1
    only = ["refusal/scores", "refusal/cosines"]
    again = {p.relative_to(tmp_path / "b"): p.read_bytes() for p in render(store, tmp_path / "b", only=only)}
    assert len(again) == 4 * 3 + 2 and all(first[name] == content for name, content in again.items())
    html = (tmp_path / "a" / "report.html").read_text()
    assert 'class="numbers prose"' in html and "help_you" in html and "refusal · toy" in html
    assert html.count("data:image/png") == 3
