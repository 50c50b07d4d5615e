"""The study on random models: against plain transformers and NumPy, resumed, repeated, and given nonsense."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.figures import render
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.stores import Store, open_group, verify
from posttrace.tracers.errors import TracerError
from tests.support.commands import posttrace
from tests.support.jobs import write_csv
from tests.support.models import probability_difference

STAGES = ("base", "instruct")
SETS = ("cities", "plain", "long")
DRAWN = ["truthfulness/accuracies", "truthfulness/effects", "truthfulness/projection"]
COEFFICIENT = 20.0
"""In random models the direction is short; twenty of it move the answer visibly."""
N_QUESTION = 4
"""Tokens of ` This statement is:`; the statement's period comes right before them."""


def write_sets(folder):
    """Three sets of one-word subjects and objects; labels by a rule, so that there is something to learn."""
    templates = {
        "cities": "The city of w{} is in w{}.",
        "plain": "w{} is w{}.",
        "long": "The city of w{} is not in w{} of w7.",
    }
    for name, template in templates.items():
        rows = [(template.format(i, 50 + (7 * i) % 40), int((7 * i) % 40 < 20)) for i in range(26)]
        write_csv(folder / f"{name}.csv", rows)


def write_job(folder, family, **changes):
    write_sets(folder)
    job = {
        "study": "truthfulness",
        "family": {"name": "random", "stages": {s: str(family / s) for s in STAGES}},
        "sets": [f"{name}.csv" for name in SETS],
        "statements_per_unit": 9,
        "sweep_statements": 4,
        "intervene_layer": 0,
        "probe_layer": 1,
        "coefficient": COEFFICIENT,
        "coefficient_sweep": [0.5, 60.0],
        "execution": {"device": "cpu", "check_share": 0.05},
        **changes,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture(scope="module")
def job_file(tmp_path_factory, family):
    return write_job(tmp_path_factory.mktemp("truth"), family)


@pytest.fixture(scope="module")
def store(shared, job_file):
    def make(folder):
        run_job(load_job(str(job_file)), str(folder / "store"), say=lambda line: None)

    return shared("truth", make) / "store"


@pytest.fixture(scope="module")
def plain(family):
    """Stage -> model and tokenizer, as transformers loads them."""
    return {
        stage: (
            AutoModelForCausalLM.from_pretrained(family / stage, dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(family / stage),
        )
        for stage in STAGES
    }


@pytest.fixture(scope="module")
def dumped(store, plain):
    """(stage, set) -> after every block, the last token of each bare statement; dims statement x layer x hidden."""
    return {
        (stage, name): np.stack([last_token(*plain[stage], text) for text in texts_of(store, name)])
        for stage in STAGES
        for name in SETS
    }


def texts_of(store, name):
    return map(str, open_group(str(store), f"truthfulness/{name}").text.values)


def last_token(model, tokenizer, text):
    """After every block, kept by forward hooks; dims layer x hidden."""
    kept = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: kept.append(out[0, -1].double().numpy()))
        for block in model.model.layers
    ]
    with torch.no_grad():
        model(tokenizer(text, return_tensors="pt").input_ids)
    for hook in hooks:
        hook.remove()
    return np.stack(kept)


@pytest.fixture(scope="module")
def labels(store):
    return {name: open_group(str(store), f"truthfulness/{name}").label.values == 1 for name in SETS}


@pytest.fixture(scope="module")
def by_hand(dumped, labels):
    """(stage, held-out set) -> direction per layer, from the dumped activations; dims layer x hidden."""
    found = {}
    for stage in STAGES:
        for held_out in SETS:
            rest = [name for name in SETS if name != held_out]
            h = np.concatenate([dumped[stage, n] - dumped[stage, n].mean(0) for n in rest])
            y = np.concatenate([labels[n] for n in rest])
            found[stage, held_out] = h[y].mean(0) - h[~y].mean(0)
    return found


