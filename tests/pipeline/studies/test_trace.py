"""A free-form job: what it stores is what the plain models give, and its mistakes are said in one line."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.figures import render
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import fingerprint, prepare
from posttrace.pipeline.run import run_job
from posttrace.stores import Store, open_group, verify
from tests.support.commands import posttrace
from tests.support.jobs import WORDS, write_csv
from tests.support.models import random_module, word_tokenizer

PROMPTS = [
    {"prompt": "The city of w1 w2 is in", "source": "The city of w3 w4 is in"},
    {"prompt": "w5 is", "source": "w6 is"},
]


@pytest.fixture
def trace_job(tmp_path, family):
    np.save(tmp_path / "up.npy", np.random.default_rng(0).normal(size=(3, 32)).astype("float32"))

    def write(**changes):
        job = {
            "study": "trace",
            "family": {"name": "random", "stages": {s: str(family / s) for s in ("base", "instruct")}},
            "prompts": PROMPTS,
            "directions": {"up": {"file": "up.npy"}},
            "operations": [
                {"op": "patch", "site": "resid_post", "layers": [0], "tokens": "statement", "source": "base"},
                {"op": "steer", "layers": [1, 2], "tokens": [-1], "direction": "up", "coefficient": 2.0},
                {"op": "read", "site": "resid_post", "layers": "all", "tokens": "statement"},
            ],
            "prompts_per_unit": 1,
            "execution": {"device": "cpu"},
            **changes,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


def by_hand(folder, source_folder, vectors, prompt):
    """The stream after every block and the next token's log probabilities, by hooks on the plain model."""
    streams = {}

    def hooks(model, edit):
        def keep(i):
            def hook(_, inputs, out):
                streams[i] = edit(i, out.clone())
                return streams[i]

            return hook

        return [block.register_forward_hook(keep(i)) for i, block in enumerate(model.model.layers)]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(source_folder, dtype=torch.float32)
        hooks(model, lambda i, out: out)
        model(**tokenizer(prompt["source"], return_tensors="pt"))
        source = streams[0][0, 1:].clone()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        def edit(i, out):
            if i == 0:
                out[0, 1:] = source
            else:
                out[0, -1] += 2.0 * vectors[i]
            return out

        hooks(model, edit)
        logits = model(**tokenizer(prompt["prompt"], return_tensors="pt")).logits[0, -1]
    return torch.stack([streams[i][0, 1:] for i in range(3)]), logits.log_softmax(-1)


@pytest.mark.slow
def test_patch_steer_and_read_together_equal_plain_hooks(tmp_path, trace_job, family):
    url = tmp_path / "store"
    operations = [
        {"op": "patch", "site": "resid_post", "layers": [0], "tokens": "statement", "source": "base"},
        {"op": "steer", "layers": [1, 2], "tokens": [-1], "direction": "up", "coefficient": 2.0},
        {"op": "read", "site": "resid_post", "layers": "all", "tokens": "statement"},
        {"op": "lens", "layers": [0, 2], "tokens": "statement", "top": 4},
    ]
    run_job(load_job(str(trace_job(operations=operations))), str(url), say=lambda line: None)
    output, read, lens = (open_group(url, f"trace/{name}") for name in ("output", "read-0", "lens-0"))
    vectors = torch.from_numpy(np.load(tmp_path / "up.npy"))
    for stage in ("base", "instruct"):
        for p, prompt in enumerate(PROMPTS):
            streams, logprob = by_hand(family / stage, family / "base", vectors, prompt)
            got = read.activation.sel(model=stage, intervention="all").isel(prompt=p).values
            n = streams.shape[1]
            np.testing.assert_allclose(got[:, :n], streams, rtol=1e-4, atol=1e-4)
            assert np.isnan(got[:, n:]).all()
            along = read.projection.sel(model=stage, intervention="all", direction="up").isel(prompt=p).values
            units = vectors / vectors.norm(dim=-1, keepdim=True)
            np.testing.assert_allclose(along[:, :n], (streams * units[:, None]).sum(-1), rtol=1e-3, atol=1e-4)
            assert np.isnan(along[:, n:]).all()
            # after the last block, the lens says what the model does
            seen = lens.sel(model=stage, intervention="all", layer=2).isel(prompt=p)
            np.testing.assert_allclose(seen.lens_logprob[n - 1], logprob.topk(4).values, rtol=1e-4, atol=1e-4)
            assert seen.lens_token_id[n - 1].values.tolist() == logprob.topk(4).indices.tolist()
            assert (
                np.isnan(seen.lens_logprob.values[n:]).all() and not (seen.lens_token.values[n:] != "").any()
            )
            one = output.sel(model=stage, intervention="all").isel(prompt=p)
            best = logprob.topk(10)
            np.testing.assert_allclose(one.logprob.values, best.values, rtol=1e-4, atol=1e-4)
            words = AutoTokenizer.from_pretrained(family / stage)
            assert list(one.next_token.values) == [words.decode([i]) for i in best.indices.tolist()]
    unedited = output.sel(intervention="none").logprob.values
    assert np.abs(unedited - output.sel(intervention="all").logprob.values).max() > 0.1
    texts = read.token_text.values
    assert [t.strip() for t in texts[1]] == ["w5", "is", "", "", "", "", ""]
    assert verify(url) == []


