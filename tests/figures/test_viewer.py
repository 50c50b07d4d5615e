"""`posttrace view`: what it reads of a store, and what a person sees of it in a real browser."""

import asyncio
import gc
import re
import signal
import socket
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from tornado.websocket import WebSocketClosedError

import posttrace as pt
from posttrace.figures import FigureError
from posttrace.figures import viewer as served
from posttrace.figures.viewer import app, slices
from posttrace.figures.viewer.app import Viewer, open_stores
from posttrace.figures.viewer.slices import ALL, LENGTH, MEAN, Slice
from posttrace.pipeline.cli import main
from posttrace.stores.lazy import Checked
from tests.support.browser import HOSTILE, TOUCH, chromium
from tests.support.commands import Command
from tests.support.figures import confidence, knowledge, refusal, stages, truthfulness
from tests.support.figures.knowledge import free_group, template_group, write_dataset, write_store

STAGES = ("base", "instruct")


def answers(texts=("I cannot.", "Sure, first")):
    """Completions of two stages on prompts of which some are hostile."""
    prompts = [f"prompt {i}" for i in range(30)] + [HOSTILE]
    refused = np.arange(len(prompts) * 2).reshape(2, -1) % 3 == 0
    return xr.Dataset(
        {
            "completion": (("model", "prompt"), np.where(refused, *texts).astype(object)),
            "refused": (("model", "prompt"), refused),
        },
        coords={"model": ["base", HOSTILE], "prompt": np.arange(31), "prompt_text": ("prompt", prompts)},
        attrs={"study": "trace", "family": "toy"},
    )


def lens():
    """What a lens keeps: a token and its log probability in each cell."""
    dims, shape = ("model", "layer", "token", "rank"), (2, 3, 4, 1)
    tokens = np.full(shape, f" {HOSTILE}", dtype=object)
    variables = {"lens_logprob": (dims, -np.ones(shape, "float32")), "lens_token": (dims, tokens)}
    return xr.Dataset(variables, {"model": list(STAGES)})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed")
    for name, seed in (("one", 1), ("two", 2)):
        write_store(folder / name, [free_group(stages=STAGES, pairs=4, seed=seed)])
    write_dataset(folder / "answers", "trace/completion", answers())
    return folder


def opened(url):
    return open_stores([url])[0].opened


def test_a_slice_is_what_xarray_selects_and_nothing_else_is_read(stores, monkeypatch):
    sizes = []
    read = Checked._read
    monkeypatch.setattr(Checked, "_read", lambda self, key: sizes.append((v := read(self, key)).size) or v)
    data = opened(stores / "one")["knowledge/tulu_extracted"]
    shown = slices.read(data, Slice("logit_diff", "token", "layer", {"source": 0, "target": 1, "pair": 2}))
    assert max(sizes) == shown.size, "one pair of one source and target, and its labels"
    want = pt.open_store(stores / "one")["knowledge/tulu_extracted"].logit_diff
    np.testing.assert_array_equal(shown, want.sel(source="base", target="instruct").isel(pair=2))
    mean = slices.read(data, Slice("logit_diff", "token", "layer", {"source": 0, "target": 1, "pair": MEAN}))
    np.testing.assert_allclose(mean, want.sel(source="base", target="instruct").mean("pair"), rtol=1e-6)


def test_two_stores_are_subtracted_label_by_label(stores, tmp_path):
    one, two = (opened(stores / name)["knowledge/tulu_extracted"] for name in ("one", "two"))
    wanted = Slice("logit_diff", "token", "layer", {"source": 1, "target": 1, "pair": 0})
    difference = slices.read(one, wanted, (two, wanted))
    want = [d.logit_diff.sel(source="instruct", target="instruct").isel(pair=0).values for d in (one, two)]
    np.testing.assert_allclose(difference, want[0] - want[1], rtol=1e-6)
    turned = two.isel(source=[1, 0])
    assert slices.matching(one, turned, wanted.at)["source"] == 0
    with pytest.raises(FigureError, match="source instruct: is not in the store that is subtracted"):
        slices.matching(one, two.isel(source=[0]), wanted.at)


def test_a_view_that_reads_too_much_is_refused(stores, monkeypatch):
    monkeypatch.setattr(slices, "LARGEST", 1000)
    data = opened(stores / "one")["knowledge/tulu_extracted"]
    with pytest.raises(FigureError, match="choose one label of an axis instead of its mean"):
        slices.read(data, Slice("logit_diff", "token", "layer", {"source": 0, "target": 1, "pair": MEAN}))


def test_a_map_of_one_pair_has_that_pairs_own_tokens(tmp_path):
    dataset = template_group("cities", stages=STAGES, pairs=2)
    tokens = [[f"{word}{i}" for word in dataset.token_label.values] for i in range(2)]
    url = write_store(
        tmp_path / "store", [dataset.assign_coords(token_label_of_pair=(("pair", "token"), tokens))]
    )
    data = opened(url)["knowledge/cities"]
    for at, want in (({"pair": 1}, tokens[1]), ({"pair": MEAN}, list(dataset.token_label.values))):
        values = slices.read(data, Slice("logit_diff", "token", "layer", {"source": 0, "target": 0, **at}))
        assert slices.tick_labels(values.to_dataset(name="v"), "token", at) == want