@pytest.mark.slow
def test_activations_and_directions_are_those_of_plain_transformers(store, dumped, by_hand):
    data = open_group(str(store), "truthfulness").load()
    for stage in STAGES:
        for name in SETS:
            one = open_group(str(store), f"truthfulness/{name}").load()
            np.testing.assert_allclose(
                one.activation.sel(model=stage), dumped[stage, name], atol=1e-4, rtol=1e-4
            )
            found = data.direction.sel(model=stage, held_out=name)
            np.testing.assert_allclose(found, by_hand[stage, name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_cosine_is_that_of_the_directions_made_by_hand(store, by_hand):
    data = open_group(str(store), "truthfulness").load()
    for name in SETS:
        a, b = by_hand["base", name], by_hand["instruct", name]
        expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        found = data.cosine.sel(source="base", target="instruct", held_out=name)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_allclose(data.cosine.sel(source="base", target="base", held_out=name), 1, rtol=1e-6)


@pytest.mark.slow
def test_accuracy_of_own_and_transferred_probes_is_that_of_regression_by_hand(store, dumped, labels, by_hand):
    """Newton's method on the projection; every ordered pair of stages, set and layer."""
    data = open_group(str(store), "truthfulness").load()
    seen = []
    for source in STAGES:
        for held_out in SETS:
            rest = [name for name in SETS if name != held_out]
            y = np.concatenate([labels[n] for n in rest])
            for layer in range(3):
                t = by_hand[source, held_out][layer]
                x = np.concatenate(
                    [(dumped[source, n] - dumped[source, n].mean(0))[:, layer] @ t for n in rest]
                )
                slope, bias = newton(x / x.std(), y)
                for target in STAGES:
                    h = dumped[target, held_out] - dumped[target, held_out].mean(0)
                    judged = slope * (h[:, layer] @ t) / x.std() + bias > 0
                    expected = (judged == labels[held_out]).mean()
                    where = dict(
                        probe="mass_mean", source=source, target=target, held_out=held_out, layer=layer
                    )
                    assert float(data.accuracy.sel(where)) == pytest.approx(expected, abs=1e-6), where
                    seen.append(expected)
    assert len(seen) == 36 and np.ptp(seen) > 0.1, "all accuracies alike: nothing is tested"


def newton(x, y):
    features, w = np.stack([x, np.ones(len(x))], axis=1), np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-features @ w))
        w += np.linalg.solve((features * (p * (1 - p))[:, None]).T @ features, features.T @ (y - p))
    return w


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("base", "base"), ("base", "instruct"), ("instruct", "base")])
def test_effects_are_those_of_hooks_in_plain_transformers(store, plain, labels, by_hand, source, target):
    """Prompts as stored, directions from the dumped activations, steering by forward hooks, the formula written out."""
    summary = open_group(str(store), "truthfulness").load()
    effect = summary.effect.set_index(direction="direction_name")
    model, tokenizer = plain[target]
    true, false = tokenizer.convert_tokens_to_ids([" TRUE", " FALSE"])
    for held_out in SETS[:2]:
        data = open_group(str(store), f"truthfulness/{held_out}").load()
        here = summary.sel(held_out=held_out)
        first, last = int(here.intervene_layer), int(here.probe_layer)
        vector = torch.tensor(by_hand[source, held_out][last], dtype=torch.float32)
        before, after = [], []
        used = ~data.example.values
        for prompt, label in zip(data.prompt.values[used], labels[held_out][used], strict=True):
            ids = tokenizer(str(prompt), return_tensors="pt").input_ids
            before.append(probability_difference(model, ids, true, false))
            steer = (-1 if label else 1) * COEFFICIENT * vector
            hooks = [
                model.model.layers[layer].register_forward_hook(adding(steer))
                for layer in range(first, last + 1)
            ]
            after.append(probability_difference(model, ids, true, false))
            [hook.remove() for hook in hooks]
        for name, values in (("none", before), (source, after)):
            np.testing.assert_allclose(
                data.p_diff.sel(direction=name, target=target)[used], values, atol=1e-6
            )
        y, before, after = labels[held_out][used], np.array(before), np.array(after)
        assert np.abs(after - before).max() > 2e-4, "no steering has an effect: nothing is tested"
        minus, plus = before[~y].mean(), before[y].mean()
        up = (after[~y].mean() - minus) / (1 - minus)
        down = (after[y].mean() - plus) / (-1 - plus)
        found = effect.sel(direction=source, target=target, held_out=held_out)
        assert float(found) == pytest.approx((up + down) / 2, abs=1e-6)


def adding(vector):
    def add(_module, _inputs, output):
        output = output.clone()
        output[0, [-N_QUESTION - 2, -N_QUESTION - 1]] += vector
        return output

    return add


