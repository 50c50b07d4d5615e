"""The report as a reader and a browser get it."""

import base64
import json
import re
from html.parser import HTMLParser
from pkgutil import resolve_name

import numpy as np
import pytest

from posttrace.figures import FigureError, report
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import Items, regions
from posttrace.figures.measures.intervals import RESAMPLES, SEED, resampled_counts
from posttrace.figures.measures.patching import normalise
from posttrace.figures.registry import chosen
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.stores import open_group
from tests.support.browser import HOSTILE, TOUCH, chromium
from tests.support.figures import confidence, refusal, stages, truthfulness
from tests.support.figures.knowledge import by_head, free_group, template_group, write_dataset, write_store


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.open, self.unbalanced = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def finished(drawn):
    return Reader((drawn[0] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def unfinished(unfinished_store, tmp_path_factory):
    path = report(unfinished_store, tmp_path_factory.mktemp("page"))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"], "the page alone"
    return Reader(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_figure_is_in_the_page_with_words_for_those_who_cannot_see_it(finished):
    images = finished.all("img")
    assert len(images) == 10
    for image in images:
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        assert len(image["alt"]) > 20
    assert "n = 12 pairs." in finished.text


@pytest.mark.slow
def test_nothing_comes_from_outside(finished):
    assert finished.all("link") == []
    assert not [script for script in finished.all("script") if "src" in script]
    assert "default-src 'none'" in finished.all("meta")[-1]["content"], "nor could it"
    for tag, attributes in finished.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in finished.text


@pytest.mark.slow
def test_the_markup_is_balanced_and_every_link_has_its_target(finished):
    assert finished.unbalanced == []
    assert finished.open == []
    ids = {attributes["id"] for _, attributes in finished.tags if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in finished.all("a")} <= ids


@pytest.mark.slow
def test_the_page_says_what_was_run(finished):
    for words in (
        "posttrace: knowledge · embedded",
        "0123abcd",
        "resid_post",
        "base, instruct",
        "numpy 2.0",
        "cities 12",
        "c0ffee with uncommitted",
    ):
        assert words in finished.text, words
    assert '"study": "knowledge"' in finished.text, "the whole job is in the record"


@pytest.mark.slow
def test_published_values_of_another_model_are_not_on_the_page(finished):
    assert "0.9923" not in finished.text
    assert not [row for row in finished.all("tr") if row.get("class") == "published"]


@pytest.mark.slow
def test_the_page_begins_with_the_answer_and_ends_with_the_provenance(drawn, finished):
    html = (drawn[0] / "report.html").read_text(encoding="utf-8")
    sentence, picture = html.index("Storage maps of base and instruct correlate"), html.index("<img")
    assert (
        sentence
        < picture
        < html.index('id="knowledge"')
        < html.index('id="guide"')
        < html.index('id="record"')
    )
    record = html[html.index('id="record"') :]
    for words in ("numpy 2.0", "c0ffee", "0123abcd"):
        assert words in record and words not in html[: -len(record)], words
    assert re.search(r"base.*instruct", finished.text[: finished.text.index("Storage maps")]), (
        "what was compared"
    )
    assert (
        'alt="Lines of the recovered share over layers for cities'
        in html[picture : picture + 10**7].split("\n")[0]
    )


@pytest.mark.slow
def test_full_grids_are_closed_and_differences_are_not(drawn):
    html = (drawn[0] / "report.html").read_text(encoding="utf-8")
    closed = re.findall(r"<details>.*?</details>", html, flags=re.S)
    heat_maps = [text for text in closed if "<b>Normalised heat maps.</b>" in text]
    assert len(heat_maps) == 2, "one for each set"
    rest = re.sub(r"<details>.*?</details>", "", html, flags=re.S)
    assert "<b>Normalised heat maps.</b>" not in rest
    assert rest.count("<img") == 4, "recovery and differences of two sets"
    assert "<details open" not in html


@pytest.mark.slow
def test_a_finished_store_has_no_banner(finished):
    assert not [div for div in finished.all("div") if div.get("class") == "banner"]
    assert "UNFINISHED" not in finished.text
    assert "INCOMPLETE" not in finished.text


@pytest.mark.slow
def test_an_unfinished_store_has_a_banner_that_counts_units(unfinished):
    assert any(attributes.get("role") == "status" for attributes in unfinished.all("div"))
    assert "6 of 10 units are done" in " ".join(unfinished.text.split())


def test_a_done_store_with_a_pair_that_is_not_finite_says_so(tmp_path):
    dataset = template_group("cities", stages=("base",), pairs=4)
    dataset["logit_diff"][0, 0, 2, 1, 1] = float("inf")
    store = write_store(tmp_path / "store", [dataset])
    text = " ".join(Reader(report(store, tmp_path / "out").read_text(encoding="utf-8")).text.split())
    assert "Every unit is done, but some pairs have values that are missing or not finite" in text
    assert "base → base 3" in text


def page_of(path):
    html = path.read_text(encoding="utf-8")
    return html, Reader(html)


@pytest.mark.slow
def test_a_set_that_a_stage_does_not_know_fades_and_is_left_out_of_the_sentence(tmp_path):
    known = template_group("cities", stages=("base", "instruct"), pairs=6)
    guessed = template_group("neg_cities", stages=("base", "instruct"), pairs=6)
    guessed["logit_diff_clean"][0] *= -1
    html, page = page_of(report(write_store(tmp_path / "store", [guessed, known]), tmp_path / "out"))
    text = " ".join(page.text.split())
    assert "In 1 of 2 sets (neg_cities) a stage judges pairs no better than guessing" in text
    assert "base judges 0.00 [0.00, 0.00] of 6 pairs right" in text
    sentence = text[text.index("Storage maps of base") : text.index("In 1 of 2 sets")]
    assert "(cities, n = 6 pairs)" in sentence and "neg_cities" not in sentence
    figures = re.findall(r'<figure( class="faded")?>\n<img [^>]*alt="([^"]*)"', html)
    assert "cities" in figures[0][1] and "neg_cities" not in figures[0][1], (
        "the hero is of the set that is known"
    )
    assert {bool(faded) for faded, alt in figures if "neg_cities" in alt} == {True}
    assert {bool(faded) for faded, alt in figures if "neg_cities" not in alt} == {False}
    assert '<th scope="col" class="faded">neg_<wbr>cities</th>' in html


@pytest.mark.slow
def test_several_stores_make_one_page(tmp_path, monkeypatch):
    for name, pairs in (("one", 4), ("two", 5)):
        write_store(tmp_path / name, [template_group("cities", stages=("base", "instruct"), pairs=pairs)])
    monkeypatch.chdir(tmp_path)
    written = report(["one", "two"])
    assert written.as_posix() == "one+two-report/report.html"
    html, page = page_of(written)
    assert page.unbalanced == [] and page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"knowledge", "knowledge-2"} <= set(ids)
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= set(ids)
    for words in ("knowledge · embedded · one", "knowledge · embedded · two", "n = 4 pairs", "n = 5 pairs"):
        assert words in page.text, words
    assert html.index("n = 5 pairs") < html.index("<img"), "both sentences are on the first screen"
    with pytest.raises(FigureError, match="named more than once"):
        report(["one", "one"])


@pytest.mark.slow
def test_hostile_names_stay_text(tmp_path):
    stages = ("<script>alert(1)</script>", '"><img src=x onerror=y>')
    dataset = free_group(stages=stages, pairs=4).assign_attrs(family="<b>bold</b>{{ 7 * 7 }}")
    write_dataset(tmp_path / "store", "knowledge/set", dataset)
    _, page = page_of(report(tmp_path / "store", tmp_path / "out"))
    assert page.unbalanced == []
    *data, ours = page.all("script")
    assert ours == {} and {tuple(script) for script in data} == {("type", "class"), ("type", "id")}
    assert all(set(image) == {"src", "width", "height", "alt"} for image in page.all("img"))
    assert "Storage maps of <script>alert(1)</script> and" in page.text
    assert "<b>bold</b>{{ 7 * 7 }}" in page.text


def test_the_interval_of_a_cell_is_that_of_means_over_resampled_items():
    one, two = np.random.default_rng(0).normal(size=(2, 5, 2, 3))
    one[1] = np.nan  # not finished
    two[3, 0, 2] = np.nan  # this item has no such token
    items = Items("pair", (), [()] * 5, {"one": one, "two": two}, "nats")

    def naively(of, transform=lambda mean: mean):
        there = [i for i in range(5) if not any(np.isnan(values[i]).all() for values in of)]
        draws = []
        for counts in resampled_counts(len(there), np.random.default_rng(SEED)):
            for row in counts:
                drawn = [i for i, times in zip(there, row, strict=True) for _ in range(times)]
                draws.append(np.subtract(*[transform(np.nanmean(values[drawn], axis=0)) for values in of])
                             if len(of) == 2 else transform(np.nanmean(of[0][drawn], axis=0)))  # fmt: skip
        assert len(draws) == RESAMPLES
        return np.quantile(draws, [0.025, 0.975], axis=0)

    n, ends = items.interval(["one"], None)
    assert n.tolist() == [[4] * 3] * 2
    np.testing.assert_allclose(ends, naively([one]))
    np.testing.assert_allclose(items.interval(["one"], normalise)[1], naively([one], normalise))
    whole = Items("pair", (), [()] * 5, {"one": one, "two": np.nan_to_num(two)}, "nats")
    both = whole.interval(["one", "two"], normalise)[1]
    np.testing.assert_allclose(both, naively([one, np.nan_to_num(two)], normalise))
    n, ends = items.interval(["two"], None)
    assert n.tolist() == [[5, 5, 4], [5, 5, 5]]
    np.testing.assert_allclose(ends[:, 1], naively([two])[:, 1])
    assert Items("pair", (), [()], {"one": one[:1]}, "nats").interval(["one"], None)[1] is None


def groups_of_studies(folder):
    """Small groups of every study whose figures have estimates."""
    found = {
        "knowledge": [
            PatchGrid.from_dataset(template_group(stages=("base", "sft"), pairs=6)),
            PatchGrid.from_dataset(by_head(layers=4, n=4)),
        ],
        "refusal": [Refusal.from_dataset(open_group(refusal.write(folder / "refusal"), "refusal"))],
        "stages": [stages.behaviour()],
        "confidence": [confidence.make_on_text(), confidence.make_answers()],
        "truthfulness": [
            truthfulness.summary(coefficients=(0.5, 1.0)),
            *(truthfulness.statements(name, coefficients=(0.5, 1.0)) for name in truthfulness.SETS),
        ],
    }
    return found


ESTIMATES = {
    "knowledge/recovery": "recovered share",
    "knowledge/heatmaps": "normalised effect of patching",
    "knowledge/differences_raw": "difference of mean logit differences, nats",
    "knowledge/heads": "mean change of the logit difference, nats",
    "refusal/coefficients": "share of refusals",
    "refusal/sweep": "log-odds, nats",
    "stages/credit": "log-odds, nats",
    "stages/dose": "log-odds, nats",
    "stages/cumulative": "log-odds, nats",
    "stages/agreement": "mean of insert and remove",
    "stages/tokens": "attribution, log-odds, nats",
    "stages/modules": "attribution, log-odds, nats",
    "confidence/changes": "change, nats",
    "confidence/reliability": "share of right answers",
    "truthfulness/accuracy": "accuracy",
    "truthfulness/effects": "effect",
    "truthfulness/coefficients": "effect",
}
"""Figures whose marks are estimates, and what is told with the value."""


@pytest.mark.slow
def test_every_mark_that_is_an_estimate_tells_value_interval_n_and_unit(tmp_path):
    groups = groups_of_studies(tmp_path)
    for name, unit in ESTIMATES.items():
        study = name.split("/")[0]
        (figure,) = chosen(name)
        drawing = next(
            one for one in resolve_name(figure.function)(groups[study]) if isinstance(one, Drawing)
        )
        drawing.figure.set_layout_engine("none")
        found = regions(drawing.figure, drawing.items)
        assert found, name
        for region in found:
            said = region["unit"] if "values" in region else region["y"]
            if region is found[0]:
                assert unit in said, (name, said)
            if "values" in region:
                value, low, high = (np.array(region[key], float) for key in ("values", "low", "high"))
                assert np.min(region["n"]) > 0
            else:
                assert all(len(point) >= 8 for point in region["points"]), (name, region["title"])
                points = [point for point in region["points"] if point[5] is not None]
                value, low, high, n = np.array([point[4:8] for point in points], float).T
                assert len(points) and (n > 0).all(), (name, region["title"])
            slack = 1e-3 * np.abs(value) + 1e-6  # four digits are told
            assert ((low <= value + slack) & (value <= high + slack)).all(), (name, region["title"])


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    """The page of two sets, one with hostile statements, opened from a file."""
    folder = tmp_path_factory.mktemp("browsed")
    stages = ("base", "instruct")
    known = template_group("cities", stages=stages, pairs=12)
    half = known["logit_diff"].copy()
    known["logit_diff"][:, :, :, 2, 4] += np.arange(12)  # the pairs differ at one cell
    texts = [f"true {i} {HOSTILE}" for i in range(12)], [f"false {i}" for i in range(12)]
    known = known.assign_coords(clean_statement=("pair", texts[0]), corrupt_statement=("pair", texts[1]))
    assert not known["logit_diff"].equals(half)
    write_store(folder / "store", [known, template_group("neg_cities", stages=stages, pairs=5)])
    path = report(folder / "store", folder / "out")
    with chromium() as page:
        page.goto(path.as_uri())
        page.known = known
        yield page
        assert page.requested == [path.as_uri()] and page.faults == []
        assert page.evaluate(f"typeof {TOUCH}") == "undefined"


def point(page, figure, region, across, down):
    """Page coordinates of a place in a region of a figure."""
    image = figure.locator("img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    left, top, width, height = region["box"]
    edge = 11  # border and padding
    inner = box["width"] - 2 * edge, box["height"] - 2 * edge
    return box["x"] + edge + inner[0] * (left + width * across), box["y"] + edge + inner[1] * (
        top + height * down
    )


@pytest.mark.slow
def test_lines_tell_value_interval_and_n_under_the_mouse(browsed):
    figure = browsed.locator("section.hero figure")
    region = json.loads(figure.locator("script.hover").text_content())[0]
    spot = region["points"][3]
    browsed.mouse.move(*point(browsed, figure, region, spot[0], spot[1]))
    low, high = spot[5:7]
    assert low <= spot[4] <= high
    told = browsed.locator(".tip").text_content()
    assert re.fullmatch(r"\w+ → \w+\nlayer 3\nrecovered share: [-\d.]+ \[[-\d.]+, [-\d.]+\], n = 12", told), (
        told
    )


@pytest.mark.slow
def test_a_cell_tells_its_mean_and_lists_its_pairs_in_order(browsed):
    browsed.get_by_text("More figures").first.click()
    figure = browsed.locator("figure", has_text="Heat maps, not normalised").first
    regions = json.loads(figure.locator("script.hover").text_content())
    region = next(one for one in regions if one["title"] == "base → instruct")
    across, down = (4.5 / len(region["columns"]), 2.5 / len(region["rows"]))
    browsed.mouse.move(*point(browsed, figure, region, across, down))
    values = browsed.known["logit_diff"].sel(source="base", target="instruct")[:, 2, 4].values
    told = browsed.locator(".tip").text_content()
    mean, low, high = map(float, re.search(r": ([-\d.]+) \[([-\d.]+), ([-\d.]+)\], n = 12", told).groups())
    assert abs(mean - values.mean()) < 1e-3 * abs(mean) and low < mean < high
    assert abs((high - low) / 2 - 1.96 * values.std() / np.sqrt(12)) < 0.25 * (high - low)
    browsed.mouse.click(*point(browsed, figure, region, across, down))
    rows = figure.locator(".items tbody tr").all()
    listed = [[cell.text_content() for cell in row.locator("td").all()] for row in rows]
    assert [int(row[0]) for row in listed] == sorted(range(12), key=lambda i: -values[i])
    np.testing.assert_allclose([float(row[-1]) for row in listed], sorted(values, reverse=True), atol=0.01)
    assert listed[0][1].endswith(HOSTILE), "hostile text stays text"
    figure = browsed.locator("figure", has_text="Differences, not normalised").first
    regions = json.loads(figure.locator("script.hover").text_content())
    region = next(one for one in regions if one["title"] == "base → instruct − own")
    browsed.mouse.click(*point(browsed, figure, region, across, down))
    rows = figure.locator(".items tbody tr").all()
    two = browsed.known["logit_diff"].sel(source="instruct", target="instruct")[:, 2, 4].values
    listed = {
        int(row.locator("td").first.text_content()): row.locator("td.number").all_text_contents()
        for row in rows
    }
    for i in range(12):
        np.testing.assert_allclose(
            np.array(listed[i], float), [values[i], two[i], values[i] - two[i]], atol=0.01
        )


@pytest.mark.slow
def test_a_table_is_sorted_by_a_click_and_filtered_by_set_and_stage(browsed):
    table = browsed.locator("table.numbers").first
    head = table.locator("thead th").nth(1)
    head.click()

    def columns():
        texts = table.locator("tbody").first.locator("tr td:nth-of-type(1)").all()
        return [float(text.evaluate("e => e.firstChild.textContent").replace("−", "-")) for text in texts]

    assert head.get_attribute("aria-sort") == "descending" and columns() == sorted(columns(), reverse=True)
    head.click()
    assert columns() == sorted(columns())
    place = browsed.locator("[data-place=neg_cities]")
    assert place.is_visible()
    browsed.locator("select.filter").nth(0).select_option("cities")
    assert not place.is_visible() and browsed.locator("[data-place=cities]").is_visible()
    assert browsed.locator("th:visible", has_text="neg_cities").count() == 0
    browsed.locator("select.filter").nth(0).select_option("")
    before = browsed.locator("tbody:visible").count()
    browsed.locator("select.filter").nth(1).select_option("base")
    visible = browsed.locator("tbody:visible th").all_text_contents()
    assert not [text for text in visible if "instruct" in text and "base" not in text]
    browsed.locator("select.filter").nth(1).select_option("")
    assert browsed.locator("tbody:visible").count() == before and place.is_visible()
