"""Plots of labelled arrays: what is drawn is what the figures of a report draw."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from posttrace.figures import FigureError, plot
from posttrace.figures.studies.knowledge.data import PatchGrid, usable
from posttrace.figures.studies.knowledge.recovery import _curves
from posttrace.stores import open_group, open_store

matplotlib.use("Agg")


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(params=["cities", "tulu_extracted"])
def group(request, finished_store):
    """A set whose pairs share a template, and one whose pairs do not."""
    return open_store(finished_store)[f"knowledge/{request.param}"].to_dataset()


def cell(group, source, target):
    return (
        group.logit_diff.sel(source=source, target=target),
        group.logit_diff_clean.sel(source=source),
        group.logit_diff_corrupt.sel(target=target),
    )


def test_a_heat_map_has_the_values_and_labels_of_the_array(finished_store, ax):
    group = open_store(finished_store)["knowledge/cities"].to_dataset()
    mean = group.logit_diff.sel(source="base", target="instruct").mean("pair")
    assert plot.heatmap(mean, ax=ax) is ax
    drawn = ax.collections[0].get_array().reshape(mean.sizes["layer"], -1)
    np.testing.assert_array_equal(np.asarray(drawn), mean.transpose("layer", "token").values.astype(float))
    assert [text.get_text() for text in ax.get_xticklabels()] == list(mean.token_label.values)
    coloured = [t.get_text() for t in ax.get_xticklabels() if t.get_fontweight() == "bold"]
    assert coloured == ["[s1]", "[s2]", "[s3]", "[o1]"]


def test_a_normalised_heat_map_is_that_of_the_figures(finished_store, ax):
    data = open_group(finished_store, "knowledge/cities")
    mean = data.logit_diff.sel(source="base", target="base").mean("pair")
    plot.heatmap(mean, ax=ax, normalised=True, colour_bar=False)
    drawn = np.asarray(ax.collections[0].get_array()).reshape(mean.sizes["layer"], -1)
    ours = PatchGrid.from_dataset(data).normalised("base", "base")
    assert (np.abs(drawn - ours) < 1e-9).mean() > 0.98, "but for means that fall on the edge of a bin"


def test_recovery_lines_are_those_of_the_figure(group, ax):
    for source, target in (("base", "base"), ("instruct", "base")):
        ax.clear()
        plot.recovery(*cell(group, source, target), ax=ax)
        grid = PatchGrid.from_dataset(group)
        roles = [role for role in plot.ROLES if role in grid.roles]
        curves = _curves(grid, (source, target), roles, usable(grid, (source, target)))
        assert [line.get_label() for line in ax.lines] == [f"{role} token" for role in roles]
        for line, (share, *_), band in zip(ax.lines, curves, ax.collections, strict=True):
            np.testing.assert_allclose(line.get_ydata(), share, rtol=1e-5, atol=1e-6)
            assert band.get_paths()[0].vertices[:, 1].min() <= share.min() + 1e-6


def test_unfinished_pairs_are_left_out(group, ax):
    patched, clean, corrupt = cell(group, "base", "base")
    plot.recovery(patched.isel(pair=slice(0, 6)), clean[:6], corrupt[:6], ax=ax)
    holes = patched.copy(deep=True).load()
    holes[{"pair": slice(6, None)}] = np.nan
    other = Figure().subplots()
    plot.recovery(holes, clean, corrupt, ax=other)
    for one, two in zip(ax.lines, other.lines, strict=True):
        np.testing.assert_array_equal(one.get_ydata(), two.get_ydata())


def test_dims_that_are_left_are_named_with_what_to_do(group, ax):
    patched, clean, corrupt = cell(group, "base", "base")
    with pytest.raises(FigureError, match=r"dims pair, layer, token.*mean\(\"pair\"\)"):
        plot.heatmap(patched, ax=ax)
    with pytest.raises(FigureError, match="needs layer"):
        plot.heatmap(clean, ax=ax)
    with pytest.raises(FigureError, match=r"select one of source"):
        plot.recovery(group.logit_diff.sel(target="base"), clean, corrupt, ax=ax)
    with pytest.raises(FigureError, match="no token role of this set; it has"):
        plot.recovery(patched, clean, corrupt, ax=ax, roles=["verb"])
    with pytest.raises(FigureError, match="no pair of logit_diff is finished"):
        plot.recovery(xr.full_like(patched, np.nan), clean, corrupt, ax=ax)