@pytest.mark.slow
def test_the_names_that_readers_rely_on(store):
    data = open_group(str(store), "truthfulness").load()
    assert data.direction.dims == ("model", "held_out", "layer", "hidden")
    assert data.accuracy.dims == ("probe", "source", "target", "held_out", "layer")
    assert data.cosine.dims == ("source", "target", "held_out", "layer")
    assert data.effect.dims == ("direction", "target", "held_out")
    assert list(data.held_out.values) == list(SETS) and list(data.model.values) == list(STAGES)
    names = ["none", *STAGES, *(f"random-{i}" for i in range(20))]
    assert list(data.direction_name.values) == names
    assert not data.accuracy.isnull().any() and not data.effect.isnull().any()
    for name in SETS:
        one = open_group(str(store), f"truthfulness/{name}").load()
        assert one.activation.dims == ("model", "statement", "layer", "hidden")
        assert one.label.dims == ("statement",) and set(one.label.values) == {0, 1}
        assert one.p_diff.dims == ("direction", "target", "statement")
        assert list(one.direction.values) == names
        assert (one.p_diff.isnull() == one.example).all(), "examples, and only they, are not answered"
        assert int(one.example.sum()) == 4
        assert one.completion.dims == ("shown", "target", "sample") and (one.completion != "").any()


@pytest.mark.slow
def test_the_coefficient_sweep_scales_the_steering(store):
    """Twice the coefficient is another answer; the effect by coefficient is the effect of those answers."""
    data = open_group(str(store), "truthfulness").load()
    one = open_group(str(store), "truthfulness/cities").load()
    assert list(one.coefficient.values) == [0.5, 60.0]
    swept = one.p_diff_coefficient.sel(direction="base", target="base")
    none = one.p_diff.sel(direction="none", target="base")
    assert float(abs(swept - none).max()) > 2e-4 and float(abs(swept[0] - swept[1]).max()) > 2e-4
    np.testing.assert_array_equal(
        one.p_diff_coefficient.sel(direction="none"), one.p_diff.sel(direction=["none"] * 2)
    )
    assert data.effect_coefficient.dims == ("coefficient", "direction", "target", "held_out")
    assert not data.effect_coefficient.isnull().any()


@pytest.mark.slow
def test_layers_are_chosen_without_the_set_that_is_left_out(family, tmp_path):
    """Another text in one set changes what is learned with that set, and nothing learned without it."""
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        changes = dict(intervene_layer=None, probe_layer=None, coefficient_sweep=[], samples=0)
        path = write_job(tmp_path / name, family, **changes)
        if name == "other":
            file = tmp_path / name / "plain.csv"
            file.write_text(file.read_text().replace(" is ", " of "))
        run_job(load_job(str(path)), str(tmp_path / name / "store"), say=lambda line: None)
        found.append(open_group(str(tmp_path / name / "store"), "truthfulness").load())
    one, other = found
    learned = ("direction", "cosine", "sweep_accuracy", "probe_layer", "probe_truth", "probe_bias")
    tried = ("sweep_effect", "sweep_effect_random", "sweep_effect_random_highest", "intervene_layer")
    for name in (*learned, *tried):
        without = [data[name].sel(held_out="plain") for data in found]
        np.testing.assert_array_equal(*without, err_msg=name)
    assert float(abs(one.direction - other.direction).sel(held_out="cities").max()) > 1e-3
    assert not one.accuracy.sel(held_out="plain").equals(other.accuracy.sel(held_out="plain"))
    assert (one.intervene_layer <= one.probe_layer).all() and np.isfinite(one.sweep_accuracy).all()
    for held_out in SETS:
        here = one.sel(held_out=held_out)
        own = here.sweep_effect.values
        assert int(here.intervene_layer) == np.flatnonzero(own == np.nanmax(own))[0]
        tried = slice(int(here.probe_layer) + 1)
        for name in ("sweep_effect", "sweep_effect_random", "sweep_effect_random_highest"):
            assert np.isfinite(here[name][tried]).all() and here[name][tried.stop :].isnull().all(), name
        assert (here.sweep_effect_random_highest > here.sweep_effect_random)[tried].all()


