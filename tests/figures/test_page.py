"""The report as a reader and a browser get it."""

import base64
import re
from html.parser import HTMLParser

import pytest

from posttrace.figures import report
from tests.support.figures.knowledge import template_group, write_store


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
    assert finished.all("script") == []
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
def test_published_values_are_marked_as_those_of_another_model(finished):
    assert "Du et al. 2025, Llama-3.1-8B" in finished.text
    assert "0.9923" in finished.text
    assert re.search(r"published for another model", finished.text)
    assert len([row for row in finished.all("tr") if row.get("class") == "published"]) == 3


@pytest.mark.slow
def test_a_finished_store_has_no_banner(finished):
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
