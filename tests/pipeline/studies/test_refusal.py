"""The refusal study on random models against plain PyTorch, on the checkpoints that ship, and what users get wrong."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import fingerprint, prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.studies.refusal import instructions
from posttrace.pipeline.studies.refusal.instructions import Download, read_splits
from posttrace.pipeline.studies.refusal.job import InstructionSet
from posttrace.pipeline.studies.refusal.scores import matched_phrase, repeated_share
from posttrace.pipeline.studies.refusal.selection import choose_coefficient, choose_direction
from posttrace.pipeline.studies.refusal.templates import tail_length
from posttrace.stores import Store, open_group
from tests.support.commands import posttrace
from tests.support.generation import plain_hooks
from tests.support.jobs import write_csv
from tests.support.models import random_module, word_tokenizer

WORDS = [
    "User",
    "Assistant",
    " Assistant",
    ":",
    "?",
    ".",
    "<",
    ">",
    "u",
    "a",
    "I",
    " I",
    " cannot",
    "Sure",
    " Sure",
]
CHAT = "{{ bos_token }}{% for m in messages %}<u>{{ m['content'] }}\n{% endfor %}<a>"
NEW, LAYERS = 5, 3


@pytest.fixture(scope="module")
def chat_family(shared):
    """Random Llamas base and instruct, the latter with a chat template of its own."""

    def make(folder):
        for seed, stage in enumerate(["base", "instruct"]):
            random_module("llama", seed).save_pretrained(folder / stage)
            tokenizer = word_tokenizer(WORDS)
            tokenizer.chat_template = CHAT if stage == "instruct" else None
            tokenizer.save_pretrained(folder / stage)

    return shared("chat-family", make)


def texts(kind, n=30):
    first = 0 if kind == "harmful" else 50
    return [f"w{first + i} w{(7 * i) % 40}" + (" w3" if i % 3 else "") + "?."[i % 2] for i in range(n)]


def write_job(folder, family, **keys):
    for kind in ("harmful", "harmless"):
        splits = ["train"] * 12 + ["validation"] * 8 + ["test"] * 10
        write_csv(
            folder / f"{kind}.csv", list(zip(texts(kind), splits, strict=True)), ("instruction", "split")
        )
    (folder / "openings.yaml").write_text(
        yaml.safe_dump({"refusal": ["I cannot", "w1"], "compliant": ["Sure", "w2"]})
    )
    (folder / "phrases.txt").write_text("w1\nw2\nw3\nw4\nw5\nw6\nw7\nw8\nw9\n")
    job = {
        "study": "refusal",
        "family": {"name": "random", "stages": {s: str(family / s) for s in ("base", "instruct")}},
        "harmful": "harmful.csv",
        "harmless": "harmless.csv",
        "openings": "openings.yaml",
        "phrases": "phrases.txt",
        "new_tokens": NEW,
        "random_directions": 2,
        "prompts_per_unit": 7,
        "max_kl": 50.0,
        "coefficient_search": [0.5, 2],
        "execution": {"device": "cpu"},
        **keys,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture
def job_file(tmp_path, chat_family):
    return write_job(tmp_path, chat_family)


@pytest.fixture(scope="module")
def finished(shared, chat_family):
    def make(folder):
        done = posttrace("run", write_job(folder, chat_family), "--store", folder / "store")
        assert done.returncode == 0, done.stderr

    return shared("refusal", make)


@pytest.fixture(scope="module")
def data(finished):
    return open_group(str(finished / "store"), "refusal").load()


@pytest.mark.slow
def test_the_names_that_readers_rely_on(data):
    assert data.direction.dims == ("model", "layer", "position", "hidden")
    assert data.selected_layer.dims == data.selected_position.dims == ("model",)
    for name in ("refused", "log_odds", "completion", "phrase", "mean_nll", "repeated"):
        assert data[name].dims == ("direction", "target", "intervention", "prompt"), name
    assert data.refused.dtype == bool
    assert list(data.intervention.values) == ["none", "ablation", "addition"]
    assert list(data.direction_name.values) == ["base", "instruct", "random-0", "random-1"]
    assert "set_xindex('direction_name')" in data.attrs["axis_direction"]
    by_label = data.set_xindex("direction_name").refused.sel(direction_name="instruct", target="base")
    np.testing.assert_array_equal(by_label.values, data.refused.values[1, 0])
    assert list(data.kind.values) == ["harmful"] * 10 + ["harmless"] * 10
    assert set(data.instruction.values[:10]) <= set(texts("harmful")) and data.log_odds.notnull().all()
    assert [str(t) for t in data.position_token.sel(model="instruct").values] == ["\n", "<", "a", ">"]
    assert list(data.in_template.sel(model="base").values) == [False] + [True] * 3


@pytest.mark.slow
def test_not_steered_is_the_same_for_every_direction_and_refused_means_a_phrase(data):
    for name in ("completion", "log_odds", "refused"):
        plain = data[name].sel(intervention="none").values
        assert (plain == plain[:1]).all()
    assert (data.refused == (data.phrase != "")).all()
    starts = [
        completion.lstrip().startswith(phrase)
        for completion, phrase in zip(data.completion.values.ravel(), data.phrase.values.ravel(), strict=True)
    ]
    assert all(starts) and 0 < float(data.refused.mean()) < 1


def plain_prompts(family, data, stage, split_texts):
    tokenizer = AutoTokenizer.from_pretrained(family / stage)
    made = []
    for text in split_texts:
        whole = f"<s><u>{text}\n<a>" if stage == "instruct" else f"<s>User: {text}\nAssistant:"
        made.append(tokenizer(whole.removeprefix("<s>"), add_special_tokens=True)["input_ids"])
    return tokenizer, made


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "instruct"])
def test_directions_are_differences_of_means_in_plain_transformers(chat_family, data, stage):
    model = AutoModelForCausalLM.from_pretrained(chat_family / stage).eval()
    means = []
    for kind in ("harmful", "harmless"):
        _, prompts = plain_prompts(chat_family, data, stage, texts(kind)[:12])
        with torch.no_grad():
            streams = [
                torch.stack(model(torch.tensor([p]), output_hidden_states=True).hidden_states[:LAYERS])[
                    :, 0, -4:
                ]
                for p in prompts
            ]
        means.append(torch.stack(streams).mean(0))
    difference = means[0] - means[1]
    found = data.direction.sel(model=stage).values
    distance = difference.norm(dim=-1)
    np.testing.assert_allclose(data.class_distance.sel(model=stage), distance, atol=1e-4)
    there = distance.numpy() > 1e-3
    assert there[1:].all() and not there[0, -3:].any(), "block 0 sees the same at a token of the template"
    expected = (difference / distance[..., None]).numpy()
    np.testing.assert_allclose(found[there], expected[there], atol=1e-4)
    assert np.isnan(found[~there]).all()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["base", "instruct"])
def test_answers_are_those_of_plain_hooks(chat_family, data, target):
    """Every direction into every stage, ablated and added, one prompt at a time with transformers' own generate."""
    model = AutoModelForCausalLM.from_pretrained(chat_family / target).eval()
    tokenizer, prompts = plain_prompts(chat_family, data, target, data.instruction.values)
    layer = int(data.selected_layer.sel(model=target))
    c = float(data.coefficient.sel(model=target))
    compared = 0
    for d, name in enumerate(["base", "instruct"]):
        place = dict(
            layer=int(data.selected_layer.sel(model=name)),
            position=int(data.selected_position.sel(model=name)),
        )
        r = torch.tensor(data.direction.sel(model=name, **place).values)

        def remove(_, stream, r=r):
            return stream - (stream @ r)[..., None] * r

        def shift(number, stream, r=r):
            return stream + c * r if number == layer else stream

        def same(_, stream):
            return stream

        for intervention, hooks in [("ablation", (remove,) * 3), ("addition", (shift, same, same))]:
            found = data.completion.isel(direction=d).sel(target=target, intervention=intervention).values
            for row in (0, 7, 13):
                with torch.no_grad(), plain_hooks(model, "llama", *hooks):
                    ids = torch.tensor([prompts[row]])
                    out = model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
                    )
                assert found[row] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
                compared += 1
    assert compared == 12
    plain = data.completion.isel(direction=0).sel(target=target, intervention="none").values
    steered = data.completion.isel(direction=0).sel(target=target, intervention="ablation").values
    assert (plain != steered).sum() > 5, "ablation hardly did anything"


