"""Groups of single attention heads: drawn as layer x head, and compared cell by cell like any other."""

import numpy as np
import pytest

from posttrace.figures import render
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.heads import head_map, heads
from posttrace.figures.studies.knowledge.heatmaps import heatmaps
from posttrace.figures.studies.knowledge.recovery import recovery
from posttrace.figures.studies.knowledge.tables import statistics
from tests.support.figures.knowledge import by_head, estimated, template_group, write_store


def test_a_map_shows_the_head_that_acts_at_the_token_where_it_acts():
    grid = PatchGrid.from_dataset(by_head())
    assert grid.heads == (0, 1, 2) and grid.layers[:4] == (0, 0, 0, 1)
    last, subject = (head_map(grid, ("base", "instruct"), role) for role in ("last", "subject"))
    expected = np.zeros((4, 3))
    expected[2, 1] = 1.0
    np.testing.assert_allclose(last, expected, atol=1e-5)
    np.testing.assert_allclose(subject, 0, atol=1e-5)


def test_heads_are_drawn_by_head_and_whole_sites_are_not():
    single, whole = PatchGrid.from_dataset(by_head()), PatchGrid.from_dataset(template_group())
    (drawing,) = heads([single, whole])
    assert drawing.name == "knowledge/cities/heads" and drawing.complete
    assert "n = 6 pairs" in drawing.caption and "nats" in drawing.caption
    assert not list(heatmaps([single])) and not list(recovery([single]))


def test_tables_compare_every_head():
    """A head that acts in one stage only is the largest difference, though the mean over heads is a third of it."""
    dataset = by_head()
    dataset["logit_diff"][1, 1, :, 2, 1, -1] += 3.0
    (storage, *_) = statistics([PatchGrid.from_dataset(dataset)])
    row = storage.tidy.query("scale == 'raw' and statistic == 'max'").iloc[0]
    base, instruct = (dataset["logit_diff"].values[i, i].mean(axis=0) for i in (0, 1))
    assert row.estimate == pytest.approx(np.abs(instruct - base).max(), abs=1e-4) and row.estimate > 1.5


def test_the_largest_miss_of_an_estimate_names_its_head(tmp_path):
    whole = by_head()
    flat = whole.isel(head=0, drop=True)
    marked = estimated(flat)
    dataset = whole.assign(
        logit_diff=whole["logit_diff"].where(marked["exact"]),
        logit_diff_attribution=whole["logit_diff"].copy(),
    ).assign_coords({name: marked[name] for name in ("exact", "clean_statement", "corrupt_statement")})
    dataset = dataset.assign_attrs(method="attribution")
    dataset["logit_diff_attribution"][0, 1, 3, 3, 2, 4] += 5.0
    grid = PatchGrid.from_dataset(dataset)
    miss = grid.sample.agreement("base", "instruct").largest
    assert (miss.layer, miss.head, miss.pair, miss.place) == (3, 2, 3, "3 head 2")
    assert miss.nats == pytest.approx(5.0, abs=1e-3)


@pytest.mark.slow
def test_a_store_of_heads_is_drawn_from_disk(tmp_path):
    store = write_store(tmp_path / "store", [by_head()])
    names = [str(path.relative_to(tmp_path / "out")) for path in render(store, tmp_path / "out")]
    assert "knowledge/cities/heads.png" in names and not any("heatmaps" in name for name in names)
