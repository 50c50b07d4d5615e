"""The study confidence end to end on random checkpoints, by the real command line."""

import math

import numpy as np
import pytest
import torch
import yaml

from posttrace.figures import render
from posttrace.figures.measures.entropy_neurons import candidates
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.studies.confidence.job import Text
from posttrace.pipeline.studies.confidence.text import read_documents
from posttrace.pipeline.text_pieces import cut
from posttrace.stores import FingerprintMismatch, Store, open_group
from posttrace.tracers.engines.neuron_ablation import ablate_neurons
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import open_model
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.prompts import encode
from tests.support.commands import posttrace
from tests.support.jobs import WORDS, write_csv
from tests.support.models import random_module, word_tokenizer

DOCUMENTS = [
    "w1 w2 of w3. The city of w4 is in w5.",
    "w6 is w7.\nw8 is w9 w10.",
    "The statement is w11: w12 w13.",
]


def write_job(folder, checkpoints, statements, **changes):
    write_csv(folder / "cities.csv", statements)
    (folder / "text.txt").write_text("\n\n".join(DOCUMENTS))
    job = {
        "study": "confidence",
        "family": {"name": "random", "stages": {s: str(checkpoints / s) for s in ("base", "instruct")}},
        "candidates": 3,
        "text": {"file": "text.txt", "documents": 3, "tokens": 12, "per_unit": 1},
        "sets": [{"name": "cities", "csv": "cities.csv"}],
        "max_statements": 20,
        "statements_per_unit": 12,
        "execution": {"device": "cpu"},
    }
    job.update(changes)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture(scope="module")
def finished(shared, family, statements):
    def make(folder):
        done = posttrace("run", write_job(folder, family, statements), "--store", folder / "store")
        assert done.returncode == 0, done.stderr

    return shared("confidence", make)


def run(job, store, *overrides):
    """In this process: (what is said)."""
    said = []
    run_job(load_job(str(job), overrides), str(store), say=said.append)
    return " ".join(said)


@pytest.fixture
def job_file(tmp_path, family, statements):
    return write_job(tmp_path, family, statements)


@pytest.mark.slow
def test_what_readers_rely_on(finished):
    data = open_group(str(finished / "store"), "confidence").load()
    assert data.weight_norm.dims == data.logit_var.dims == ("model", "neuron")
    assert data.candidate.dims == ("model", "rank")
    assert list(data.model.values) == ["base", "instruct"] and data.sizes["neuron"] == 64
    for stage in ("base", "instruct"):
        one = data.sel(model=stage)
        expected = candidates(one.weight_norm.values, one.logit_var.values, 0.25, 3)
        assert list(one.candidate.values) == list(expected)
        longest = np.sort(one.weight_norm.values)[::-1][:16]
        assert (one.weight_norm.values[one.candidate.values] >= longest[-1]).all()
        assert (np.diff(one.logit_var.values[one.candidate.values]) >= 0).all()


@pytest.mark.slow
def test_norms_are_those_of_the_loaded_model(finished, family):
    module = open_model(str(family / "instruct"), device="cpu").nn._module
    expected = module.model.layers[-1].mlp.down_proj.weight.detach().norm(dim=0)
    data = open_group(str(finished / "store"), "confidence").load()
    np.testing.assert_allclose(data.weight_norm.sel(model="instruct"), expected, rtol=1e-6)


@pytest.mark.slow
def test_what_is_ablated_and_what_comes_of_it(finished, family):
    data = open_group(str(finished / "store"), "confidence/text").load()
    chosen = open_group(str(finished / "store"), "confidence").load().candidate
    kinds = [str(kind) for kind in data.kind.values]
    assert kinds == ["candidates"] + ["candidate"] * 3 + ["random_set"] * 50 + ["random_neuron"] * 50
    for stage in ("base", "instruct"):
        ablated = data.ablated.sel(model=stage).values
        mine = set(chosen.sel(model=stage).values.tolist())
        assert set(ablated[0].tolist()) == mine
        assert [row[0] for row in ablated[1:4].tolist()] == chosen.sel(model=stage).values.tolist()
        random = ablated[4:]
        assert not mine & set(random[random >= 0].tolist()), "a control is no candidate"
        assert all(len(set(row.tolist())) == 3 for row in ablated[4:54])
        assert len(set(ablated[54:, 0].tolist())) == 50
    model = open_model(str(family / "base"), device="cpu")
    neurons = find_neurons(model.nn._module)
    found = ablate_neurons(
        model,
        [encode(model.tokenizer, "", str(text)).ids[:12] for text in data.document_text.values],
        neurons=neurons,
        mean=torch.from_numpy(data.activation_mean.sel(model="base").values.copy()),
        ablations=[chosen.sel(model="base").values.tolist()],
    )
    for name in ("entropy_total", "entropy_direct", "loss_total", "loss_direct"):
        stored = data[name].sel(model="base").values[:1]
        np.testing.assert_allclose(stored, getattr(found, name), atol=1e-5)
    assert np.abs(data.entropy_total - data.entropy).max() > 1e-4, "ablation does something to random weights"


