"""Every study keeps the contract, and so does a sixth one that is no part of the package."""

from pathlib import Path

import numpy as np
import pytest

from posttrace.figures import registry
from posttrace.pipeline import studies
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from tests.pipeline.contract import StatementStudyContract, StudyContract
from tests.support import norms


class TestKnowledge(StatementStudyContract):
    study = "knowledge"


class TestTruthfulness(StatementStudyContract):
    study = "truthfulness"


class TestConfidence(StatementStudyContract):
    study = "confidence"
    needs_finite = {"text": {"documents": 4, "tokens": 16, "per_unit": 2}}  # noqa: RUF012


class TestRefusal(StudyContract):
    study = "refusal"

    def left_out(self):
        return {"search_coefficient", "search_refused", "search_log_odds"}


class TestDifference(StudyContract):
    study = "difference"

    @pytest.mark.slow
    def test_one_checkpoint_twice_differs_exactly_nowhere(self, whole):
        for name in ("kl", "js", "norm_difference", "token_sum", "squared_difference_sum", "rise_logprob"):
            values = whole.read("difference/mine", name)
            if name == "token_sum":
                values = values[:, :, 1]
            assert not np.nan_to_num(values).any(), name
        assert np.nanmin(whole.read("difference/mine", "cosine")) == 1


class TestTrace(StudyContract):
    study = "trace"


class TestStages(StatementStudyContract):
    study = "stages"
    fewest = ("base", "sft")
    reads_words = "instruct"

    def test_through_the_bytes_of_a_request_it_gives_the_same(self, small):
        """It needs two checkpoints' files, and says so before anything is sent."""
        for backend in ("simulated", "remote"):
            with pytest.raises(JobError, match=f"execution.backend: {backend}: .*run this study locally"):
                prepare(load_job(str(small), [f"execution.backend={backend}"]))

    def test_a_set_in_the_place_of_an_array(self, small, tmp_path):
        """Sets have a folder of their own here; behaviours of one's own do not."""
        mine = {"name": "changed", "prompts": ["The city"], "answers": [" is"]}
        with pytest.raises(JobError, match="set changed: results of the study are stored under that name"):
            prepare(load_job(str(self.changed(small, tmp_path, behaviours=[mine]))))


class TestNorms(StatementStudyContract):
    study = "norms"
    module = "tests.support.norms"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _added(cls):
        before = dict(studies.STUDIES), dict(registry.STUDIES)
        norms.add()
        yield
        for registered, kept in zip((studies.STUDIES, registry.STUDIES), before, strict=True):
            registered.clear()
            registered.update(kept)

    def test_it_is_short(self):
        files = Path(norms.__file__).parent.glob("*/*.py")
        assert sum(len(path.read_text().splitlines()) for path in files) <= 250
