"""Estimates are never taken for exact values, and what is said of how good they are is right."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from posttrace.figures import FigureError, render, tables
from posttrace.figures.measures.intervals import RESAMPLES, SEED
from posttrace.figures.studies.knowledge.attribution import attribution
from posttrace.figures.studies.knowledge.data import ESTIMATE, PatchGrid
from posttrace.figures.studies.knowledge.differences import differences, differences_raw
from posttrace.figures.studies.knowledge.heatmaps import heatmaps, heatmaps_raw
from posttrace.figures.studies.knowledge.recovery import recovery
from posttrace.figures.studies.knowledge.tables import judgement, statistics
from tests.support.figures.drawn import overlaps, panels
from tests.support.figures.knowledge import estimated, free_group, template_group, write_store

EXACT = (0, 3, 4)
DRAWN = (heatmaps, heatmaps_raw, differences, differences_raw, recovery)


@pytest.fixture(scope="module")
def dataset():
    return estimated(template_group("cities", pairs=8), exact=EXACT)


@pytest.fixture(scope="module")
def cities(dataset):
    return PatchGrid.from_dataset(dataset)


@pytest.fixture(scope="module")
def free():
    """Pairs of different length: 9 to 19 tokens."""
    return PatchGrid.from_dataset(estimated(free_group(pairs=8), exact=EXACT))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A store with a set of estimates and one of exact values, drawn."""
    folder = tmp_path_factory.mktemp("attribution")
    stages = ("base", "instruct")
    sets = [
        estimated(template_group("cities", stages=stages, pairs=8, layers=3), exact=EXACT),
        template_group("sp_en_trans", stages=stages, pairs=4, layers=3),
    ]
    only = ["attribution", "heatmaps", "statistics"]
    files = render(write_store(folder / "store", sets), folder / "out", only, page=True)
    return folder / "out", files


def of_pair(grid, source, target, pair, token=slice(None)):
    """Estimate and exact value of one marked pair, unpadded, straight from the sample's arrays."""
    s, t = grid.sources.index(source), grid.targets.index(target)
    inside = grid.sample.inside[pair]
    return (values[s, t, pair][:, inside] for values in (grid.sample.estimate, grid.sample.exact))


def test_maps_and_statistics_are_made_of_estimates_and_of_nothing_else(dataset, cities):
    assert cities.complete, "exact values are missing by design"
    np.testing.assert_array_equal(cities.values, dataset["logit_diff_attribution"].values)
    broken = dataset.copy(deep=True)
    broken["logit_diff_attribution"][0, 0, EXACT[0], 2, 2] = np.nan
    grid = PatchGrid.from_dataset(broken)
    assert grid.pairs(("base", "base")).tolist() == [False] + [True] * 7, "no exact value takes its place"


def test_a_free_set_reduces_estimates_to_roles(free):
    assert free.labels == ("knowledge", "last", "other")
    whole = PatchGrid.from_dataset(free_group(pairs=8))
    assert free.values.shape == whole.values.shape
    assert np.abs(free.values - whole.values).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWN)
def test_every_title_and_caption_says_that_it_is_an_estimate(cities, draw):
    (drawing,) = draw([cities])
    for words in (drawing.figure.get_suptitle(), drawing.heading, drawing.caption, drawing.alt):
        assert ESTIMATE in words
    (exact,) = draw([PatchGrid.from_dataset(template_group("cities", pairs=8))])
    for words in (exact.figure.get_suptitle(), exact.heading, exact.caption, exact.alt):
        assert "estimate" not in words
        assert "attribution" not in words


def test_every_table_says_which_columns_are_estimates(cities):
    exact = PatchGrid.from_dataset(template_group("sp_en_trans", pairs=4))
    for table in statistics([cities, exact]):
        assert table.heading.endswith(f"{ESTIMATE} in cities")
        assert table.columns == ("cities (estimate)", "sp_en_trans")
        assert f"Columns of cities: {ESTIMATE}, not exact." in table.caption
        methods = table.tidy.groupby("set").method.unique().map(list).to_dict()
        assert methods == {"cities": ["attribution"], "sp_en_trans": ["exact"]}
    for table in statistics([cities]):
        assert table.heading.endswith(ESTIMATE)
    (table,) = judgement([cities])
    assert "exact also in cities" in table.caption
    assert table.columns == ("cities",)
    for table in (*statistics([exact]), *judgement([exact])):
        assert ESTIMATE not in table.heading + table.caption
        assert "method" not in table.tidy