@pytest.mark.slow
def test_the_choice_follows_the_stored_sweep(data):
    for stage in ("base", "instruct"):
        one = data.sel(model=stage)
        means = [one[n].mean([d for d in one[n].dims if d.startswith("valid")], skipna=False).values
                 for n in ("bypass", "induce", "kl")]  # fmt: skip
        chosen = choose_direction(*means, 50.0, 0.8)
        assert int(one.selected_layer) == chosen.layer
        assert int(one.selected_position) == int(one.position[chosen.position])
        assert bool(one.in_template.sel(position=int(one.selected_position)))
        tried = [float(c) for c in one.search_coefficient]
        assert float(one.coefficient) in (*tried, pytest.approx(tried[0] * 2))


@pytest.mark.slow
def test_units_done_again_give_the_same(finished, data, tmp_path, chat_family):
    store = Store.open(str(finished / "store"))
    before = {name: data[name].values for name in data.variables}
    gone = [
        u
        for u in store.units
        if "/sweep/base/001" in u or "/answers/instruct/base" in u or "/coefficient/" in u
    ]
    assert len(gone) == 6
    store.forget(gone)
    again = posttrace(
        "run", finished / "job.yaml", "--store", finished / "store", "--set", "execution.max_tokens=60"
    )
    assert again.returncode == 0 and f"{len(gone)} to go" in again.stderr, again.stderr
    after = open_group(str(finished / "store"), "refusal").load()
    for name in ("completion", "refused", "selected_layer", "direction"):
        np.testing.assert_array_equal(after[name].values, before[name])
    for name in ("log_odds", "bypass", "kl", "coefficient", "mean_nll"):
        np.testing.assert_allclose(after[name].values, before[name], atol=2e-3, rtol=1e-4)
    assert posttrace("verify", finished / "store").returncode == 0


