"""The sentence of every study has the numbers of its tables, and says when they mean little."""

import re
from dataclasses import replace
from pkgutil import resolve_name

import numpy as np
import pytest
import xarray as xr

from posttrace.figures.registry import STUDIES, study
from posttrace.figures.studies.confidence import tables as confidence_tables
from posttrace.figures.studies.confidence.verdict import verdict as confidence
from posttrace.figures.studies.difference import tables as difference_tables
from posttrace.figures.studies.difference.data import Difference
from posttrace.figures.studies.difference.verdict import verdict as difference
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import statistics
from posttrace.figures.studies.knowledge.verdict import verdict as knowledge
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.figures.studies.refusal.tables import scores
from posttrace.figures.studies.refusal.verdict import verdict as refusal
from posttrace.figures.studies.stages import tables as stages_tables
from posttrace.figures.studies.stages.verdict import verdict as stages
from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.figures.studies.trace.verdict import verdict as trace
from posttrace.figures.studies.truthfulness import tables as truthfulness_tables
from posttrace.figures.studies.truthfulness.verdict import verdict as truthfulness
from posttrace.figures.tables import cell
from posttrace.stores import open_group
from tests.support.figures import stages as of_stages
from tests.support.figures.confidence import make_answers, make_neurons, make_on_text
from tests.support.figures.knowledge import estimated, template_group
from tests.support.figures.refusal import N
from tests.support.figures.refusal import write as write_refusal
from tests.support.figures.truthfulness import SETS, statements, summary