def test_published_exact_values_do_not_stand_next_to_estimates(cities):
    cities = replace(cities, family="llama-3.1-8b")
    exact = PatchGrid.from_dataset(template_group("sp_en_trans", pairs=4).assign_attrs(family="llama-3.1-8b"))
    theirs = [r for t in statistics([cities, exact]) for b in t.blocks for r in b.rows if r.published]
    assert [str(row.cells[0]) for row in theirs] == ["–"] * 3
    assert str(theirs[0].cells[1]) == "0.9945"
    assert not [r for t in statistics([cities]) for b in t.blocks for r in b.rows if r.published]


@pytest.mark.parametrize("name", ["cities", "free"])
def test_agreement_is_that_of_all_cells_of_all_pairs(name, request):
    grid = request.getfixturevalue(name)
    found = grid.sample.agreement("base", "instruct")
    both = [tuple(of_pair(grid, "base", "instruct", pair)) for pair in range(3)]
    estimate, exact = (np.concatenate([pair[i].ravel() for pair in both]) for i in (0, 1))
    target = grid.targets.index("instruct")
    corrupt = np.repeat(grid.sample.unpatched[target], [pair[0].size for pair in both])
    assert found.n_pairs == 3
    assert found.n_cells == len(exact) == 8 * int(grid.sample.inside.sum())
    assert found.effect.value == pytest.approx(np.corrcoef(estimate - corrupt, exact - corrupt)[0, 1])
    assert found.logit_diff.value == pytest.approx(np.corrcoef(estimate, exact)[0, 1])
    assert found.mean_miss.value == pytest.approx(np.abs(estimate - exact).mean())
    assert found.largest.nats == pytest.approx(np.abs(estimate - exact).max())
    for statistic in (found.effect, found.logit_diff, found.mean_miss):
        assert statistic.low < statistic.value < statistic.high


def test_what_lies_past_the_end_of_a_statement_is_no_cell():
    dataset = estimated(free_group(pairs=8), exact=EXACT)
    usual = PatchGrid.from_dataset(dataset).sample.agreement("base", "sft")
    padded = dataset.fillna({"logit_diff": 0.0, "logit_diff_attribution": 1e6})
    assert PatchGrid.from_dataset(padded).sample.agreement("base", "sft") == usual