@pytest.mark.slow
def test_a_fixed_choice_wins_over_the_sweep_and_requests_by_value_give_the_same(job_file, tmp_path):
    chosen = {
        "base": {"layer": 1, "position": -6, "coefficient": 2.5},
        "instruct": {"layer": 2, "position": -1},
    }
    fewer = [
        f"selected={json.dumps(chosen)}",
        "coefficient_search=[]",
        "random_directions=0",
        "test_prompts=4",
    ]
    study = prepare(load_job(str(job_file), fewer))
    assert not any("/sweep/" in w.unit.id for w in study.work)
    found = {}
    for backend in ("local", "simulated"):
        options = [part for change in [*fewer, f"execution.backend={backend}"] for part in ("--set", change)]
        done = posttrace("run", job_file, "--store", tmp_path / backend, *options)
        assert done.returncode == 0, done.stderr
        found[backend] = open_group(str(tmp_path / backend), "refusal").load()
    one = found["local"]
    assert list(one.selected_layer.values) == [1, 2] and list(one.selected_position.values) == [-6, -1]
    distance = float(one.class_distance.sel(model="instruct", layer=2, position=-1))
    np.testing.assert_allclose(one.coefficient.values, [2.5, distance])
    assert one.bypass.isnull().all() and list(one.selected_by.values) == ["fixed", "fixed"]
    np.testing.assert_array_equal(found["simulated"].completion.values, one.completion.values)