@pytest.mark.slow
def test_a_share_of_the_effects_was_computed_again(finished):
    records = Store.open(finished / "store").records()
    checked = [r for unit, r in records.items() if "/ablation/" in unit]
    assert checked and all(r["checked_cells"] >= 1 and r["largest_difference"] < 1e-4 for r in checked)


@pytest.mark.slow
def test_figures_and_tables_of_a_finished_run(finished, tmp_path):
    drawn = [
        path.relative_to(tmp_path / "out") for path in render(finished / "store", tmp_path / "out", page=True)
    ]
    tables = {path.stem for path in drawn if path.suffix == ".tex"}
    assert tables == {f"confidence_{t}" for t in
                      ("overlap", "sensitivity", "candidates", "ablation", "calibration", "stages")}  # fmt: skip
    pictures = {str(path) for path in drawn if path.suffix == ".png"}
    assert pictures == {
        "confidence/neurons/scatter_base_instruct.png",
        "confidence/text/changes.png",
        "confidence/answers/reliability.png",
    }
    again = render(finished / "store", tmp_path / "again", only="confidence/changes")
    for path in again:
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "again")).read_bytes()


def test_the_job_that_ships_fits_the_family_that_ships():
    study = prepare(load_job("confidence"))
    assert {group.path for group in study.groups} >= {
        "confidence",
        "confidence/text",
        "confidence/cities_held_out",
    }
    assert [len(rows) for rows in study.inputs.rows.values()] == [96] * 3
    held_out = study.inputs.asked["confidence/cities_held_out"]
    assert len(held_out.statements) == 56 and all(len(p.prefix) for p in held_out.prompts["base"])


