"""From a real store to files: what is made, that it is the same each time, and what a mistake says."""

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.text import Text

from posttrace.figures import FigureError, figures, render
from posttrace.figures.files import write_whole
from posttrace.figures.registry import chosen
from posttrace.figures.rendering import products
from posttrace.figures.store_reader import open_source
from posttrace.stores import StoreError
from tests.support.figures import knowledge as synthetic

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("heatmaps", "heatmaps_raw", "differences", "differences_raw", "recovery")


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "posttrace.figures", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_index_lists_every_file_and_every_file_is_there(drawn):
    out, files, told = drawn
    expected = {
        f"tables/knowledge_{t}.{e}"
        for t in ("judgement", "storage", "transfer")
        for e in ("csv", "md", "tex")
    }
    expected |= {
        f"knowledge/{name}/{kind}.{ending}"
        for name in ("cities", "tulu_extracted") for kind in KINDS for ending in ("png", "pdf", "txt")
    }  # fmt: skip
    expected.add("report.html")
    assert {path.relative_to(out).as_posix() for path in files} == expected
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    assert told == [path.relative_to(out).as_posix() for path in files]
    assert (out / "knowledge/cities/heatmaps.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "knowledge/cities/heatmaps.pdf").read_bytes().startswith(b"%PDF")
    assert "n = 12 pairs" in (out / "knowledge/cities/heatmaps.txt").read_text()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(drawn, finished_store, tmp_path):
    out, files, _ = drawn
    # Another seed of Python's hashes and another date: neither may show.
    done = command(finished_store, "--out", tmp_path, PYTHONHASHSEED="12345", SOURCE_DATE_EPOCH="86400")
    assert done.returncode == 0, done.stderr
    names = [path.relative_to(out) for path in files]
    theirs = {str(name): hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    ours = {str(name): hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    assert theirs == ours


@pytest.mark.slow
def test_only_draws_the_kinds_that_were_asked_for(finished_store, tmp_path):
    files = render(finished_store, tmp_path, only=["judgement", "knowledge/heatmaps"])
    assert {path.stem for path in files} == {"knowledge_judgement", "heatmaps"}


@pytest.mark.slow
def test_an_unfinished_store_is_drawn_with_what_it_has(unfinished_store, tmp_path):
    files = render(unfinished_store, tmp_path, only=["heatmaps", "statistics"])
    caption = (tmp_path / "knowledge/cities/heatmaps.txt").read_text()
    assert "INCOMPLETE: of 24 pairs" in caption
    assert "base → instruct 16" in caption
    assert tmp_path / "tables/knowledge_storage.md" in files


def test_a_store_with_nothing_finished_is_refused_with_its_progress(empty_store, tmp_path):
    with pytest.raises(FigureError, match=r"unfinished.*knowledge/cities: 0 of 24 pairs.*resume"):
        render(empty_store, tmp_path)


def test_an_unknown_name_lists_the_valid_ones(finished_store, tmp_path):
    with pytest.raises(FigureError) as mistake:
        render(finished_store, tmp_path / "out", only="heatmap")
    assert all(figure.name in str(mistake.value) for figure in figures())
    assert not (tmp_path / "out").exists(), "found out before anything is made"


def test_no_store_is_a_mistake_of_the_store(tmp_path):
    with pytest.raises(StoreError):
        render(tmp_path / "nothing", tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_told(finished_store, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FigureError, match=r"cannot write here.*choose another --out"):
        render(finished_store, tmp_path / "file" / "out")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "table.csv"
    write_whole(target, b"old")
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    folder = tmp_path / "b"
    (folder / "table.csv").mkdir(parents=True)
    (folder / "table.csv" / "kept").write_text("")
    with pytest.raises(FigureError, match="cannot write"):
        write_whole(folder / "table.csv", b"new")
    assert [path.name for path in folder.iterdir()] == ["table.csv"], "no temporary file is left"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{missing}", "--out", "{out}"], "nothing"),
        (
            ["{store}", "--out", "{out}", "--only", "heatmap"],
            "no such figure (did you mean 'heatmaps'?); valid are knowledge, ",
        ),
        (["{store}", "--out", "{file}/out"], "choose another --out"),
        (["{empty}", "--out", "{out}"], "0 of 24 pairs"),
    ],
    ids=["no store", "unknown name", "out is under a file", "nothing finished"],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, finished_store, empty_store, tmp_path):
    (tmp_path / "file").write_text("")
    places = {"store": finished_store, "empty": empty_store, "out": tmp_path / "out", "file": tmp_path / "file",
              "missing": tmp_path / "nothing"}  # fmt: skip
    done = command(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert done.stdout == ""


def test_help_shows_examples_and_every_name_without_importing_what_draws():
    code = (
        "import sys; from posttrace.figures.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'matplotlib', 'seaborn', 'pandas', 'scipy', 'numpy', 'zarr'}\n"
        "print('LOADED', *(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m posttrace.figures runs/knowledge --out" in done.stdout
    assert all(figure.name in done.stdout for figure in figures())
    assert done.stdout.splitlines()[-1].strip() == "LOADED"


@pytest.mark.slow
def test_drawing_never_imports_a_model_library(finished_store, tmp_path):
    code = (
        "import sys; from posttrace.figures import render\n"
        f"render({str(finished_store)!r}, {str(tmp_path)!r}, only='judgement')\n"
        "assert not {'torch', 'transformers', 'nnsight', 'posttrace.tracers', 'posttrace.pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_labels_that_the_font_cannot_show_are_spelled_out_and_the_caption_says_so(tmp_path):
    """Boxes on the axis, and warnings of matplotlib, are no labels."""
    group = synthetic.template_group("cities", stages=("base", "instruct"), pairs=4)
    labels = ["位于", *group.token_label.values[1:]]
    store = synthetic.write_store(tmp_path / "store", [group.assign_coords(token_label=("token", labels))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = [product.content for product in products(open_source(store), chosen("knowledge/heatmaps"))]
        render(store, tmp_path / "out", only="knowledge/heatmaps")
    (drawing,) = drawings
    shown = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert "U+4F4DU+4E8E" in shown and "位于" not in shown
    assert "lacks are written as their codes (U+4F4D)" in drawing.caption
    assert "written as their codes" in (tmp_path / "out/knowledge/cities/heatmaps.txt").read_text()


def test_labels_that_the_font_can_show_are_left_alone(finished_store):
    for product in products(open_source(finished_store), chosen("knowledge/heatmaps")):
        drawing = product.content
        assert "codes" not in drawing.caption
        assert not any("U+" in text.get_text() for text in drawing.figure.findobj(Text))