def test_a_table_with_too_many_columns_is_refused(stores, monkeypatch):
    data = opened(stores / "one")["knowledge/tulu_extracted"]
    wanted = Slice("logit_diff", "token", "layer", {"source": 0, "target": ALL, "pair": ALL})
    assert slices.table(data, replace(wanted, at={**wanted.at, "pair": 0})).shape[1] == 1 + 19 * 2
    monkeypatch.setattr(slices, "MOST_COLUMNS", 100)
    with pytest.raises(FigureError, match=r"token x target x pair has 152 columns, more than the 100"):
        slices.table(data, wanted)


def test_every_label_of_a_long_axis_can_be_chosen(stores, monkeypatch):
    monkeypatch.setattr(app, "MOST_OPTIONS", 3)
    viewer = Viewer(open_stores([stores / "one"]))
    assert [type(viewer.axes[dim]).__name__ for dim in ("source", "pair")] == ["Select", "AutocompleteInput"]
    viewer.axes["pair"].value = 3
    assert viewer.wanted.at["pair"] == 3 and "pair=3" in viewer.picture.objects[-1].object
    viewer.axes["pair"].value = None  # while a label is typed
    assert "pair=0" in viewer.picture.objects[-1].object


def test_vectors_are_subtracted_before_their_length_is_taken(tmp_path):
    url = refusal.write(tmp_path / "store")
    data = opened(url)["refusal"]
    at = {"model": 0, "position": 0, "hidden": LENGTH}
    wanted = Slice("direction_vector", "layer", None, at)
    other = Slice("direction_vector", "layer", None, at | {"model": 1})
    vectors = refusal.values()["direction"]
    want = np.linalg.norm(vectors[0, :, 0] - vectors[1, :, 0], axis=-1)
    np.testing.assert_allclose(slices.read(data, wanted, (data, other)), want, rtol=1e-5)


def test_a_table_keeps_what_is_searched_for_and_what_was_refused(stores):
    data = opened(stores / "answers")["trace/completion"]
    wanted = Slice("completion", "model", "prompt")
    frame = slices.table(data, wanted)
    refused = answers()["refused"].values
    assert list(frame.columns)[:2] == ["prompt", "prompt_text"] and len(frame) == 31
    kept = slices.table(data, wanted, search="PROMPT 1", only=("refused", True))
    want = [i for i in [1, *range(10, 20)] if refused[:, i].any()]
    assert list(kept.index) == want and 0 < len(want) < 11
    nothing = slices.table(data, wanted, only=("refused", False))
    assert list(nothing.index) == [i for i in range(31) if not refused[:, i].any()]
    one = slices.table(data, Slice("completion", "model", None, {"prompt": 0}), only=("refused", True))
    assert len(one) == refused[:, 0].any() == 1, "without an axis for rows"


def test_a_difference_is_filtered_by_the_labels_that_both_stores_have():
    scored = answers().assign(score=(("model", "prompt"), np.arange(62.0).reshape(2, 31)))
    other = scored.isel(prompt=slice(5, 20))
    wanted = Slice("score", "model", "prompt")
    frame = slices.table(scored, wanted, other=(other, wanted), only=("refused", True))
    refused = scored["refused"].values.any(axis=0)
    assert list(frame["prompt"]) == [str(i) for i in range(5, 20) if refused[i]]


@pytest.mark.slow
def test_every_page_and_array_of_every_study_can_be_shown(tmp_path, stores):
    """Walk through all that can be chosen; a fault would raise, a refusal is a banner."""
    for name, data in (
        ("truthfulness", truthfulness.summary(coefficients=(0.5, 1.0)).data),
        ("stages", stages.behaviour().data),
        ("confidence", confidence.neuron_dataset()),
        ("trace", lens()),
    ):
        write_dataset(tmp_path / name, name, data.assign_attrs(study=name))
    urls = [
        refusal.write(tmp_path / "refusal"),
        *(str(tmp_path / name) for name in ("truthfulness", "stages", "confidence", "trace")),
        knowledge.write_store(tmp_path / "heads", [knowledge.by_head()]),
        str(stores / "answers"),
    ]
    viewer = Viewer(open_stores(urls))
    for i in viewer.store.options.values():
        viewer.store.value = i
        shown = 0
        for page in viewer.page.options.values():
            viewer.page.value = page
            assert len(viewer.picture.objects) > 1, [pane.object for pane in viewer.picture.objects]
            shown += 1
        assert shown, urls[i]
        for array in viewer.array.options.values():
            viewer.array.value = array
            assert len(viewer.picture.objects) > 1, (array, [p.object for p in viewer.picture.objects])


def test_a_store_in_a_bucket_is_viewed(s3):
    write_store(s3, [free_group(stages=STAGES, pairs=3)])
    viewer = Viewer(open_stores([s3]))
    assert viewer.array.value == ("knowledge/tulu_extracted", "logit_diff")
    assert type(viewer.picture.objects[-2]).__name__ == "Bokeh"


