"""What the figures of the difference study show, from a group whose streams are known."""

import numpy as np
import pytest
import xarray as xr

from posttrace.figures.hover import regions
from posttrace.figures.studies.difference.data import Difference
from posttrace.figures.studies.difference.layers import steering
from posttrace.figures.studies.difference.streams import floor, streams
from posttrace.figures.studies.difference.tables import components, lens, worse_than_chance
from tests.support.figures.drawn import panels

STAGES = ("base", "sft", "instruct")
PAIRS = (("base", "sft"), ("base", "instruct"), ("sft", "instruct"))
ROUNDING = (1.0, 2.0, 3.0)
"""Squared rounding error of each stage, in every layer."""
SQUARED = np.array([[100.0, 1e4], [100.0, 4e4], [0.0, 5e4]])
"""Squared difference of each pair, dims pair x layer; sft and instruct are equal in layer 0."""


@pytest.fixture
def group():
    """Three stages, two layers, and two blocks of two documents of three tokens, the second one not finished."""
    tokens = np.full((3, 4, 3), 1.0)
    tokens[:, 2:] = np.nan
    by_layer = np.repeat(tokens[:, :, None], 2, axis=2)
    squared = np.stack([SQUARED, np.full_like(SQUARED, np.nan)], axis=1)
    rounding = np.array(ROUNDING)[:, None, None] * np.array([[1.0], [np.nan]]) * np.ones(2)
    values = {
        **{name: (("pair", "document", "token"), tokens) for name in ("js", "kl")},
        **{name: (("model", "document", "token"), tokens) for name in ("entropy", "loss")},
        **{name: (("pair", "document", "layer", "token"), 0.5 * by_layer) for name in ("norm_difference", "cosine")},
        "norm": (("model", "document", "layer", "token"), by_layer),
        "squared_difference_sum": (("pair", "unit", "layer", "slot"), squared[..., None] * [1.0, 7.0]),
        "rounding_sum": (("model", "unit", "layer", "slot"), rounding[..., None] * [1.0, 7.0]),
        "unit_end": ("unit", [2, 4]),
        "n_tokens": ("document", [3] * 4),
        "token_role": (("document", "token"), np.full((4, 3), "text", dtype=object)),
        "document_text": ("document", [f"Document {i}" for i in range(4)]),
    }  # fmt: skip
    coords = {
        "model": list(STAGES),
        "pair_source": ("pair", [source for source, _ in PAIRS]),
        "pair_target": ("pair", [target for _, target in PAIRS]),
        "layer": [0, 1],
        "slot": ["all", "1"],
    }
    return Difference(xr.Dataset(values, coords, {"set": "web", "family": "tiny"}))


def test_the_rounding_floor_is_that_of_the_two_stages_over_finished_units(group):
    assert group.finished_units.tolist() == [True, False]
    for pair, squared in zip(group.pairs, SQUARED, strict=True):
        rounding = sum(ROUNDING[STAGES.index(stage)] for stage in (pair.source, pair.target))
        with np.errstate(divide="ignore"):
            expected = np.where(squared > 0, np.sqrt(rounding / squared), np.nan)
        np.testing.assert_allclose(floor(group, pair), expected)


def test_cells_below_the_floor_are_grey(group):
    for drawing in streams([group]):
        shown = {title: ax.collections[0].get_array() for title, ax in panels(drawing).items()}
        assert list(shown) == ["base → sft", "base → instruct", "sft → instruct"]
        for title, cells in shown.items():
            # Rounding makes 17 and 20 % of the first two differences in layer 0, and no more than 2 % in layer 1.
            grey = np.ma.getmaskarray(cells).ravel().tolist()
            assert grey == [title != "sft → instruct", False], title


def test_steering_draws_the_share_over_documents_with_its_interval(group):
    rng = np.random.default_rng(0)
    names, documents = ["mean", "other", "control", "random-0", "random-1"], 3
    steered = rng.uniform(0.1, 0.3, size=(len(PAIRS), len(names), 1, 2, documents))
    plain = rng.uniform(0.3, 0.6, size=(len(PAIRS), documents))
    dims = ("pair", "direction", "coefficient", "steered_layer", "steered_document")
    data = group.data.assign(js_steered=(dims, steered), js_unsteered=(("pair", "steered_document"), plain))
    data = data.assign_coords(direction=names, coefficient=[1.0], steered_layer=[0, 1])
    (drawing,) = steering([Difference(data)])
    drawing.figure.set_layout_engine("none")
    for i, (pair, region) in enumerate(zip(group.forward, regions(drawing.figure), strict=True)):
        told = {(point[2], point[3]): point[4:] for point in region["points"]}
        assert len(told) == 3 * 2, "three lines; random directions are a band"
        for d, name in enumerate(["mean difference", "other pair", "control pair"]):
            for layer in (0, 1):
                value, low, high, n = told[name, layer]
                assert value == pytest.approx(
                    1 - steered[pair.number, d, 0, layer].sum() / plain[pair.number].sum(), rel=1e-3
                )
                assert low < value < high and n == documents, i


