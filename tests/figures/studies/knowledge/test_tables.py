"""Tables: the numbers in the tidy form, and the forms that people read and paste."""

import io
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from posttrace.figures import published, tables
from posttrace.figures.measures.patching import correlation, largest_difference, normalise
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import comparisons, judgement, statistics
from posttrace.figures.tables import Block, Cell, Row, Table, as_csv, as_markdown, cell
from tests.support.figures.knowledge import free_group, template_group


@pytest.fixture(scope="module")
def sets():
    partly = {("base", "base"): 10, ("instruct", "instruct"): 6}
    return [
        PatchGrid.from_dataset(template_group("cities", pairs=10)),
        PatchGrid.from_dataset(template_group("neg_cities", pairs=10, seed=4, finished=partly)),
        PatchGrid.from_dataset(free_group()),
    ]


@pytest.fixture(scope="module")
def storage(sets):
    return next(statistics(sets))


def test_every_stage_is_compared_with_base_and_every_transfer_with_own(sets):
    found = [(c.kind, *c.first, *c.second) for c in comparisons(sets[0])]
    assert found == [
        ("storage", "base", "base", "sft", "sft"),
        ("storage", "base", "base", "instruct", "instruct"),
        ("forward", "base", "sft", "sft", "sft"),
        ("forward", "base", "instruct", "instruct", "instruct"),
        ("forward", "sft", "instruct", "instruct", "instruct"),
        ("backward", "sft", "base", "base", "base"),
        ("backward", "instruct", "base", "base", "base"),
        ("backward", "instruct", "sft", "sft", "sft"),
    ]


def test_the_tidy_table_holds_the_statistics_of_the_two_matrices(sets, storage):
    frame = pd.read_csv(io.StringIO(tables.as_csv(storage)))
    grid = sets[0]
    base, instruct = grid.mean("base", "base"), grid.mean("instruct", "instruct")
    here = frame[(frame["set"] == "cities") & (frame.matrix_2 == "instruct->instruct")]
    value = here.set_index(["scale", "statistic"]).estimate
    assert value["raw", "correlation"] == pytest.approx(float(correlation(base, instruct)), rel=1e-5)
    assert value["raw", "max_k"] == pytest.approx(
        float(largest_difference(base, instruct, grid.key_columns)), rel=1e-5
    )
    assert value["normalised", "max"] == pytest.approx(
        float(largest_difference(normalise(base), normalise(instruct)))
    )
    assert set(here.n_pairs) == {10}
    assert (here.low <= here.high).all()
    assert here.set_index(["scale", "statistic"]).unit.fillna("").to_dict() == {
        ("normalised", "correlation"): "", ("normalised", "max"): "", ("normalised", "max_k"): "",
        ("raw", "correlation"): "", ("raw", "max"): "nats", ("raw", "max_k"): "nats",
    }  # fmt: skip


def test_an_unfinished_set_counts_its_pairs_and_leaves_gaps(storage):
    markdown = tables.as_markdown(storage)
    assert "INCOMPLETE: neg\\_cities" in markdown
    base_sft, base_instruct = markdown.split("| base and ")[1:]
    assert "| 0 of 10 " in base_sft
    assert "| 6 of 10 " in base_instruct
    frame = storage.tidy
    assert set(frame[(frame["set"] == "neg_cities")].matrix_2) == {"instruct->instruct"}


def test_markdown_has_a_row_for_each_statistic_and_a_column_for_each_set(storage):
    lines = tables.as_markdown(storage).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| base and instruct"))
    rows = [
        [part.strip() for part in line.replace("\\|", "¦").split("|")[1:-1]]
        for line in lines[start : start + 9]
    ]
    assert rows[0][1:] == ["cities", "neg\\_cities", "tulu\\_extracted"]
    assert [row[0] for row in rows[2:]] == [
        "pairs", "Pearson r, normalised", "max ¦M1 − M2¦, normalised", "K, normalised",
        "Pearson r, raw", "max ¦M1 − M2¦, raw, nats", "K, raw, nats",
    ]  # fmt: skip
    assert {len(row) for row in rows} == {4}


def test_the_caption_tells_how_the_intervals_were_made(storage):
    for words in ("95%", "percentile bootstrap", "2000 resamples", "seed 0", "over pairs", "biased low"):
        assert words in storage.caption, words


