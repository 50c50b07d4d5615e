"""Values that are not finite are never stored as results: the unit is named, in every study."""

import numpy as np
import pytest
import torch
import yaml

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import check_finite, check_gaps
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import Store
from posttrace.tracers.errors import TracerError
from tests.support.jobs import CHAT, WORDS, good_job, write_csv
from tests.support.models import random_module, word_tokenizer


def broken(module):
    """One weight of the last block is NaN: nothing that a model does is finite."""
    module.model.layers[2].mlp.down_proj.weight[3, 5] = torch.nan


def overflowing(module):
    """In float16 the last block's output is beyond what float16 can hold, in float32 all is well."""
    module.model.layers[2].mlp.down_proj.weight.mul_(3e5)


@pytest.fixture(params=[broken, overflowing], ids=lambda change: change.__name__)
def spoiled(request, inputs):
    module = random_module("llama", 0)
    with torch.no_grad():
        request.param(module)
    folder = inputs / request.param.__name__
    module.save_pretrained(folder)
    tokenizer = word_tokenizer([*WORDS, "User", "Assistant", "I", " cannot", "Sure"])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("study", ["knowledge", "truthfulness", "confidence", "refusal", "trace"])
def test_a_unit_that_is_not_finite_is_named_and_not_stored(study, spoiled, inputs, tmp_path):
    raw = good_job(study, inputs) | {"dtype": "float16"}
    raw["family"] = {"name": "x", "stages": {"base": str(spoiled)}}
    if study == "trace":
        raw |= {"operations": [{"op": "read", "tokens": "last"}], "directions": {}, "generate": 3}
    if study == "confidence":
        raw["text"] = {"documents": 4, "tokens": 16}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(TracerError, match=r"unit .*not finite in float16; use dtype: bfloat16 or float32"):
        run_job(load_job(str(tmp_path / "job.yaml")), str(tmp_path / "store"), say=lambda line: None)
    assert not any("answers" in unit or "output" in unit for unit in Store.open(tmp_path / "store").done())


def test_contradictory_labels_leave_no_direction(inputs, tmp_path):
    """The same text as true and as false: there is nothing to learn, and that is said."""
    rows = [(f"The city of w{i} is in w3.", label) for i in range(4) for label in (0, 1)]
    raw = good_job("truthfulness", inputs) | {"sets": ["a.csv", "b.csv"], "few_shot": 0}
    for name in raw["sets"]:
        write_csv(tmp_path / name, rows)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(JobError, match=r"held out [ab]: stage base: after block 1 .*no direction"):
        run_job(load_job(str(tmp_path / "job.yaml")), str(tmp_path / "store"), say=lambda line: None)


def test_where_nan_means_no_value_only_infinity_is_wrong():
    check_gaps("u", "float32", {"x": np.array([1.0, np.nan]), "text": np.array(["a"], dtype=object)})
    with pytest.raises(TracerError, match="unit u: 1 of 2 values of x are not finite"):
        check_gaps("u", "float32", {"x": np.array([np.inf, np.nan])})
    with pytest.raises(TracerError, match="unit u: 2 of 2 values of x"):
        check_finite("u", "float32", {"x": torch.tensor([np.inf, np.nan])})
