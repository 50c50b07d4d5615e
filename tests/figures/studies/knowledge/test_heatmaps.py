"""What the figures of the knowledge study show, read back from the drawn artists."""

import numpy as np
import pytest

from posttrace.figures import theme
from posttrace.figures.measures.patching import normalise
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.differences import difference, differences, differences_raw
from posttrace.figures.studies.knowledge.heatmaps import heatmaps, heatmaps_raw
from posttrace.figures.studies.knowledge.recovery import recovery
from tests.support.figures.drawn import overlaps, panels
from tests.support.figures.knowledge import STAGES, free_group, template_group


@pytest.fixture(scope="module")
def cities():
    return PatchGrid.from_dataset(template_group("cities"))


@pytest.fixture(scope="module")
def partly():
    return PatchGrid.from_dataset(
        template_group("cities", finished={("base", "base"): 24, ("sft", "sft"): 10})
    )


def shown(ax):
    return np.asarray(ax.collections[0].get_array()).reshape(ax.collections[0].get_array().shape)


def test_there_is_a_panel_for_every_source_and_target_with_the_normalised_map(cities):
    (drawing,) = heatmaps([cities])
    found = panels(drawing)
    assert list(found) == [f"{source} → {target}" for source in STAGES for target in STAGES]
    for source in STAGES:
        for target in STAGES:
            expected = normalise(cities.mean(source, target))
            np.testing.assert_array_equal(shown(found[f"{source} → {target}"]), expected)


def test_storage_panels_stand_out(cities):
    (drawing,) = heatmaps([cities])
    weights = {title: ax.title.get_fontweight() for title, ax in panels(drawing).items()}
    assert {title for title, weight in weights.items() if weight == "bold"} == {f"{s} → {s}" for s in STAGES}


def test_layers_run_from_top_to_bottom_and_tokens_are_labelled_in_order(cities):
    (drawing,) = heatmaps_raw([cities])
    ax = panels(drawing)["instruct → base"]  # bottom left: the panel with both label axes
    low, high = ax.get_ylim()
    assert low > high, "layer 0 is at the top"
    assert [text.get_text() for text in ax.get_xticklabels()] == list(cities.labels)
    assert [text.get_text() for text in ax.get_yticklabels()] == [str(layer) for layer in range(8)]
    marked = [text.get_text() for text in ax.get_xticklabels() if text.get_color() == theme.KEY]
    assert marked == ["[s1]", "[s2]", "[s3]", "[o1]"]


def test_raw_maps_share_one_scale_centred_on_zero(cities):
    (drawing,) = heatmaps_raw([cities])
    limits = {ax.collections[0].get_clim() for ax in panels(drawing).values()}
    largest = max(np.abs(cities.mean(s, t)).max() for s in STAGES for t in STAGES)
    assert limits == {(-largest, largest)}


def test_differences_subtract_base_from_storage_and_own_from_transfer(cities):
    (drawing,) = differences([cities])
    found = panels(drawing)
    own, base = cities.normalised("sft", "sft"), cities.normalised("base", "base")
    np.testing.assert_array_equal(shown(found["storage: sft − base"]), own - base)
    np.testing.assert_array_equal(
        shown(found["instruct → sft − own"]), cities.normalised("instruct", "sft") - own
    )
    raw = panels(next(differences_raw([cities])))
    np.testing.assert_allclose(
        shown(raw["base → instruct − own"]),
        cities.mean("base", "instruct") - cities.mean("instruct", "instruct"), atol=1e-6,
    )  # fmt: skip


def test_a_difference_uses_the_pairs_that_both_sides_have(partly):
    dataset = template_group("cities")
    both = dataset["logit_diff"].isel(pair=slice(0, 10)).mean("pair", dtype="float64")
    expected = both.sel(source="sft", target="sft") - both.sel(source="base", target="base")
    np.testing.assert_allclose(difference(partly, "sft", "sft"), expected.values)
    assert difference(partly, "base", "sft") is None
    assert difference(partly, "base", "base") is None