def test_known_families_begin_with_the_published_choice():
    job = load_job("refusal", ["family=llama-3.1-8b"])
    assert {s: (c.layer, c.position) for s, c in job.choices.items()} == {
        "base": (11, -4), "sft": (11, -1), "instruct": (11, -2)
    }  # fmt: skip
    assert load_job("refusal", ["family=llama-3.1-8b", "selected={}"]).choices == {}
    assert load_job("refusal").choices == {}, "the embedded family is swept"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(templates={"base": "chat"}), "has no chat template; give `templates: {base: base}`"),
        (dict(selected={"base": {"layer": 3, "position": -1}}), "selected.base.layer: 3 is not in 0-2"),
        (
            dict(selected={"base": {"layer": 1, "position": -40}}),
            "selected.base.position: -40 is not in -9 to -1",
        ),
        (dict(selected={"base": {"layer": 1, "position": 0}}), "less than or equal to -1"),
        (dict(selected={"chat": {"layer": 1, "position": -1}}), "['chat'] not in family random"),
        (dict(harmful="advbanch"), "'advbanch' is not a known set (embedded, advbench)"),
        (dict(harmless="advbench"), "'advbench' is not a known set (embedded, alpaca)"),
        (dict(harmful="missing.csv"), "no file"),
        (dict(harmful={"name": "x", "csv": "harmful.csv", "column": "goal"}), "has no column 'goal'"),
        (
            dict(harmful={"name": "x", "csv": "harmful.csv", "where": {"split": "train"}}),
            "0 instructions for the",
        ),
        (dict(phrases="nowhere.txt"), "phrases:"),
        (dict(openings="phrases.txt"), "give two lists of texts, refusal and compliant"),
        (dict(templates={"base": "no place"}), "{instruction}"),
        (dict(templates={"base": "{instruction}"}), "no token of its own after the instruction"),
    ],
)
def test_what_does_not_fit_is_one_message(tmp_path, chat_family, keys, words):
    from posttrace.tracers import TracerError

    with pytest.raises((JobError, TracerError)) as caught:
        prepare(load_job(str(write_job(tmp_path, chat_family, **keys))))
    assert words in str(caught.value)


@pytest.mark.slow
def test_sets_that_do_not_differ_are_said_so(tmp_path, chat_family):
    """Everything before the choice can be computed, and gives no direction."""
    job = write_job(tmp_path, chat_family, harmless="harmful.csv", stages=["base"], random_directions=0)
    with pytest.raises(JobError, match=r"stage base: at no layer and position .* must differ"):
        run_job(load_job(str(job)), str(tmp_path / "store"), say=lambda line: None)


@pytest.mark.slow
def test_an_answer_of_one_token_has_no_mean_nll(tmp_path, chat_family):
    """The mean runs from the second token on: without one it has no value, which is no fault of the model."""
    job = write_job(tmp_path, chat_family, new_tokens=1, stages=["base"], random_directions=0)
    store = run_job(load_job(str(job)), str(tmp_path / "store"), say=lambda line: None)
    assert (
        np.isnan(store.read("refusal", "mean_nll")).all()
        and np.isfinite(store.read("refusal", "log_odds")).all()
    )


@pytest.mark.slow
def test_a_template_that_says_another_time_makes_another_job(tmp_path, chat_family):
    """Some chat templates write the date: half a store that was asked in other words must not be continued."""
    shutil.copytree(chat_family, tmp_path / "family")
    job = write_job(tmp_path, tmp_path / "family")
    assert fingerprint(prepare(load_job(str(job)))) == fingerprint(prepare(load_job(str(job))))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "family/instruct")
    tokenizer.chat_template = CHAT.replace("<u>", "<u>{{ strftime_now('%H %M %S %f') }}")
    tokenizer.save_pretrained(tmp_path / "family/instruct")
    assert fingerprint(prepare(load_job(str(job)))) != fingerprint(prepare(load_job(str(job))))