def test_published_values_stand_next_to_ours_only_where_the_paper_has_them(sets):
    storage = next(statistics([replace(grid, family="llama-3.1-8b") for grid in sets]))
    with_paper = {block.heading: [row for row in block.rows if row.published] for block in storage.blocks}
    assert with_paper["base and sft, storage"] == []
    correlation_row, _, k_row = with_paper["base and instruct, storage"]
    assert [str(c) for c in correlation_row.cells] == ["0.9923", "0.9853", "0.9978"]
    assert [str(c) for c in k_row.cells] == ["0.2", "0.4", "0.1"]
    assert "Llama-3.1-8B" in correlation_row.label
    assert published.PAPER not in tables.as_markdown(storage)
    assert published.PAPER not in tables.as_latex(storage)


def test_published_values_of_another_model_are_not_shown(storage):
    assert not [row for block in storage.blocks for row in block.rows if row.published]


def test_judgement_counts_pairs_where_both_halves_are_right():
    dataset = template_group("cities", stages=("base",), pairs=4)
    dataset["logit_diff_clean"][0] = [2.0, 1.0, -1.0, 3.0]
    dataset["logit_diff_corrupt"][0] = [-1.0, 0.5, -2.0, -3.0]
    (table,) = judgement([PatchGrid.from_dataset(dataset)])
    value = table.tidy.set_index("statistic").estimate
    assert value["knows_both"] == 0.5
    assert value["clean"] == pytest.approx(1.25)
    assert value["corrupt"] == pytest.approx(-1.375)


def test_judgement_leaves_out_pairs_without_unpatched_values():
    dataset = template_group("cities", stages=("base",), pairs=4)
    dataset["logit_diff_clean"][0, 2] = np.nan
    (table,) = judgement([PatchGrid.from_dataset(dataset)])
    assert set(table.tidy.n_pairs) == {3}
    assert str(table.blocks[0].rows[0].cells[0]) == "3 of 4"


def test_a_number_that_is_not_defined_is_a_dash_and_has_no_interval():
    assert str(cell(np.nan, np.nan, np.nan, 2)) == "–"
    assert str(cell(-0.0001, -0.2, 0.1, 2)) == "0.00 [-0.20, 0.10]"


def small_table():
    rows = (Row("a_b & 50 % <x>", (Cell("0.10", "[0.05, 0.20]"), Cell("1"))),)
    block = Block("base → sft", rows)
    return Table(
        name="t_1",
        heading="Heading",
        caption="A caption → 1 − |x|",
        columns=("set_1", "set_2"),
        blocks=(block,),
        records=pd.DataFrame(),
    )


def test_latex_escapes_what_latex_reads_as_commands():
    text = tables.as_latex(small_table())
    assert r"a\_b \& 50 \% $<$x$>$ & 0.10 & 1 \\" in text
    assert r"\textit{base $\rightarrow$ sft}" in text
    assert r"{\tiny {[0.05, 0.20]}}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert text.count(r"\begin{") == text.count(r"\end{")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(storage, tmp_path):
    body = tables.as_latex(storage)
    document = rf"\documentclass[twocolumn]{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_text_of_a_store_stays_text_in_every_form():
    """What a model or a CSV says is shown, not run: no formula in a spreadsheet, no HTML in Markdown."""
    said = [
        "=1+1",
        "@SUM(A1)",
        "+1",
        "-1",
        "<img src=x onerror=alert(1)>",
        "[a](http://b)",
        "plain",
        "a|b\nc",
    ]
    table = Table(
        name="x",
        heading="<b>x</b>",
        caption="<script>alert(1)</script>",
        columns=("text",),
        blocks=(Block("b", tuple(Row("r", (Cell(text),)) for text in said)),),
        records=pd.DataFrame({"text": said, "value": [-1.5] * len(said)}),
        prose=True,
    )
    lines = as_csv(table).splitlines()
    assert [line.split(",")[0] for line in lines[1:5]] == ["'=1+1", "'@SUM(A1)", "'+1", "'-1"]
    assert lines[1].endswith(",-1.5") and "plain,-1.5" in lines
    text = as_markdown(table)
    assert "<" not in text and "](" not in text and "&lt;img src=x" in text and "a\\|b c" in text