def test_intervals_draw_whole_pairs(free):
    found = free.sample.agreement("sft", "sft")
    both = [tuple(of_pair(free, "sft", "sft", pair)) for pair in range(3)]
    rng, draws = np.random.default_rng(SEED), []
    for size in (256,) * (RESAMPLES // 256) + (RESAMPLES % 256,):
        draws += list(rng.multinomial(3, [1 / 3] * 3, size=size))
    r, miss = [], []
    for counts in draws:
        pairs = [both[i] for i in range(3) for _ in range(counts[i])]
        estimate, exact = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        r.append(np.corrcoef(estimate, exact)[0, 1])
        miss.append(np.abs(estimate - exact).mean())
    assert [found.logit_diff.low, found.logit_diff.high] == pytest.approx(np.quantile(r, [0.025, 0.975]))
    assert [found.mean_miss.low, found.mean_miss.high] == pytest.approx(np.quantile(miss, [0.025, 0.975]))


def test_the_largest_miss_is_found_where_it_is(dataset):
    far = dataset.copy(deep=True)
    far["logit_diff_attribution"][2, 1, EXACT[1], 5, 4] += 100  # instruct -> sft, pair 3, layer 5, [s2]
    (table, drawing) = attribution([PatchGrid.from_dataset(far)])
    frame = pd.read_csv(io.StringIO(tables.as_csv(table))).query("statistic == 'largest_miss'")
    worst = frame.loc[frame.estimate.idxmax()]
    assert (worst.source, worst.target, worst.layer, worst.token_label, worst.pair) == (
        "instruct",
        "sft",
        5,
        "[s2]",
        3,
    )
    assert (worst.clean_statement, worst.corrupt_statement) == ("true statement 3", "false statement 3")
    assert 95 < worst.estimate < 105
    where = "instruct → sft, layer 5, token [s2], pair 3 (“true statement 3” put into “false statement 3”)"
    assert where in table.caption and where in drawing.caption
    block = next(b for b in table.blocks if b.heading == "instruct → sft")
    assert str({row.label: row.cells[0] for row in block.rows}["its layer, token, pair"]) == "5, [s2], 3"
    ax = panels(drawing)["instruct → sft"]
    points, ring = (np.asarray(c.get_offsets()) for c in ax.collections)
    assert len(points) == 3 * 8 * 14
    assert ring.tolist() == [points[np.abs(points[:, 1] - points[:, 0]).argmax()].tolist()]


def test_a_free_set_names_the_token_of_the_pair_itself():
    dataset = estimated(free_group(pairs=8), exact=EXACT)
    own = np.array([[f"p{pair}t{token}" for token in range(19)] for pair in range(8)], dtype=object)
    dataset = dataset.assign_coords(token_label_of_pair=(("pair", "token"), own))
    dataset["logit_diff_attribution"][0, 0, 4, 1, 6] += 100
    found = PatchGrid.from_dataset(dataset).sample.agreement("base", "base").largest
    assert (found.token, found.pair, found.layer) == ("p4t6", 4, 1)


def test_points_are_the_change_by_exact_patch_and_by_estimate(cities):
    _, drawing = attribution([cities])
    assert drawing.complete
    assert ESTIMATE in drawing.figure.get_suptitle() + drawing.heading
    assert "n = 3 of 8 pairs" in drawing.caption and "not normalised" in drawing.caption
    for s, source in enumerate(cities.sources):
        for t, target in enumerate(cities.targets):
            drawn = panels(drawing)[f"{source} → {target}"].collections[0]
            assert drawn.get_rasterized(), "a PDF holds a picture, not a hundred thousand circles"
            points = np.asarray(drawn.get_offsets())
            corrupt = cities.sample.unpatched[t][:, None, None]
            change = (cities.sample.exact[s, t] - corrupt, cities.sample.estimate[s, t] - corrupt)
            expected = np.stack([values.ravel() for values in change], axis=1)
            np.testing.assert_allclose(sorted(points.tolist()), sorted(expected.tolist()), atol=1e-6)


def test_marked_pairs_that_lack_a_value_are_left_out_and_counted(dataset):
    partly = dataset.copy(deep=True)
    partly["logit_diff"][0, 0, EXACT[1], 2, 2] = np.nan
    partly["logit_diff"][0, 1] = np.nan
    partly["logit_diff_corrupt"][2, EXACT[0]] = np.nan
    table, drawing = attribution([PatchGrid.from_dataset(partly)])
    counts = {block.heading: str(block.rows[0].cells[0]) for block in table.blocks}
    assert counts["base → base, storage"] == "2 of 3"
    assert counts["base → sft"] == "0 of 3"
    assert counts["sft → instruct"] == "2 of 3"
    assert counts["sft → base"] == "3"
    assert not drawing.complete
    assert (
        "INCOMPLETE: of 3 pairs with exact values there are only: base → base 2, base → sft 0"
        in drawing.caption
    )
    assert "INCOMPLETE" in drawing.figure.get_suptitle()
    assert [text.get_text() for text in panels(drawing)["base → sft"].texts] == ["no finished pair"]


def test_without_any_exact_pair_the_table_says_that_nothing_is_known():
    grid = PatchGrid.from_dataset(estimated(template_group("cities", pairs=4), exact=()))
    (table,) = attribution([grid])
    assert "No pair of cities has exact values: nothing tells how good its estimate is." in table.caption
    assert {str(cell) for block in table.blocks for row in block.rows[1:] for cell in row.cells} == {"–"}


@pytest.mark.parametrize(("n", "warned"), [(9, True), (10, False)])
def test_intervals_over_a_handful_of_pairs_are_not_to_be_relied_on(n, warned):
    group = template_group("cities", stages=("base",), pairs=12, layers=2)
    table = next(attribution([PatchGrid.from_dataset(estimated(group, exact=range(n)))]))
    assert ("fewer than 10 pairs are too narrow" in table.caption) == warned


def test_one_exact_pair_has_no_interval():
    grid = PatchGrid.from_dataset(estimated(template_group("cities", pairs=4), exact=(2,)))
    found = grid.sample.agreement("base", "base")
    assert np.isfinite(found.effect.value) and np.isnan(found.effect.low) and np.isnan(found.mean_miss.high)


def test_sets_with_exact_values_have_no_such_table():
    assert list(attribution([PatchGrid.from_dataset(template_group("cities", pairs=4))])) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "group",
    [
        template_group("neg_sp_en_trans", layers=32, pairs=4),
        template_group("cities", stages=("base", "preference-tuned"), layers=16, pairs=4),
        free_group(),
        template_group("cities", stages=("base",)),
    ],
    ids=["25 tokens x 32 layers", "long stage names", "free-form", "1 stage"],
)
def test_no_label_overlaps_another_or_is_cut(group):
    grid = PatchGrid.from_dataset(estimated(group))
    for draw in (differences_raw, heatmaps, recovery):
        for drawing in draw([grid]):
            assert overlaps(drawing.figure) == [], draw.__name__
    assert overlaps(list(attribution([grid]))[-1].figure) == []


