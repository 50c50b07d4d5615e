"""The pages of the documentation tell the truth: their links, jobs and code. Needs nothing that builds the site."""

import ast
import json
import re
import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml

import posttrace as pt
from posttrace.pipeline.describe import schema
from posttrace.pipeline.studies import STUDIES
from tests.support.json_schema import faults

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
    ROOT / "pipeline" / "embedded" / "MODEL_CARD.md",
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_their_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{named(page)}: {target} is not there"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{named(page)}: {target}: no such heading"


def test_every_study_has_a_page_and_a_row_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for study in STUDIES:
        assert (ROOT / "docs" / "studies" / f"{study}.md").exists()
        assert f"](docs/studies/{study}.md)" in readme and f"posttrace run {study}" in readme


def test_jobs_on_the_pages_are_jobs():
    jobs = [
        job for page in PAGES for text in blocks(page, "yaml") if "study" in (job := yaml.safe_load(text))
    ]
    assert {job["study"] for job in jobs} == set(STUDIES)
    for job in jobs:
        assert faults(job, schema(job["study"])) == [], job


def test_every_public_name_is_in_the_reference_and_every_name_on_the_pages_is_public():
    reference = (ROOT / "docs" / "reference" / "posttrace.md").read_text()
    for name in pt.__all__:
        assert f".. autofunction:: {name}\n" in reference or f"`posttrace.{name}`" in reference, name
    for page in PAGES:
        for code in blocks(page, "python"):
            ast.parse(code)
            assert {*re.findall(r"\bpt\.(\w+)", code)} <= {*pt.__all__}, named(page)


def test_what_the_studies_found_is_in_the_model_card_once():
    card = (ROOT / "pipeline" / "embedded" / "MODEL_CARD.md").read_text()
    for study in STUDIES:
        begin, end = f"<!-- {study}: begin -->", f"<!-- {study}: end -->"
        assert card.count(begin) == card.count(end) == 1
        page = (ROOT / "docs" / "studies" / f"{study}.md").read_text()
        assert begin in page and end in page


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_the_code_of_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {}
    for cell in blocks(notebook, r"\{code-cell\}"):
        exec(cell, names)
    for axes in names["figure"].axes:
        assert axes.has_data()


@pytest.mark.slow
def test_a_grid_that_others_published_is_imported_and_drawn(tmp_path):
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "import_patching.py"))
    tokens, layers = len(example["LABELS"]), 4
    grid = np.full((3, tokens, layers), -7.0)
    grid[:, 0, -1] = 5.0  # the file has the last token first
    grid[:, tokens - 1 - example["LABELS"].index("[s3]"), 0] = 4.0
    pairs = [
        {"true_prompt": f"t{i}", "false_prompt": f"f{i}", "logit_diffs": one.tolist()}
        for i, one in enumerate(grid)
    ]
    (tmp_path / "grid.json").write_text(json.dumps({"model_cities_true_false": pairs}))
    example["import_grid"](str(tmp_path / "grid.json"), str(tmp_path / "store"))
    assert pt.verify(tmp_path / "store") == []
    cities = pt.open_store(tmp_path / "store")["knowledge/cities"]
    assert (cities.logit_diff_clean == 5).all() and (cities.logit_diff_corrupt == -7).all()
    at_subject = cities.logit_diff.isel(
        source=0, target=0, layer=0, token=cities.token_label.values == "[s3]"
    )
    assert (at_subject == 4).all()
    files = pt.render(tmp_path / "store", tmp_path / "figures", only="knowledge/recovery")
    assert any(file.suffix == ".png" for file in files)