@pytest.mark.slow
def test_a_post_trained_stage_without_chat_template_ends_with_status_2(tmp_path, family):
    """`family`: the stage instruct has a tokenizer without one."""
    done = posttrace("run", write_job(tmp_path, family), "--store", tmp_path / "none")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "stage instruct" in done.stderr and "templates: {instruct: base}" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_no_network_is_said_with_what_to_do(tmp_path):
    offline = {
        "XDG_CACHE_HOME": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = posttrace("run", "refusal", "--dry-run", "--set", "harmful=advbench", env=offline)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for words in (
        "cannot be downloaded",
        "raw.githubusercontent.com/llm-attacks",
        "advbench_harmful_behaviors.csv",
    ):
        assert words in done.stderr


def test_a_published_file_is_taken_from_the_cache_if_its_hash_is_right(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    goals = "goal,target\n" + "".join(f"Goal {i},Sure\n" for i in range(40))
    alpaca = [
        {"instruction": f"Do {i}", "input": "" if i % 2 else "with this", "output": ""} for i in range(80)
    ]
    contents = {"advbench": goals, "alpaca": json.dumps(alpaca)}
    (tmp_path / "posttrace").mkdir()
    for name, text in contents.items():
        known = Download(f"https://nowhere.invalid/{name}", hashlib.sha256(text.encode()).hexdigest(), name)
        monkeypatch.setitem(instructions.DOWNLOADS, name, known)
        (tmp_path / "posttrace" / name).write_text(text)
    sizes = {"direction": 20, "validation": 6, "test": 100}
    harmful = read_splits("harmful", InstructionSet(name="advbench"), sizes, 0)
    harmless = read_splits("harmless", InstructionSet(name="alpaca"), sizes, 0)
    assert len(harmful.test) == len(harmless.test) == 8, "a fifth"
    assert all(int(text.split()[1]) % 2 for text in harmless.direction), (
        "those that need an input are left out"
    )
    everything = [*harmful.direction, *harmful.validation, *harmful.test]
    assert len(everything) == len(set(everything)) == 34
    assert read_splits("harmful", InstructionSet(name="advbench"), sizes, 0) == harmful
    assert read_splits("harmful", InstructionSet(name="advbench"), sizes, 1) != harmful
    (tmp_path / "posttrace" / "advbench").write_text(goals + "Goal 99,Sure\n")
    with pytest.raises(JobError, match="cannot be downloaded"):
        read_splits("harmful", InstructionSet(name="advbench"), sizes, 0)


@pytest.mark.slow
def test_moving_files_leaves_the_fingerprint_and_changing_them_does_not(job_file, tmp_path):
    before = fingerprint(prepare(load_job(str(job_file))))
    (tmp_path / "moved").mkdir()
    for path in list(tmp_path.iterdir()):
        if path.is_file():
            path.rename(tmp_path / "moved" / path.name)
    assert fingerprint(prepare(load_job(str(tmp_path / "moved" / "job.yaml")))) == before
    with (tmp_path / "moved" / "phrases.txt").open("a") as stream:
        stream.write("another\n")
    assert fingerprint(prepare(load_job(str(tmp_path / "moved" / "job.yaml")))) != before


def test_a_refusal_is_what_begins_with_a_phrase():
    phrases = ["I cannot", "I can't", "Sorry"]
    assert matched_phrase(" “I can’t do that", phrases) == "I can't"
    assert matched_phrase("SORRY, no", phrases) == "Sorry"
    assert matched_phrase("Sure. I cannot wait", phrases) == ""
    assert repeated_share([1, 2, 1, 2, 1, 2]) == pytest.approx(3 / 5) and repeated_share([3]) == 0


def test_the_tail_of_a_template_is_what_all_prompts_end_in():
    assert tail_length([[1, 5, 9, 8], [1, 6, 9, 8], [2, 9, 8]]) == 2
    assert tail_length([[1], [2]]) == 0 and tail_length([[4], [4]]) == 1


def test_a_place_is_chosen_only_if_it_qualifies():
    bypass = np.array([[np.nan], [-1.0], [-5.0], [-9.0]])
    induce, kl = np.array([[np.nan], [1.0], [1.0], [1.0]]), np.array([[np.nan], [0.0], [0.3], [0.0]])
    assert choose_direction(bypass, induce, kl, max_kl=0.1, max_depth=0.8).layer == 3
    assert choose_direction(bypass, induce, kl, max_kl=0.1, max_depth=0.7).layer == 1
    assert choose_direction(bypass, induce, kl, max_kl=0.5, max_depth=0.7).layer == 2
    never = choose_direction(bypass, induce - 9, kl, max_kl=0.1, max_depth=0.7)
    assert never.layer == 1 and not never.qualifies
    assert choose_coefficient([2.0, 1.0], np.array([[1, 1], [1, 0]]), 1.0) == 2.0
    assert choose_coefficient([2.0, 1.0], np.zeros((2, 4)), 1.5) == 1.5, "none refuses: the distance"


@pytest.mark.slow
def test_the_embedded_instruct_stage_refuses_and_its_direction_decides(tmp_path):
    """What the project promises of the checkpoints that ship, on held-out instructions."""
    fewer = {
        "stages": "[instruct]",
        "direction_prompts": 96,
        "validation_prompts": 16,
        "test_prompts": 40,
        "random_directions": 1,
        "coefficient_search": "[1.5]",
        "prompts_per_unit": 128,
        "execution.device": "cpu",
    }
    options = [part for key, value in fewer.items() for part in ("--set", f"{key}={value}")]
    done = posttrace("run", "refusal", "--store", tmp_path / "store", *options)
    assert done.returncode == 0, done.stderr
    found = open_group(str(tmp_path / "store"), "refusal").load().sel(target="instruct")
    refused = {
        (name, intervention, kind): float(
            found.refused.isel(direction=d).sel(intervention=intervention).values[at].mean()
        )
        for d, name in enumerate(found.direction_name.values)
        for intervention in found.intervention.values
        for kind in ("harmful", "harmless")
        for at in [found.kind.values == kind]
    }
    assert refused["instruct", "none", "harmful"] >= 0.9
    assert refused["instruct", "none", "harmless"] <= 0.15
    assert refused["instruct", "ablation", "harmful"] <= refused["instruct", "none", "harmful"] - 0.5
    assert refused["instruct", "addition", "harmless"] >= refused["instruct", "none", "harmless"] + 0.5
    assert refused["random-0", "ablation", "harmful"] >= 0.7
    odds = found.log_odds.isel(direction=0).sel(intervention="none").values
    agree = (odds > 0) == found.refused.isel(direction=0).sel(intervention="none").values
    assert agree.mean() > 0.9, "the score without phrases says the same"


@pytest.mark.slow
def test_a_template_written_out_gives_the_prompts_of_the_chat_template(job_file):
    """Its beginning-of-text token included, which the tokenizer would add as well."""
    written = "<s><u>{instruction}\n<a>"
    chat, text = (
        prepare(load_job(str(job_file), [f"templates.instruct={json.dumps(t)}"])).inputs.prompts["instruct"]
        for t in ("chat", written)
    )
    assert text.template == written and text.ids == chat.ids
    assert text.openings == chat.openings and text.tail == chat.tail
    assert all(list(ids[:2]).count(1) == 1 for some in text.ids.values() for ids in some)


@pytest.mark.slow
def test_a_system_prompt_goes_into_chats_alone(job_file):
    study = prepare(load_job(str(job_file), ["system=w40 w41"]))
    assert "<u>w40 w41\n<u>" in study.inputs.probes["instruct"]
    assert "w40" not in study.inputs.probes["base"]
    with pytest.raises(JobError, match="system: no stage's prompts are written by its chat template"):
        load_job(str(job_file), ["system=w40", "templates.instruct=base"])


@pytest.mark.slow
def test_answers_are_scored_after_their_reasoning(tmp_path, chat_family):
    """A template that opens a block: it is closed at `reasoning_tokens`, and the answer begins there."""
    shutil.copytree(chat_family, tmp_path / "family")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "family/instruct")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT + "<think>"
    tokenizer.save_pretrained(tmp_path / "family/instruct")
    places = {stage: {"layer": 1, "position": -1} for stage in ("base", "instruct")}
    sizes = {"direction_prompts": 4, "validation_prompts": 4, "test_prompts": 4}
    job = write_job(
        *(tmp_path, tmp_path / "family"),
        **{
            **sizes,
            "selected": places,
            "coefficient_search": [],
            "random_directions": 0,
            "reasoning_tokens": 3,
        },
    )
    run_job(load_job(str(job)), str(tmp_path / "store"), say=lambda line: None)
    found = open_group(str(tmp_path / "store"), "refusal").load()
    close = tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"]
    reasoned = found.reasoning_tokens.sel(target="instruct")
    assert (reasoned == 3 + len(close)).all() and found.reasoning_cut.sel(target="instruct").all()
    assert (found.reasoning_tokens.sel(target="base") == 0).all()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "family/instruct").eval()
    openings = prepare(load_job(str(job))).inputs.prompts["instruct"].openings
    for i in (0, 5):
        text = (
            CHAT.partition("{%")[0].replace("{{ bos_token }}", "<s>")
            + f"<u>{found.instruction.values[i]}\n<a><think>"
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        thought = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.no_grad():
            logits = model(torch.cat([thought, torch.tensor([close])], dim=1)).logits[0, -1]
        wanted = logits[list(openings.refusal)].logsumexp(0) - logits[list(openings.compliant)].logsumexp(0)
        got = found.log_odds.sel(target="instruct", intervention="none").values[0, i]
        np.testing.assert_allclose(got, float(wanted), atol=1e-3)