@pytest.mark.parametrize("missing", ["exact", "logit_diff_attribution"])
def test_a_group_that_lacks_what_its_method_needs_is_refused(dataset, missing):
    with pytest.raises(FigureError, match=f"knowledge/cities: no variable {missing}"):
        PatchGrid.from_dataset(dataset.drop_vars(missing))


def test_an_unknown_method_is_refused_by_name(dataset):
    with pytest.raises(FigureError, match="method 'gradient' is not one of exact, attribution"):
        PatchGrid.from_dataset(dataset.assign_attrs(method="gradient"))


@pytest.mark.slow
def test_a_store_gives_the_table_the_scatter_and_a_page_that_says_so(drawn):
    out, files = drawn
    names = {path.relative_to(out).as_posix() for path in files}
    assert {f"tables/knowledge_attribution.{kind}" for kind in ("csv", "md", "tex")} <= names
    assert {f"knowledge/cities/attribution.{kind}" for kind in ("png", "pdf", "txt")} <= names
    assert "knowledge/sp_en_trans/attribution.png" not in names
    for path in (out / "knowledge" / "cities").glob("*.txt"):
        assert ESTIMATE in path.read_text(), path
    for path in (out / "knowledge" / "sp_en_trans").glob("*.txt"):
        assert ESTIMATE not in path.read_text(), path
    frame = pd.read_csv(out / "tables/knowledge_attribution.csv")
    assert set(frame["set"]) == {"cities"} and set(frame.method) == {"attribution"}
    assert set(frame.statistic) == {"correlation_effect", "correlation", "mean_miss", "largest_miss"}
    page = (out / "report.html").read_text()
    assert f"<dt>Method</dt><dd>{ESTIMATE} of cities</dd>" in page
    assert "<dt>Attribution patching</dt>" in page
    assert "INCOMPLETE" not in page, "values that are missing by design are no gap"


@pytest.mark.slow
def test_method_exact_is_no_method_at_all(tmp_path):
    group = template_group("cities", stages=("base",), pairs=3, layers=2)
    made = []
    for name, dataset in (("absent", group), ("exact", group.assign_attrs(method="exact"))):
        url = write_store(tmp_path / name, [dataset])
        files = render(url, tmp_path / f"{name}-out", page=True)
        made.append({p.relative_to(tmp_path / f"{name}-out").as_posix(): p.read_bytes() for p in files})
    pages = [files.pop("report.html").decode() for files in made]
    assert made[0] == made[1]
    assert not any("attribution" in name for name in made[0])
    assert all("Attribution" not in page and "<dt>Method" not in page for page in pages)