@pytest.mark.slow
def test_answers_are_stored_for_every_statement(finished):
    data = open_group(str(finished / "store"), "confidence/cities").load()
    assert data.sizes == {"model": 2, "statement": 20}
    assert np.isfinite(data.logit_diff.values).all() and set(data.label.values.tolist()) == {True, False}
    assert ((data.answer_mass > 0) & (data.answer_mass <= 1)).all()
    assert all(str(p).endswith(f"{t} This statement is:") for p, t in
               zip(data.prompt.values, data.statement_text.values, strict=True))  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_cut(finished, tmp_path, family, statements):
    """Units of every kind, forgotten and done again, come out the same: nothing hangs on what ran before."""
    again = write_job(tmp_path, family, statements)
    run(again, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    gone = [
        u for u in store.units if u.endswith(("weights/instruct", "chosen/base", "means/base", "base/0001"))
    ]
    gone += [u for u in store.units if "answers/instruct/0012" in u]
    assert len(gone) == 5
    store.forget(gone)
    assert "5 to go" in run(again, tmp_path / "store")
    for path in ("confidence", "confidence/text", "confidence/cities"):
        one, two = (open_group(str(f / "store"), path).load() for f in (finished, tmp_path))
        for name in one.data_vars:
            np.testing.assert_allclose(one[name].values, two[name].values, rtol=1e-6, atol=1e-7)


def test_weights_alone_need_neither_model_nor_tokenizer(tmp_path, family, statements):
    """A checkpoint of which only three tensors and config.json are there."""
    from safetensors.torch import load_file, save_file

    stages = {}
    for stage in ("base", "instruct"):
        folder = tmp_path / stage
        folder.mkdir()
        weights = load_file(family / stage / "model.safetensors")
        names = ("lm_head.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight")
        save_file({name: weights[name] for name in names}, folder / "model.safetensors")
        (folder / "config.json").write_text((family / stage / "config.json").read_text())
        stages[stage] = str(folder)
    job = write_job(
        tmp_path, family, statements, family={"name": "x", "stages": stages}, text=None, sets=[], layer=1
    )
    run(job, tmp_path / "store")
    data = open_group(str(tmp_path / "store"), "confidence").load()
    assert data.attrs["layer"] == 1 and np.isfinite(data.logit_var.values).all()
    assert list(Store.open(tmp_path / "store").groups) == ["confidence"]


@pytest.mark.slow
def test_where_the_text_lies_does_not_matter_but_what_it_says(finished, tmp_path, family, statements):
    job = write_job(tmp_path, family, statements)
    assert "0 to go" in run(job, finished / "store")
    (tmp_path / "text.txt").write_text("\n\n".join([*DOCUMENTS[:2], "w90 w91 w92 w93."]))
    with pytest.raises(FingerprintMismatch):
        run(job, finished / "store")


def refused(job_file, *overrides):
    """What a user is told when the job is planned (the command line prints it and exits with 2)."""
    with pytest.raises((JobError, TracerError)) as caught:
        prepare(load_job(str(job_file), overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds 0 documents"),
        (b"w1 \xff\xfe w2", "is not UTF-8 text (byte 3)"),
        (b"w1", "holds 1 documents"),
    ],
)
def test_text_that_is_none(job_file, content, words):
    (job_file.parent / "text.txt").write_bytes(content)
    assert words in refused(job_file)


def test_mistakes_in_a_job(job_file, family, tmp_path):
    assert f"no file {tmp_path / 'gone.txt'}" in refused(job_file, f"text.file={tmp_path / 'gone.txt'}")
    assert "layer: 9 is not in 0-2" in refused(job_file, "layer=9")
    assert "layer: Input should be greater than or equal to 0 (it is -1)" in refused(job_file, "layer=-1")
    assert "is more than the top 25% of 64 neurons" in refused(job_file, "candidates=17")
    assert "controls: 70 is not in 50-61" in refused(job_file, "controls=70")
    assert "controls" in refused(job_file, "controls=10")
    assert "cannot be called 'text'" in refused(job_file, "sets=[{name: text, csv: cities.csv}]")


def test_stages_of_different_size(job_file, family, tmp_path, statements):
    random_module("gpt2").save_pretrained(tmp_path / "other")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "other")
    stages = {"base": str(family / "base"), "other": str(tmp_path / "other")}
    job = write_job(tmp_path, family, statements, family={"name": "x", "stages": stages})
    assert "differ in n_neurons ({'base': 64, 'other': 128})" in refused(job)


@pytest.mark.slow
def test_pickled_stages_are_refused(tmp_path, family, statements):
    module = random_module("llama")
    module.config.save_pretrained(tmp_path / "pickled")
    torch.save(module.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    stages = {"base": str(tmp_path / "pickled")}
    job = write_job(tmp_path, family, statements, family={"name": "x", "stages": stages}, text=None, sets=[])
    done = posttrace("run", job, "--store", tmp_path / "none")
    assert done.returncode == 2 and "are pickled" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists(), "noticed before anything is begun"


def test_embedded_documents_are_a_draw_of_their_own():
    one, two = (read_documents(Text(documents=20), seed) for seed in (0, 1))
    assert len(set(one)) > 15 and not set(one) & set(two)
    assert read_documents(Text(documents=5), 0) == one[:5]


def test_a_file_is_cut_at_words_and_lines(tmp_path):
    text = " ".join(f"w{i}" for i in range(300))
    pieces = list(cut(text, 40))
    assert " ".join(pieces) == text and all(len(piece) <= 40 for piece in pieces)
    assert math.ceil(len(text) / 40) <= len(pieces) < len(text) / 30
    assert list(cut("x" * 95, 40)) == ["x" * 40, "x" * 40, "x" * 15]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_documents(Text(file=str(tmp_path / "bom.txt"), documents=2, tokens=10), 0) == pieces[:2]
    with pytest.raises(JobError, match="is no regular file but a folder"):
        read_documents(Text(file=str(tmp_path)), 0)
