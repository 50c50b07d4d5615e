"""What `describe` says of a job is what a job may say: text for people, a schema for editors."""

import json

import pytest
import yaml

from posttrace.pipeline.describe import described, keys, schema
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import built_in_jobs, check_job
from posttrace.pipeline.studies import STUDIES, job_class
from tests.support.commands import posttrace
from tests.support.json_schema import faults


def test_the_schema_takes_every_job_that_ships():
    for job in [yaml.safe_load(path.read_text()) for path in built_in_jobs().values()]:
        assert faults(job, schema(job["study"])) == [], job


@pytest.mark.parametrize(
    "mistake",
    [
        {"max_pairs": 0},
        {"maxpairs": 8},
        {"site": "residual"},
        {"execution": {"devise": "cpu"}},
        {"sets": [{"name": "x"}]},
        {"few_shot": 3},
    ],
)
def test_what_a_job_may_not_say_is_a_mistake_in_an_editor_too(mistake):
    good = {"study": "knowledge", "family": "embedded", "sets": ["cities"]}
    assert check_job(good, "job") and faults(good, schema("knowledge")) == []
    with pytest.raises(JobError):
        check_job(good | mistake, "job")
    assert faults(good | mistake, schema("knowledge"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_key_is_there_with_a_meaning(study):
    listed = {key.place: key for key in keys(study)}
    assert set(job_class(study).model_fields) <= set(listed) and "execution.remote.deadline" in listed
    assert [place for place, key in listed.items() if not key.doc] == []
    text = described(study)
    assert all(f"\n{place}   " in text for place in listed)
    assert "/pipeline/" not in json.dumps(schema(study)), "where the package lies here is nobody else's"


def test_type_default_and_range_are_those_of_the_class():
    listed = {key.place: key for key in keys("knowledge")}
    few_shot = listed["few_shot"]
    assert (few_shot.type, few_shot.default) == ("whole number", "4")
    assert few_shot.range == "at least 0, at most 32, a multiple of 2"
    assert listed["family"].default == "required" and "posttrace ls models" in listed["family"].type
    assert listed["sets[].pairs"].type == "template | free"
    operations = {key.place: key for key in keys("trace")}
    assert operations["operations[].op"][1:3] == ("read | lens | patch | steer", "required")


def test_the_command_gives_text_or_a_schema_and_suggests_a_name():
    assert (
        "max_pairs   whole number or null, default null, at least 1"
        in posttrace("describe", "knowledge").stdout
    )
    assert json.loads(posttrace("describe", "trace", "--schema").stdout) == schema("trace")
    wrong = posttrace("describe", "knowlege")
    assert wrong.returncode == 2 and "did you mean 'knowledge'?" in wrong.stderr