@pytest.mark.slow
def test_rerun_makes_no_forward_pass_and_the_same_figures(job_file, store, tmp_path):
    passes = []
    handle = register_module_forward_hook(lambda *_: passes.append(1))
    try:
        said = []
        run_job(load_job(str(job_file)), str(store), say=said.append)
        assert passes == [] and "0 to go" in said[0]
        render(str(store), tmp_path / "one", only=DRAWN)
        Store.open(str(store)).forget(["truthfulness/learn/cities", "truthfulness/plain/steer/base/0009"])
        run_job(load_job(str(job_file)), str(store), say=said.append)
        assert len(passes) > 0, "the hook counts"
    finally:
        handle.remove()
    render(str(store), tmp_path / "two", only=DRAWN)
    one, two = (
        {p.relative_to(tmp_path / d): p.read_bytes() for p in (tmp_path / d).rglob("*") if p.is_file()}
        for d in ("one", "two")
    )
    assert one == two and any(p.suffix == ".png" for p in one) and any(p.suffix == ".tex" for p in one)


def test_units_come_after_those_that_they_read(job_file, family, tmp_path):
    swept = write_job(tmp_path, family, intervene_layer=None, probe_layer=None)
    for path in (job_file, swept):
        seen = set()
        for work in prepare(load_job(str(path))).work:
            assert set(work.needs) <= seen and bool(work.needs) == (work.kind != "read"), work.unit.id
            seen.add(work.unit.id)


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_values(job_file, store, tmp_path):
    """Every unit forgotten is computed again, bit for bit, from what the others left."""
    again = tmp_path / "store"
    shutil.copytree(store, again)
    opened = Store.open(str(again))
    opened.forget(list(opened.units)[3::4])
    run_job(load_job(str(job_file)), str(again), say=lambda line: None)
    for path in ("truthfulness", *(f"truthfulness/{name}" for name in SETS)):
        one, other = (open_group(str(s), path).load() for s in (store, again))
        for name in one.variables:
            same_text = one[name].dtype.kind in "OT" and one[name].equals(other[name])
            assert same_text or one[name].values.tobytes() == other[name].values.tobytes(), name
    assert verify(str(again)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(sets=["cities.csv"]), "name at least 2"),
        (dict(sets=["cities.csv", {"name": "neg_cities", "csv": "plain.csv"}]), "name at least 2"),
        (
            dict(sets=["cities.csv", "plain.csv"], probe_layer=None),
            "give intervene_layer and probe_layer",
        ),
        (dict(sets=["cities.csv", "plain.csv", "ones.csv"]), "all 6 statements are true"),
        (dict(answers=[" w1 w2", " FALSE"]), "is not one token"),
        (dict(probe_layer=3), "probe_layer: 3 is not in 0-2 (random has 3 blocks)"),
        (dict(intervene_layer=2, probe_layer=1), "intervene_layer: 2 comes after probe_layer 1"),
        (dict(random_directions=5), "random_directions: Input should be greater than or equal to 20"),
        (dict(sets=["cities.csv", "plain.csv", "endless.csv"]), "its prompt has"),
        (dict(sets=["cities.csv", "plain.csv", "strange.csv"]), "words that the tokenizer does not know"),
        (dict(probes=["mass_mean", "guess"]), "probes"),
        (dict(few_shot=40), "few_shot"),
        (dict(sets=["cities.csv", "plain.csv", "effect.csv"]), "rename the set: {name: my-effect, csv: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_is_run(family, tmp_path, changes, words):
    path = write_job(tmp_path, family, **changes)
    write_csv(tmp_path / "ones.csv", [(f"w{i} is w{i + 1}.", 1) for i in range(6)])
    write_csv(tmp_path / "effect.csv", [(f"w{i} is w{i + 1}.", i % 2) for i in range(8)])
    write_csv(tmp_path / "endless.csv", [(f"w{i} " + "is w1 " * 3000 + "w2.", i % 2) for i in range(8)])
    write_csv(tmp_path / "strange.csv", [(f"Quetzal is w{i}.", i % 2) for i in range(8)])
    with pytest.raises((JobError, TracerError)) as mistake:
        prepare(load_job(str(path)))
    assert words in str(mistake.value)


def test_a_mistake_is_one_message_and_status_2(family, tmp_path):
    done = posttrace("run", write_job(tmp_path, family, probe_layer=3), "--store", tmp_path / "store")
    assert done.returncode == 2 and "probe_layer: 3 is not in 0-2" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "store").exists()
