"""Figures of a free-form job: what its lenses and reads keep."""

import numpy as np
import pytest
import xarray as xr

from posttrace.figures import FigureError, render
from posttrace.figures.studies.trace import maps
from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.stores import open_group
from posttrace.stores.lazy import Checked
from tests.support.figures.knowledge import write_dataset

RUNS = {"model": ["base", "instruct"], "intervention": ["none"], "prompt": [0, 1]}
SHAPE = (2, 1, 2, 3, 4)  # model x intervention x prompt x layer x token
DIMS = (*RUNS, "layer", "token")


def dataset(variables, operation, **coords):
    texts = np.array([["The", " city", " of", " $x^2$"], ["No", "", "", ""]], dtype=object)
    coords = {**RUNS, "layer": [0, 1, 2], "token": range(4), "token_text": (("prompt", "token"), texts),
              "prompt_text": ("prompt", ["The city of $x^2$", "No"]), **coords}  # fmt: skip
    return xr.Dataset(
        variables, coords, {"site": "resid_post", "operation": {"op": operation}, "family": "toy"}
    )


def lens():
    logprob = np.full((*SHAPE, 2), np.log(0.5))
    logprob[:, :, 1, :, 1:] = np.nan  # the second prompt is shorter
    tokens = np.full(logprob.shape, " Paris", dtype=object)
    tokens[1, 0, 0, 2, 3, 0] = " Rome"
    variables = {"lens_logprob": ((*DIMS, "rank"), logprob), "lens_token": ((*DIMS, "rank"), tokens)}
    return TraceGroup.from_dataset(dataset(variables, "lens"))


def test_a_lens_writes_the_most_probable_token_into_each_cell():
    first, second = maps.lens([lens()])
    written = [[text.get_text() for text in ax.texts] for ax in first.figure.axes[:2]]
    assert written[0] == ["Paris"] * 12 and written[1] == ["Paris"] * 11 + ["Rome"]
    assert [label.get_text() for label in first.figure.axes[1].get_xticklabels()] == [
        "The",
        "city",
        "of",
        "$x^2$",
    ]
    assert [len(ax.texts) for ax in second.figure.axes[:2]] == [3, 3], "no cells past the end of a prompt"
    assert first.complete and "'The city of $x^2$'" in first.caption


def test_lengths_are_lines_at_one_token_and_maps_otherwise():
    values = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype("float32")
    data = dataset({"activation": ((*DIMS, "hidden"), values)}, "read")
    (grid,) = maps.norms([TraceGroup.from_dataset(data)])
    mesh = grid.figure.axes[1].collections[0].get_array().reshape(3, 4)
    np.testing.assert_allclose(mesh, np.linalg.norm(values, axis=-1)[1, 0].mean(axis=0), rtol=1e-5)
    (lines,) = maps.norms([TraceGroup.from_dataset(data.isel(token=[3]))])
    drawn = lines.figure.axes[0].lines
    assert [line.get_label() for line in drawn] == ["base, none", "instruct, none"]
    want = np.linalg.norm(values, axis=-1)[0, 0, :, :, 3].mean(axis=0)
    np.testing.assert_allclose(drawn[0].get_ydata(), want, rtol=1e-5)


def test_lengths_are_read_some_prompts_at_a_time(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype("float32")
    data = dataset({"activation": ((*DIMS, "hidden"), values)}, "read").assign_attrs(study="trace")
    write_dataset(tmp_path / "store", "trace/read-0", data)
    sizes, read = [], Checked._read
    monkeypatch.setattr(Checked, "_read", lambda self, key: sizes.append((v := read(self, key)).size) or v)
    monkeypatch.setattr(maps, "BLOCK", 2 * 3 * 4 * 5)  # one prompt of two stages
    group = TraceGroup.from_dataset(open_group(tmp_path / "store", "trace/read-0"))
    sizes.clear()
    found = maps._lengths(group.data.activation)
    np.testing.assert_allclose(found.transpose(*DIMS), np.linalg.norm(values, axis=-1), rtol=1e-6)
    assert max(sizes) == maps.BLOCK


def test_a_projection_is_drawn_for_every_direction():
    values = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype("float32")
    activation = np.zeros((*SHAPE, 3), "float32")
    variables = {"activation": ((*DIMS, "hidden"), activation), "projection": ((*DIMS, "direction"), values)}
    data = dataset(variables, "read", direction=["truth", "refusal"])
    drawings = list(maps.projections([TraceGroup.from_dataset(data)]))
    assert [one.heading for one in drawings] == ["Projection onto truth", "Projection onto refusal"]
    mesh = drawings[1].figure.axes[0].collections[0].get_array().reshape(3, 4)
    np.testing.assert_allclose(mesh, values[0, 0, :, :, :, 1].mean(axis=0), rtol=1e-5)


def test_a_store_of_another_version_is_one_line(tmp_path):
    old = xr.Dataset(
        {"logprob": (("model", "prompt", "rank"), np.zeros((1, 2, 3)))},
        {"model": ["base"], "prompt": [0, 1]},
        {"study": "trace"},
    )
    write_dataset(tmp_path / "store", "trace/output", old)
    with pytest.raises(
        FigureError, match=r"trace/output: no variable intervention; .* draw it with the version"
    ):
        render(tmp_path / "store", tmp_path / "out")