def test_difference_scales_are_neutral_at_zero():
    for scale in (theme.normalised_difference_scale(), theme.centred_scale([np.array([[-3.0]])], "nats")):
        middle = theme.vik(255).colors[127]
        np.testing.assert_allclose(scale.colours(scale.norm(0.0))[:3], middle, atol=0.01)
        assert np.ptp(middle) < 0.05, "the middle is nearly grey"
        assert scale.colours(scale.norm(0.9))[0] > scale.colours(scale.norm(0.9))[2], "more is red"
        assert scale.colours(scale.norm(-0.9))[0] < scale.colours(scale.norm(-0.9))[2], "less is blue"


def test_normalised_levels_have_eleven_colours_that_darken():
    scale = theme.normalised_scale()
    colours = [scale.colours(scale.norm(level))[:3] for level in np.arange(11) / 10]
    lightness = [sum(colour) for colour in colours]
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(colours)) == 11


@pytest.mark.parametrize("draw", [heatmaps, heatmaps_raw, differences, differences_raw, recovery])
def test_every_caption_says_n_and_units_and_what_was_normalised(cities, draw):
    (drawing,) = draw([cities])
    assert "n = 24 pairs" in drawing.caption
    assert "embedded, cities" in drawing.caption
    if draw in (heatmaps, differences):
        assert "20 equal bins" in drawing.caption
    elif draw is recovery:
        assert "(patched - corrupt) / (clean - corrupt)" in drawing.caption
        assert "seed 0" in drawing.caption
    else:
        assert "nats" in drawing.caption
        assert "not normalised" in drawing.caption
    assert "cities" in drawing.alt


@pytest.mark.parametrize("draw", [heatmaps, heatmaps_raw, differences, differences_raw, recovery])
def test_an_unfinished_set_is_drawn_and_says_so(partly, draw):
    (drawing,) = draw([partly])
    assert "INCOMPLETE" in drawing.caption
    assert "sft → sft 10" in drawing.caption
    assert "base → sft 0" in drawing.caption
    assert "INCOMPLETE" in drawing.figure.get_suptitle()


def test_panels_without_a_finished_pair_are_empty_and_the_others_show_their_count(partly):
    found = panels(next(heatmaps([partly])))
    assert "sft → sft (10/24)" in found
    empty = found["base → instruct"]
    assert not empty.collections
    assert [text.get_text() for text in empty.texts] == ["no finished pair"]


def test_one_stage_has_maps_but_no_differences():
    grid = PatchGrid.from_dataset(template_group("cities", stages=("base",)))
    assert len(list(heatmaps([grid]))) == 1
    assert list(differences([grid])) == []


def test_recovery_lines_are_the_share_of_the_gap_by_role(cities):
    (drawing,) = recovery([cities])
    titles = [ax.get_title() for ax in drawing.figure.axes[:4]]
    assert titles == ["subject tokens", "object tokens", "last token", "other tokens"]
    storage_of_base = drawing.figure.axes[2].lines[0].get_ydata()
    last = cities.mean("base", "base")[:, -1]
    clean, corrupt = cities.clean[0].mean(dtype="float64"), cities.corrupt[0].mean(dtype="float64")
    np.testing.assert_allclose(storage_of_base, (last - corrupt) / (clean - corrupt), rtol=1e-5)
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == [
        "from base", "from sft", "from instruct", "own", "transfer",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset",
    [
        template_group("neg_sp_en_trans", layers=32, pairs=4),
        template_group("cities", stages=("base", "preference-tuned"), layers=16, pairs=4),
        free_group(),
        template_group("cities", stages=("base",)),
    ],
    ids=["25 tokens x 32 layers", "long stage names", "free-form", "1 stage"],
)
def test_no_label_overlaps_another_or_is_cut(dataset):
    grid = PatchGrid.from_dataset(dataset)
    for draw in (differences_raw, heatmaps, recovery):
        for drawing in draw([grid]):
            assert overlaps(drawing.figure) == [], draw.__name__


def test_a_dollar_sign_in_a_token_label_is_a_dollar_sign(cities):
    dataset = template_group("cities", stages=("base",), pairs=3)
    dataset["token_label"][1] = "$x^2$"
    (drawing,) = heatmaps([PatchGrid.from_dataset(dataset)])
    label = panels(drawing)["base → base"].get_xticklabels()[1]
    assert label.get_text() == "$x^2$"
    assert not label.get_parse_math()