def test_tokens_worse_than_chance_are_those_whose_mean_loss_is_above_that_of_a_guess(group):
    rng = np.random.default_rng(0)
    ids, loss = rng.integers(0, 6, size=(4, 40)), rng.normal(1.8, 1.5, size=(3, 4, 40))
    ids[0, 20:] = -1  # past the end
    loss[:, 3] = np.nan  # not finished
    data = group.data.drop_dims("token").assign(
        token_id=(("document", "token"), ids),
        loss=(("model", "document", "token"), loss),
        vocabulary_text=("vocabulary", list("abcdef")),
    )
    (table,) = worse_than_chance([Difference(data)])
    found = {(row["stage"], row["token"]): (row["loss"], row["n"]) for row in table.records}
    expected = {}
    for s, stage in enumerate(STAGES):
        for i, text in enumerate("abcdef"):
            values = [loss[s, d, t] for d in range(3) for t in range(39) if ids[d, t + 1] == i]
            if len(values) >= 5 and np.mean(values) > np.log(6):
                expected[stage, text] = (pytest.approx(np.mean(values)), len(values))
    assert found == expected and 0 < len(found) < 18


def test_tokens_of_a_lens_are_above_the_bound_and_the_control_pair(group):
    """Of ten tokens, `a` is above both, `b` only above the bound, `c` above neither."""
    z = np.zeros((3, 2, 2, 3))
    z[0, :, 0] = 9.0, 6.0, 3.0
    z[2, :, 0] = 7.0, 0.0, 0.0  # the control pair
    data = group.data.assign(
        lens_token=(("pair", "layer", "slot", "lens_rank"), np.tile([0, 1, 2], (3, 2, 2, 1))),
        lens_z=(("pair", "layer", "slot", "lens_rank"), z),
        lens_bound=("pair", [5.0] * 3),
        shared=(("pair", "layer", "slot"), np.ones((3, 2, 2))),
        vocabulary_text=("vocabulary", list("abc")),
    ).assign_attrs(control=["sft", "instruct"])  # fmt: skip
    (table,) = lens([Difference(data)])
    shown = {block.heading.split(" (")[0]: block.rows[0].cells[0].text for block in table.blocks}
    assert shown == {"base → sft": "a", "base → instruct": "", "sft → instruct": "a"}
    assert table.records.query("source == 'base' and layer == 0").token.tolist() == ["a", "b"]
    data = data.assign_attrs(control=[])
    assert next(lens([Difference(data)])).blocks[0].rows[0].cells[0].text == "a b"


def test_components_above_the_null_have_tokens_above_the_bound_and_contexts(group):
    per = ("pair", "sampled_layer")
    shown, ends = (*per, "shown", "end"), np.zeros((3, 1, 2, 2))
    z = np.stack([ends + 6, ends + 4], axis=-1)
    z[..., 1, 0] = 0
    data = group.data.assign(
        variance_share=((*per, "component"), np.tile([0.6, 0.3], (3, 1, 1))),
        variance_null=((*per, "component"), np.tile([0.4, 0.4], (3, 1, 1))),
        n_above_null=(per, [[1], [0], [-1]]),
        mean_share=(per, np.full((3, 1), 0.25)),
        component_token=((*shown, "lens_rank"), np.tile([1, 0], (3, 1, 2, 2, 1))),
        component_z=((*shown, "lens_rank"), z),
        extreme_sample=((*shown, "extreme"), np.stack([ends + 1, ends - 1], axis=-1).astype(int)),
        lens_bound=("pair", [5.0] * 3),
        vocabulary_text=("vocabulary", list("ab")),
        token_text=(("document", "token"), np.array([list("the"), list("cat"), list("dog"), list("cow")])),
        sample_document=("sample", [0, 1]),
        sample_token=("sample", [0, 1]),
    ).assign_coords(sampled_layer=[3], end=["low", "high"])  # fmt: skip
    (table,) = components([Difference(data)])
    ((row,),) = [block.rows for block in table.blocks]
    assert [cell.text for cell in row.cells] == ["60", "25", "b", "ca", "", "ca"]
    assert len(table.records) == 2


def test_captions_say_what_is_approximate(group):
    exact, about = (
        next(streams([Difference(group.data.assign_attrs(projection=dims))])).caption for dims in (0, 64)
    )
    assert "Approximate" not in exact
    assert "Approximate: streams were projected to 64 random dimensions, a length is within 9%" in about
