"""Reading a group: which pairs count, what the columns are."""

import numpy as np
import pytest

from posttrace.figures import FigureError
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.stores import open_group
from tests.support.figures.knowledge import free_group, template_group


def test_a_template_set_keeps_its_tokens_as_columns():
    dataset = template_group("cities")
    grid = PatchGrid.from_dataset(dataset)
    assert grid.labels[:4] == ("The", "city", "of", "[s1]")
    assert [grid.labels[i] for i in grid.key_columns] == ["[s1]", "[s2]", "[s3]", "[o1]"]
    expected = dataset["logit_diff"].sel(source="base", target="instruct").mean("pair").values
    np.testing.assert_allclose(grid.mean("base", "instruct"), expected, rtol=1e-5)
    assert grid.complete


def test_a_free_set_has_the_mean_over_the_tokens_of_each_role_as_columns():
    dataset = free_group(pairs=6)
    grid = PatchGrid.from_dataset(dataset)
    assert grid.labels == ("knowledge", "last", "other")
    assert grid.key_columns == [0]
    for pair in range(6):
        values = dataset["logit_diff"].sel(source="base", target="sft").values[pair]
        roles = dataset["token_role_of_pair"].values[pair]
        for column, role in enumerate(grid.labels):
            tokens = [i for i, r in enumerate(roles) if r == role]
            by_hand = np.mean([values[:, i] for i in tokens], axis=0)
            np.testing.assert_allclose(grid.patched("base", "sft")[pair, :, column], by_hand, rtol=1e-5)


def test_an_unfinished_token_leaves_its_pair_out_also_in_a_free_set():
    dataset = free_group(pairs=6)
    dataset["logit_diff"][0, 1, 4, 3, 2] = np.nan
    grid = PatchGrid.from_dataset(dataset)
    assert grid.pairs(("base", "sft")).tolist() == [True, True, True, True, False, True]
    assert grid.pairs(("base", "base")).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pair_with_a_value_that_is_not_finite_is_left_out_whole(bad):
    dataset = template_group("cities", pairs=5)
    dataset["logit_diff"][0, 0, 2, 7, 3] = bad
    grid = PatchGrid.from_dataset(dataset)
    assert grid.patched("base", "base").shape[0] == 4
    rest = dataset["logit_diff"].values[0, 0][[0, 1, 3, 4]].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(grid.mean("base", "base"), rest)
    assert not grid.complete


def test_two_matrices_are_compared_on_the_pairs_finished_in_both():
    dataset = template_group("cities", pairs=4)
    dataset["logit_diff"][0, 0, 1] = np.nan
    dataset["logit_diff"][2, 2, 3] = np.nan
    grid = PatchGrid.from_dataset(dataset)
    assert grid.pairs(("base", "base"), ("instruct", "instruct")).tolist() == [True, False, True, False]


def test_padding_columns_of_a_template_set_do_not_count_as_unfinished():
    dataset = template_group("cities", pairs=3).pad(token=(0, 2))
    dataset["token_role"] = dataset["token_role"].fillna("")
    dataset["token_label"] = dataset["token_label"].fillna("")
    grid = PatchGrid.from_dataset(dataset)
    assert grid.complete
    assert grid.labels[-1] == ":"


def test_a_store_on_disk_reads_like_the_dataset_it_was_written_from(unfinished_store):
    grid = PatchGrid.from_dataset(open_group(unfinished_store, "knowledge/cities"))
    assert grid.planned == 24
    assert grid.pairs(("base", "instruct")).sum() == 16
    assert grid.pairs(("base", "sft")).sum() == 0
    assert grid.mean("base", "sft") is None
    whole = PatchGrid.from_dataset(template_group("cities"))
    np.testing.assert_array_equal(grid.mean("sft", "base"), whole.mean("sft", "base"))
    assert grid.labels == whole.labels


def test_a_group_of_another_shape_is_refused_by_name():
    with pytest.raises(FigureError, match="knowledge/cities: no variable logit_diff_clean"):
        PatchGrid.from_dataset(template_group("cities").drop_vars("logit_diff_clean"))