@pytest.mark.parametrize(("fault", "told"), [(WebSocketClosedError(), False), (ValueError("lost"), True)])
def test_a_page_that_is_closed_is_no_fault(caplog, fault, told):
    """A task that sends to a closed page fails, and nobody awaits it."""

    async def fail():
        raise fault

    async def serve():
        asyncio.get_running_loop().set_exception_handler(served._report)
        task = asyncio.ensure_future(fail())
        await asyncio.wait([task])
        del task
        gc.collect()

    asyncio.run(serve())
    assert ("Task exception was never retrieved" in caplog.text) is told


def refusal_of(capsys, *arguments):
    """What a mistake on the command line is told."""
    with pytest.raises(SystemExit) as ended:
        main(["view", *map(str, arguments), "--no-browser"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    return told


def test_without_panel_one_line_says_what_to_install(stores, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "panel", None)
    assert refusal_of(capsys, stores / "one") == (
        "posttrace: the viewer needs Panel; pip install 'posttrace[view]'\n"
    )


def test_mistakes_are_one_line(stores, capsys):
    assert "named more than once" in refusal_of(capsys, stores / "one", stores / "one")
    assert "no store" in refusal_of(capsys, stores / "nothing")
    wrong = refusal_of(capsys, stores / "one", "--port", "70000")
    assert re.search("port 70000: .*choose another --port", wrong)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert f"port {number}: address already in use" in refusal_of(
            capsys, stores / "one", "--port", number
        )


@pytest.fixture(scope="module")
def page(stores):
    names = [stores / name for name in ("one", "two", "answers")]
    command = Command("view", *names, "--port", "0", "--no-browser")
    with chromium() as page:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", command.out)):
            assert command.poll() is None and time.monotonic() < deadline, command.err
            time.sleep(0.1)
        page.address = found.group()
        page.goto(page.address)
        page.get_by_text("knowledge/tulu_extracted/logit_diff:").wait_for()
        yield page
        assert page.faults == []
        host = page.address.removeprefix("http://")
        here = re.compile(rf"(blob:)?(http|ws)://{re.escape(host)}/|data:")
        outside = [url for url in page.requested if not here.match(url)]
        assert page.requested and outside == [], "nothing is asked of another machine"
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 0
    assert "Traceback" not in command.err


def choose(page, label, option):
    page.get_by_label(label, exact=True).select_option(label=option)


def cells(page):
    """Values of the map that is shown, in the order of its cells."""
    code = """() => { const all = [...Bokeh.documents[0]._all_models.values()];
      return Array.from(all.filter(m => m.type == "ColumnDataSource" && "value" in m.data).at(-1).data.value); }"""
    return np.array(page.evaluate(code), dtype=float)


def until(page, read, want):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        found = read(page)
        if np.shape(found) == np.shape(want) and np.allclose(found, want, rtol=1e-4, equal_nan=True):
            return
        page.wait_for_timeout(100)
    np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.slow
def test_a_pair_is_chosen_hovered_and_subtracted_from_another_store(page, stores):
    one, two = (
        pt.open_store(stores / name)["knowledge/tulu_extracted"].logit_diff for name in ("one", "two")
    )
    choose(page, "pair", "2")
    choose(page, "target", "instruct")
    want = one.sel(source="base", target="instruct").isel(pair=2)
    until(page, cells, np.nan_to_num(want.values.ravel(), nan=np.nan))
    box = page.locator(".bk-Canvas, canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.get_by_text("logit difference, nats").nth(1).wait_for()
    choose(page, "Subtract", f"store {stores / 'two'}")
    until(page, cells, (want - two.sel(source="base", target="instruct").isel(pair=2)).values.ravel())


@pytest.mark.slow
def test_completions_are_searched_and_filtered_and_hostile_texts_stay_text(page, stores):
    choose(page, "Store", str(stores / "answers"))
    page.get_by_text("31 rows").wait_for()
    page.emulate_media(color_scheme="dark")
    for part in ("body", "select.bk-input", ".tabulator-cell"):
        colour = page.locator(part).first.evaluate("e => getComputedStyle(e).backgroundColor")
        assert colour == "rgb(22, 24, 27)", part
    page.emulate_media(color_scheme="light")
    page.locator(".tabulator-col-title").get_by_text("<img src=x onerror").wait_for()
    choose(page, "Rows", "refused: in no column")
    none = int((~answers()["refused"].values.any(axis=0)).sum())
    page.get_by_text(f"{none} rows").wait_for()
    choose(page, "Rows", "every row")
    page.get_by_label("Search").fill("<IMG")
    page.get_by_label("Search").press("Enter")
    page.get_by_text("1 rows", exact=True).wait_for()
    page.locator(".tabulator-row").get_by_text("onerror").first.wait_for()
    choose(page, "Array", "trace/completion/refused")
    choose(page, "Shown as", "lines")
    choose(page, "Shown as", "map")
    page.wait_for_timeout(300)
    assert page.evaluate(f"typeof {TOUCH}") == "undefined"
    assert page.evaluate("document.querySelectorAll('img').length") == 0