@pytest.mark.slow
def test_a_rerun_does_nothing_and_a_forgotten_unit_comes_back_the_same(tmp_path, trace_job):
    url = str(tmp_path / "store")
    job = load_job(str(trace_job()))
    store = run_job(job, url, say=lambda line: None)
    before = store.read("trace/read-0", "activation").tobytes()
    lines = []
    run_job(job, url, say=lines.append)
    assert "0 to go" in lines[0]
    store.forget(["trace/source-0/source/base/0001", "trace/read-0/read/instruct/0001"])
    run_job(job, url, say=lines.append)
    assert any("2 to go" in line for line in lines)
    assert Store.open(url).read("trace/read-0", "activation").tobytes() == before


def test_prompts_from_a_file_and_a_direction_from_another_store(tmp_path, trace_job):
    first = str(tmp_path / "first")
    run_job(load_job(str(trace_job(operations=[{"op": "read", "tokens": "last"}]))), first, say=print)
    write_csv(tmp_path / "prompts.csv", [("w1 is", ""), ("w2 of w3", "")], ("prompt", "source"))
    at = {"model": "instruct", "intervention": "none", "prompt": 0, "token": -1}
    path = trace_job(
        prompts={"csv": "prompts.csv"},
        directions={"up": {"store": first, "array": "trace/read-0/activation", "at": {**at, "layer": 2}}},
        operations=[{"op": "steer", "layers": [1], "tokens": "all", "direction": "up", "mode": "ablate"}],
    )
    study = prepare(load_job(str(path)))
    wanted = open_group(first, "trace/read-0").activation.sel({**at, "layer": 2}).values
    np.testing.assert_array_equal(study.inputs.vectors["up"], wanted)
    assert [p.prompt for p in study.job.prompts] == ["w1 is", "w2 of w3"]
    per_layer = trace_job(
        directions={"up": {"store": first, "array": "trace/read-0/activation", "at": at}},
    )
    assert prepare(load_job(str(per_layer))).inputs.vectors["up"].shape == (3, 32)


def test_where_a_direction_lies_does_not_matter_its_values_do(tmp_path, trace_job):
    one = fingerprint(prepare(load_job(str(trace_job()))))
    vector = np.load(tmp_path / "up.npy")
    np.save(tmp_path / "moved.npy", vector)
    assert fingerprint(prepare(load_job(str(trace_job(directions={"up": {"file": "moved.npy"}}))))) == one
    np.save(tmp_path / "moved.npy", vector * 2)
    assert fingerprint(prepare(load_job(str(trace_job(directions={"up": {"file": "moved.npy"}}))))) != one


