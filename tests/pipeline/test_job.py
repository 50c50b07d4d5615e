"""What a job may say, and what a user reads when it says something else."""

import hashlib

import pytest
import yaml

from posttrace.pipeline.embedded import STAGES
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import built_in_jobs, load_job
from posttrace.pipeline.plan import declaration, fingerprint
from posttrace.pipeline.spec import datasets, families
from posttrace.tracers.operations import Read, canonical_hash
from tests.support.commands import posttrace
from tests.support.jobs import write_csv


def test_every_built_in_job_is_a_job():
    assert "knowledge" in built_in_jobs()
    for name in built_in_jobs():
        job = load_job(name)
        assert job.study and job.family.name in ("embedded", "embedded-narrow")
        assert {s.csv for s in getattr(job, "sets", ())} <= set(map(str, datasets().values()))


def test_the_knowledge_job_covers_all_sets_and_stages():
    job = load_job("knowledge")
    assert [s.name for s in job.sets] == [
        *("cities", "neg_cities", "larger_than", "smaller_than"),
        *("sp_en_trans", "neg_sp_en_trans", "tulu_extracted"),
    ]
    assert job.stage_names == ("base", "sft", "instruct") == tuple(families()["embedded"])
    assert load_job("stages").stage_names == load_job("difference").stage_names == STAGES


def test_overrides_change_single_keys_and_whole_values():
    job = load_job(
        "knowledge", ["max_pairs=null", "sets=[cities]", "execution.max_tokens=7", "stages=[instruct, base]"]
    )
    assert (job.max_pairs, len(job.sets), job.execution.max_tokens) == (None, 1, 7)
    assert job.stage_names == ("base", "instruct"), "stages keep the family's order"


def test_paths_in_a_file_are_relative_to_it_and_on_the_command_line_to_the_working_directory(
    tmp_path, monkeypatch, family
):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "here").mkdir()
    for folder in ("jobs", "here"):
        write_csv(tmp_path / folder / "mine.csv", [("A is B.", 1)])
    (tmp_path / "jobs" / "job.yaml").write_text(
        yaml.safe_dump({"study": "knowledge", "family": "embedded", "sets": ["mine.csv"]})
    )
    monkeypatch.chdir(tmp_path / "here")
    assert load_job("../jobs/job.yaml").sets[0].csv == str(tmp_path / "jobs" / "mine.csv")
    assert load_job("../jobs/job.yaml", ["sets=[mine.csv]"]).sets[0].csv == str(
        tmp_path / "here" / "mine.csv"
    )
    assert load_job("../jobs/job.yaml").sets[0].name == "mine"


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("max_pairs=0", "max_pairs", "greater than or equal to 1"),
        ("site=residual", "site", "'resid_pre', 'z', 'attn_out', 'resid_mid'"),
        ("layers=[3, 1]", "layers", "increasing order"),
        ("few_shot=3", "few_shot", "multiple of 2"),
        ("family=llama-9", "family", "embedded, embedded-narrow, smollm2-135m"),
        ("sets=[citys]", "sets.0", "cities"),
        ("sets=[cities, cities]", "sets", "named twice"),
        ("sets=[]", "sets", "at least 1"),
        ("stages=[chat]", "stages", "['base', 'sft', 'instruct']"),
        ("colour=red", "colour", "unknown key"),
        ("study=memory", "study", "knowledge"),
        ("family={name: x, stages: {../b: y}}", "family.stages", "no usable name"),
        ("family.name=x", "--set family.name=x", "set family as a whole"),
        ("max_pairs", "--set max_pairs", "key.path=value"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(override, place, words):
    with pytest.raises(JobError) as caught:
        load_job("knowledge", [override])
    assert place in str(caught.value) and words in str(caught.value)


def test_a_job_that_is_no_job(tmp_path):
    with pytest.raises(JobError, match=r"no file nowhere.yaml; check the path.*knowledge"):
        load_job("nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b")
    with pytest.raises(JobError, match="YAML mapping"):
        load_job(str(tmp_path / "list.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(JobError, match="not a readable YAML"):
        load_job(str(tmp_path / "bad.yaml"))


def test_the_hash_of_a_declaration_is_stable():
    """A store made today must be recognised by next year's version: what is hashed is written out here."""
    written = '{"layers":[0,4],"op":"read","site":"resid_post","tokens":"last"}'
    operation = Read(site="resid_post", layers=(0, 4), tokens="last")
    assert canonical_hash(operation) == hashlib.sha256(written.encode()).hexdigest()
    assert canonical_hash({"b": 1, "a": [1.5, "é"]}) == canonical_hash({"a": [1.5, "é"], "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_hash(float("nan"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda job, folder: job["sets"][0].update(csv="missing.csv"), "no file"),
        (
            lambda job, folder: write_csv(folder / "cities.csv", [("a", 1)], ("text", "label")),
            "no column 'statement'",
        ),
        (lambda job, folder: write_csv(folder / "cities.csv", [("A is B.", "yes")]), "line 2"),
        (lambda job, folder: write_csv(folder / "cities.csv", [("A is B.", 1)]), "too few to draw"),
        (lambda job, folder: job["sets"][0].update(where={"split": "judged"}), "no column 'split'"),
        (lambda job, folder: job.update(answers=[" TRUE", " maybe so"]), "' maybe so'"),
        (lambda job, folder: job.update(layers=[0, 3]), "3 is not in 0-2"),
        (lambda job, folder: job["family"]["stages"].update(base="nowhere/at-all"), "nowhere/at-all"),
        (lambda job, folder: job["execution"].update(device="cuda:7"), "not on this machine"),
        (lambda job, folder: job["sets"][0].update(few_shot=["A is B."]), "neither of the answers"),
    ],
)
def test_what_does_not_fit_is_said_in_one_message_before_anything_runs(job_file, tmp_path, change, words):
    job = yaml.safe_load(job_file.read_text())
    change(job, tmp_path)
    job_file.write_text(yaml.safe_dump(job))
    from posttrace.pipeline.plan import prepare
    from posttrace.tracers import TracerError

    with pytest.raises((JobError, TracerError)) as caught:
        prepare(load_job(str(job_file)))
    assert words in str(caught.value)


def test_a_mistake_ends_the_command_with_one_message_and_status_2(job_file, tmp_path):
    done = posttrace("run", job_file, "--store", tmp_path / "none", "--set", "layers=[99]")
    assert done.returncode == 2 and "99 is not in 0-2" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_moving_models_and_files_leaves_the_fingerprint(job_file, tmp_path, family):
    from posttrace.pipeline.plan import prepare

    before = prepare(load_job(str(job_file)))
    (tmp_path / "moved").mkdir()
    for name in ("job.yaml", "cities.csv", "free.csv"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    after = prepare(load_job(str(tmp_path / "moved" / "job.yaml")))
    assert declaration(before) != declaration(after) and fingerprint(before) == fingerprint(after)
    write_csv(tmp_path / "moved" / "free.csv", [(f"w{i // 2} is w{i % 2}.", i % 2) for i in range(24)])
    assert fingerprint(prepare(load_job(str(tmp_path / "moved" / "job.yaml")))) != fingerprint(before)


@pytest.mark.parametrize("what", ["models", "datasets", "jobs", "figures"])
def test_ls_lists_what_can_be_named(what):
    expected = {"models": "embedded", "datasets": "cities", "jobs": "knowledge", "figures": "heatmaps"}[what]
    assert expected in posttrace("ls", what).stdout