def only(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    (row,) = frame.to_dict("records")
    return row


def shown(row, digits, value="estimate", scale=1):
    return str(cell(scale * row[value], scale * row["low"], scale * row["high"], digits))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_declares_a_verdict_and_a_hero_among_its_figures(name):
    declared = study(name)
    assert callable(resolve_name(declared.verdict))
    (hero,) = [figure for figure in declared.figures if figure.name == declared.hero]
    assert not hero.folded


def test_knowledge_has_the_correlations_of_the_tables():
    sets = [
        PatchGrid.from_dataset(template_group(n, pairs=8, seed=i))
        for i, n in enumerate(("cities", "neg_cities"))
    ]
    storage, transfer = statistics(sets)
    pick = {"scale": "normalised", "statistic": "correlation", "matrix_2": "instruct->instruct"}
    rows = [only(storage.tidy, matrix_1="base->base", set=grid.name, **pick) for grid in sets]
    low, high = sorted(rows, key=lambda row: row["estimate"])
    found = knowledge(sets)
    assert (
        f"base and instruct correlate with r = {shown(low, 2)} ({low['set']}, n = 8 pairs, the lowest of 2 sets) to "
        f"{shown(high, 2)} ({high['set']}, n = 8 pairs, the highest)."
    ) in found.sentence
    rows = [only(transfer.tidy, matrix_1="base->instruct", set=grid.name, **pick) for grid in sets]
    least = min(rows, key=lambda row: row["estimate"])
    assert f"r = {shown(least, 2)} or more ({least['set']}, n = 8 pairs)." in found.sentence
    assert found.caveat == "" and not found.doubtful and not found.weak


def test_knowledge_that_no_stage_has_makes_the_sentence_weak():
    dataset = template_group("cities", stages=("base", "instruct"), pairs=6)
    dataset["logit_diff_clean"][:] *= -1
    found = knowledge([PatchGrid.from_dataset(dataset)])
    assert found.weak and "In 1 of 1 sets (cities)" in found.caveat
    assert "base judges 0.00 [0.00, 0.00] of 6 pairs right and instruct judges" in found.doubtful["cities"]


def test_knowledge_tells_estimates_and_a_single_stage():
    one = PatchGrid.from_dataset(estimated(template_group("cities", pairs=8)))
    assert "n = 8 pairs, an estimate)" in knowledge([one]).sentence
    alone = PatchGrid.from_dataset(template_group("cities", stages=("base",), pairs=8))
    assert knowledge([alone]).sentence.startswith("base judges 1.00 [1.00, 1.00] of 8 pairs right (cities)")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    url = write_refusal(tmp_path_factory.mktemp("refusal") / "store")
    return Refusal.from_dataset(open_group(url, "refusal"))


def test_refusal_has_the_shares_of_the_table(refusals):
    frame = next(scores([refusals])).tidy
    frame = frame[(frame.target == "instruct") & (frame.kind == "harmful")]
    before = only(frame, intervention="none")
    each = {d: only(frame, intervention="ablation", direction=d) for d in ("base", "sft", "instruct")}
    found = refusal([refusals])
    assert found.sentence == (
        f"instruct's own direction ablated: refusals of harmful prompts {shown(before, 2)} → "
        f"{shown(each['instruct'], 2)} (n = {N}); base's direction {shown(each['base'], 2)}; sft's direction "
        f"{shown(each['sft'], 2)}; 2 random directions, mean and range 1.00 [1.00, 1.00]."
    )
    assert not found.weak
    assert list(found.doubtful) == ["base"] and "The direction of base does not qualify" in found.caveat


def test_refusal_without_random_directions_has_no_control(refusals):
    bare = Refusal(refusals.data.isel(direction=slice(0, 3)))
    found = refusal([bare])
    assert found.weak and "No control" in found.caveat and "random" not in found.sentence


def test_refusal_says_when_ablation_does_no_more_than_a_random_direction(refusals):
    data = refusals.data.copy(deep=True)
    data["refused"][2] = data["refused"][4]
    assert "instruct's own direction does no more than the random ones" in refusal([Refusal(data)]).caveat
    assert "no more" not in refusal([refusals]).caveat


def test_refusal_of_a_direction_that_does_not_qualify_is_weak(refusals):
    data = refusals.data.copy()
    data["selected_by"] = ("model", ["sweep"] * 3)
    data["selected_qualifies"] = ("model", [True, True, False])
    found = refusal([Refusal(data)])
    assert found.weak and list(found.doubtful) == ["instruct"]


def test_truthfulness_has_the_means_of_the_tables():
    groups = [summary(), *map(statements, SETS)]
    accuracy = next(truthfulness_tables.accuracies(groups)).tidy
    effect = next(truthfulness_tables.effects(groups)).tidy
    found = truthfulness(groups)
    pick = {"set": truthfulness_tables.MEAN, "target": "instruct"}
    for source, whose in (("base", "base's"), ("instruct", "its own")):
        row = only(accuracy, probe="mass_mean", source=source, statistic="accuracy", **pick)
        assert f"{whose} {shown(row, 1, scale=100)} %" in found.sentence
        row = only(effect, kind="both", source=source, statistic="effect", **pick)
        assert f"{whose} {shown(row, 2)}" in found.sentence
    random = cell(row["random_median"], row["random_low"], row["random_high"], 2)
    assert f"20 random directions, median and 95 % range {random}" in found.sentence
    assert (
        "n = 32 statements" in found.sentence and not found.weak and "no more than random" not in found.caveat
    )


def test_truthfulness_says_when_a_probe_guesses_and_when_there_is_no_control():
    sets = [statements(name) for name in SETS]
    data = sets[0].data.copy(deep=True)
    data["correct"][:] = np.arange(data.sizes["statement"])[:, None] % 2 == 0
    bare = [replace(one, data=one.data.sel(direction=["none", "base", "sft", "instruct"])) for one in sets]
    found = truthfulness([summary(), replace(sets[0], data=data), sets[1]])
    assert "50.0 [30.0, 70.0] % of 20 statements" in found.doubtful["cities"]
    found = truthfulness([summary(), *bare])
    assert found.weak and "No control" in found.caveat
    # Random directions turn the answers further than those of the stages do.
    names = sets[0].directions
    p_diff = sets[0].data["p_diff"].values.copy()
    p_diff[[i for i, name in enumerate(names) if name in ("base", "instruct")]] = p_diff[names.index("none")]
    turned = [replace(sets[0], data=sets[0].data.assign(p_diff=(sets[0].data["p_diff"].dims, p_diff)))]
    found = truthfulness([summary(), *turned])
    assert "The direction of base and instruct steers no more than random directions" in found.caveat


def test_confidence_has_the_numbers_of_the_tables():
    groups = [make_neurons(), make_on_text(), make_answers()]
    found = confidence(groups)
    overlap = only(next(confidence_tables.overlaps(groups)).tidy, first="base", second="instruct")
    assert f"base and instruct share {overlap['overlap']} of 4 candidate entropy neurons" in found.sentence
    assert f"({overlap['expected_hypergeometric']:.1f} expected" in found.sentence
    frame = next(confidence_tables.ablation(groups)).tidy
    for effect, words in (("total", "entropy"), ("direct", "entropy, norm frozen")):
        row = only(frame, stage="instruct", quantity="entropy", effect=effect)
        random = cell(row["random_mean"], row["random_low"], row["random_high"], 4)
        assert (
            f"{words} {shown(row, 4, 'change')}, 50 random sets (mean, 95 % range) {random}" in found.sentence
        )
    frame = next(confidence_tables.calibration(groups)).tidy
    for stage in ("base", "instruct"):
        assert f"{stage} {shown(only(frame, stage=stage, statistic='ece'), 3)}" in found.sentence
    assert "(cities, n = 40 statements)" in found.sentence
    assert found.caveat == "" and not found.weak


def test_confidence_says_when_a_stage_guesses():
    answers = make_answers()
    guessed = replace(answers, label=np.arange(40) % 4 < 2)
    found = confidence([make_neurons(), guessed])
    assert list(found.doubtful) == ["cities"] and "near that of guessing" in found.caveat


def test_trace_counts_the_prompts_whose_next_token_changes():
    tokens = np.array([[["a", "b", "c"], ["a", "x", "y"]], [["a", "b", "z"], ["q", "x", "y"]]], dtype=object)
    dims = ("model", "intervention", "prompt", "rank")
    data = xr.Dataset(
        {
            "entropy": (dims[:3], np.ones(tokens.shape)),
            "logprob": (dims, np.zeros((*tokens.shape, 1))),
            "next_token": (dims, tokens[..., None]),
        },
        coords={"model": ["base", "instruct"], "intervention": ["none", "all"]},
    )
    found = trace([TraceGroup(data)])
    shares = [float(n) for n in re.findall(r"(\d\.\d\d) \[", found.sentence)]
    assert shares == [0.67, 1.0], "2 of 3 prompts agree, all 3 change"
    assert found.sentence.count("of 3 prompts") == 2 and "No control" in found.caveat


def test_stages_has_the_effects_of_the_table_and_compares_removals_with_controls():
    group = of_stages.behaviour()
    frame = next(stages_tables.effects([group])).tidy
    rows = {u: only(frame, update=u, kind="harmful", statistic="mean") for u in ("sft", "instruct")}
    found = stages([of_stages.weights(), group])
    assert (
        f"sft {shown(rows['sft'], 3)}, instruct {shown(rows['instruct'], 3)} (harmful prompts, n = 4)"
        in found.sentence
    )
    assert "instruct: gaussian, permuted" in found.caveat and "sft" not in found.caveat, (
        "instruct's effects cancel"
    )
    assert not found.weak
    bare = type(group)(group.data.drop_vars("control_removed"))
    assert stages([bare]).weak and "no control" in stages([bare]).caveat


def compared(control=None):
    """Two documents of three tokens; sft is 0.1 and 0.3 nats from base, instruct twice as far."""
    js = np.array([0.1, 0.3])[:, None] * np.ones((2, 3)) * np.array([1.0, 2.0])[:, None, None]
    stages = ["base", "sft", "instruct"]
    per_stage = (("model", "document", "token"), np.zeros((3, 2, 3)))
    return Difference(
        xr.Dataset(
            {
                **{name: (("pair", "document", "token"), js) for name in ("js", "kl")},
                "entropy": per_stage,
                "loss": per_stage,
                "token_role": (("document", "token"), np.full((2, 3), "text", dtype=object)),
                "n_tokens": ("document", [3, 3]),
            },
            coords={
                "model": stages,
                "pair_source": ("pair", ["base"] * 2),
                "pair_target": ("pair", stages[1:]),
            },
            attrs={"set": "web", "family": "tiny", "control": control or []},
        )
    )


def test_difference_has_the_divergence_of_the_table_and_of_the_control():
    one = compared(control=["base", "sft"])
    frame = next(difference_tables.divergence([one])).tidy
    rows = {t: only(frame, target=t, role="all", measure="JS") for t in ("sft", "instruct")}
    found = difference([one])
    assert (
        f"base → instruct {shown(rows['instruct'], 4, 'value')} of at most 0.693 nats, training control "
        f"{shown(rows['sft'], 4, 'value')} (web, n = 2 documents)"
    ) in found.sentence
    assert "no more clearly than the training control" in found.caveat and not found.weak
    bare = difference([compared()])
    assert bare.weak and "No training control" in bare.caveat and "control" not in bare.sentence