@pytest.mark.slow
def test_generation_is_steered_at_every_token(tmp_path, trace_job, family):
    steer = {"op": "steer", "layers": [1, 2], "tokens": "all", "direction": "up", "coefficient": 3.0}
    url = str(tmp_path / "store")
    run_job(load_job(str(trace_job(operations=[steer], generate=5))), url, say=lambda line: None)
    got = open_group(url, "trace/completion").completion
    vectors = 3.0 * torch.from_numpy(np.load(tmp_path / "up.npy"))
    for stage in ("base", "instruct"):
        model = AutoModelForCausalLM.from_pretrained(family / stage, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(family / stage)
        for intervention, times in (("none", 0.0), ("all", 1.0)):
            hooks = [
                model.model.layers[i].register_forward_hook(
                    lambda _, inputs, out, v=times * vectors[i]: out + v
                )
                for i in (1, 2)
            ]
            for p, prompt in enumerate(PROMPTS):
                ids = tokenizer(prompt["prompt"], return_tensors="pt")
                out = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
                text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
                assert str(got.sel(model=stage, intervention=intervention).values[p]) == text
            for hook in hooks:
                hook.remove()
    render(url, tmp_path / "drawn", only=["trace/completions"])
    shown = pd.read_csv(tmp_path / "drawn/tables/trace_completions.csv", keep_default_na=False)
    read = shown.set_index(["model", "intervention", "prompt"]).completion
    for place in read.index:
        assert read[place] == str(got.sel(dict(zip(read.index.names, place, strict=True))).values)
    assert len(read) == 4 * len(PROMPTS)


@pytest.mark.slow
def test_patches_and_steers_at_some_tokens_act_in_the_prompt_alone(tmp_path, trace_job, family):
    operations = [
        {"op": "patch", "layers": [0], "tokens": [-2], "source": "base"},
        {"op": "steer", "layers": [1], "tokens": [-1], "direction": "up", "coefficient": 3.0},
        {"op": "steer", "layers": [2], "tokens": "all", "direction": "up", "coefficient": 2.0},
    ]
    url = str(tmp_path / "store")
    job = load_job(str(trace_job(operations=operations, generate=6, prompts_per_unit=2)))
    run_job(job, url, say=lambda line: None)
    got = open_group(url, "trace/completion")
    vectors = torch.from_numpy(np.load(tmp_path / "up.npy"))
    base = AutoModelForCausalLM.from_pretrained(family / "base", dtype=torch.float32)
    changed = 0
    for stage in ("base", "instruct"):
        model = AutoModelForCausalLM.from_pretrained(family / stage, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(family / stage)
        for p, prompt in enumerate(PROMPTS):
            ids = tokenizer(prompt["prompt"], return_tensors="pt")
            source = tokenizer(prompt["source"], return_tensors="pt")
            value = base(**source, output_hidden_states=True).hidden_states[1][0, -2].detach()

            def edit(i, out, value=value):
                out = out.clone()
                if i == 0 and out.shape[1] > 1:
                    out[0, -2] = value
                if i == 1 and out.shape[1] > 1:
                    out[0, -1] += 3.0 * vectors[1]
                return out + 2.0 * vectors[2] if i == 2 else out

            hooks = [
                block.register_forward_hook(lambda _, inputs, out, i=i, edit=edit: edit(i, out))
                for i, block in enumerate(model.model.layers)
            ]
            out = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            for hook in hooks:
                hook.remove()
            wanted = out[0, ids["input_ids"].shape[1] :].tolist()
            here = got.sel(model=stage).isel(prompt=p)
            found = [i for i in here.completion_id.sel(intervention="all").values if i >= 0]
            assert found == wanted
            changed += found != [i for i in here.completion_id.sel(intervention="none").values if i >= 0]
    assert changed == 4, "the operations change every answer, or the test says nothing"


@pytest.mark.slow
def test_ids_stand_next_to_texts(tmp_path, trace_job, family):
    url = str(tmp_path / "store")
    run_job(load_job(str(trace_job(generate=3))), url, say=lambda line: None)
    tokenizer = AutoTokenizer.from_pretrained(family / "base")
    output, read = open_group(url, "trace/output"), open_group(url, "trace/read-0")
    ids = output.next_token_id.values
    assert len(set(ids[0, 0, 0])) == 10, "ranks are different tokens"
    texts = np.vectorize(lambda i: tokenizer.decode([i]), otypes=[object])(ids)
    np.testing.assert_array_equal(texts, output.next_token.values.astype(object))
    assert read.token_id.values[1].tolist()[2:] == [-1] * 5
    assert tokenizer.convert_ids_to_tokens(read.token_id.values[1].tolist()[:2]) == ["w5", " is"]


@pytest.fixture
def chats(tmp_path):
    """A stage with a chat template, which writes its beginning-of-text token, what it is told and the date."""
    random_module("llama", 1).save_pretrained(tmp_path / "chat")
    tokenizer = word_tokenizer([*WORDS, "<", ">", "u", "a", "sys", "day", "26"])
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}"
        "{% if mood %} {{ mood }}{% endif %} {{ strftime_now('%d') }}{% if add_generation_prompt %} a{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    return {"name": "x", "stages": {"chat": str(tmp_path / "chat")}}


@pytest.mark.slow
def test_a_chat_is_what_the_stages_own_template_writes(trace_job, chats):
    plain = {"operations": [], "directions": {}, "family": chats, "date": "2024-07-26"}
    ask = {"role": "user", "content": "w1 is"}

    def prompt(messages, **keys):
        job = load_job(str(trace_job(**plain, prompts=[{"messages": messages}], **keys)))
        return prepare(job).inputs.prompts["chat"][0]

    one = prompt([ask], system="w9", chat_template_kwargs={"mood": "w7"})
    assert one.text == "<s>system w9 </s>user w1 is </s> w7 26 a"
    tokenizer = AutoTokenizer.from_pretrained(chats["stages"]["chat"])
    assert list(one.ids) == tokenizer(one.text, add_special_tokens=False)["input_ids"]
    assert one.ids[:2].count(tokenizer.bos_token_id) == 1 and one.start == 1
    assert (
        prompt([ask, {"role": "assistant", "content": "of w2"}]).text == "<s>user w1 is </s>assistant of w2"
    )


@pytest.mark.slow
def test_a_template_that_reads_the_clock_is_noted_and_can_be_pinned(trace_job, chats):
    def study(**keys):
        messages = [{"messages": [{"role": "user", "content": "w1"}]}]
        job = trace_job(operations=[], directions={}, family=chats, prompts=messages, **keys)
        return prepare(load_job(str(job)))

    assert "pin it with `date:" in next(study().notes())
    pinned = study(date="2024-07-26")
    assert not list(pinned.notes()) and " 26 a" in pinned.inputs.prompts["chat"][0].text
    assert fingerprint(pinned) != fingerprint(study(date="2024-07-27"))


@pytest.mark.slow
def test_an_answer_ends_where_only_the_template_or_the_generation_settings_say(tmp_path, trace_job, family):
    """Whatever the model says first ends its answer as soon as one of the three names it."""
    url = str(tmp_path / "first")
    plain = dict(
        operations=[], directions={}, prompts=["The city of w1 is in"], stages=["instruct"], generate=8
    )
    run_job(load_job(str(trace_job(**plain))), url, say=lambda line: None)
    said = [int(i) for i in open_group(url, "trace/completion").completion_id.values.ravel()]
    end = next(i for n, i in enumerate(said) if i not in said[:n] and n >= 2)
    for where in ("generation", "template"):
        folder = tmp_path / where
        shutil.copytree(family / "instruct", folder)
        if where == "generation":
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            token = tokenizer.convert_ids_to_tokens(end)
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
            tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + token + "{% endfor %}"
            tokenizer.save_pretrained(folder)
        stages = {"instruct": str(folder)}
        job = load_job(str(trace_job(**plain, family={"name": "x", "stages": stages})))
        run_job(job, str(tmp_path / f"{where}-store"), say=lambda line: None)
        got = open_group(str(tmp_path / f"{where}-store"), "trace/completion").completion_id.values.ravel()
        assert [i for i in got if i >= 0] == said[: said.index(end) + 1], where


def test_the_store_notes_of_every_unit_what_it_took(tmp_path, trace_job):
    run_job(load_job(str(trace_job())), str(tmp_path / "store"), say=lambda line: None)
    records = Store.open(str(tmp_path / "store")).records()
    assert records and all(
        record["cells"] > 0
        and record["forwards"] > 0
        and record["multiply_adds"] > 0
        and record["device"] == "cpu"
        for record in records.values()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": [{"op": "steer", "direction": "down"}]}, r"direction 'down' is none of \['up'\]"),
        ({"operations": [{"op": "patch", "source": "sft"}]}, r"source 'sft' is no stage of random"),
        ({"operations": [{"op": "read", "layers": [3]}]}, r"operations.0: layers: 3 is not in 0-2"),
        (
            {"operations": [{"op": "read", "tokens": [-9]}]},
            r"tokens \[-9\]: prompt 0 has 8 tokens .* -8 to 7",
        ),
        ({"operations": [{"op": "read", "tokens": [-1, 2]}]}, r"prompt 1 has 3 tokens .* each once"),
        ({"prompts": {"csv": "none.csv"}}, r"prompts: no file .*none.csv; edit prompts"),
        (
            {"directions": {"up": {"file": "none.npy"}}},
            r"directions.up: no file .*none.npy; edit directions.up.file",
        ),
        ({"directions": {"up": {"file": "up.npy", "store": "x"}}}, r"give either `file"),
        (
            {"prompts": [{"prompt": "w1 is", "source": "w1"}]},
            r"prompt 0: its source has 2 tokens for base, the prompt itself 3",
        ),
        ({"prompts": [{"source": "w1"}]}, r"give either `prompt: TEXT` or `messages"),
        (
            {"prompts": [{"messages": [{"role": "user", "content": "w1"}]}]},
            r"has no chat template to write mess",
        ),
        ({"system": "w1"}, r"system: no prompt is a chat; give `messages`"),
        ({"date": "26 Jul"}, r"date: '26 Jul' is no day; write YYYY-MM-DD"),
        ({"chat_template_kwargs": {"messages": []}}, r"messages: set by posttrace itself"),
        ({"study": "tracing"}, r"study: 'tracing' is none of knowledge, "),
    ],
)
def test_a_mistake_is_named(trace_job, changes, message):
    with pytest.raises(JobError, match=message):
        prepare(load_job(str(trace_job(**changes))))


@pytest.mark.slow
def test_the_built_in_job_runs_and_is_drawn(tmp_path):
    done = posttrace("run", "trace", "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = posttrace("figures", "store", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/tables/trace_next_tokens.md").read_text()
    lyon = [line.split("|")[2].split()[0] for line in table.splitlines() if line.startswith("| base")][:2]
    assert lyon == ["France", "Japan"], "the patched city's country is what comes next"


def test_a_lens_costs_a_read_and_its_unembedding(trace_job):
    where = {"site": "resid_post", "layers": [0, 2], "tokens": "statement"}
    operations = [{"op": "read", **where}, {"op": "lens", **where}]
    study = prepare(load_job(str(trace_job(operations=operations, directions={}))))
    costs = {(work.kind, work.stage, *work.unit.region["prompt"]): study.cost(work) for work in study.work}
    config = study.stages.configs["base"]
    for p, n in enumerate([7, 2]):
        lens, read = (costs[kind, "base", p, p + 1] for kind in ("lens", "read"))
        assert lens.forwards == read.forwards + 1 == 2
        assert lens.multiply_adds - read.multiply_adds == 2 * n * config.hidden_size * config.vocab_size
