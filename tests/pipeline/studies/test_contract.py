"""Every study keeps the contract, and so does a sixth one that is no part of the package."""

from pathlib import Path

import numpy as np
import pytest

from posttrace.figures import registry
from posttrace.figures.rendering import render
from posttrace.pipeline import studies
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
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

    @pytest.mark.slow
    def test_through_the_bytes_of_a_request_it_gives_the_same(self, small, whole, tmp_path):
        """Effects alone, into another store; it is said before anything is sent."""
        job = load_job(str(small), ["execution.backend=simulated"])
        assert any("only the effects of the stages are measured" in note for note in prepare(job).notes())
        store = run_job(job, str(tmp_path / "store"), say=lambda line: None)
        assert store.fingerprint != whole.fingerprint
        assert set(store.groups) == set(whole.groups) - {"stages"} and not store.pending()
        for path, group in store.groups.items():
            assert [array.name for array in group.arrays] == ["behaviour"]
            values, wanted = (one.read(path, "behaviour") for one in (store, whole))
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
        files = {path.name: path for path in render(store.url, tmp_path / "figures")}
        assert "credit.png" in files and "dose.png" not in files
        caption = " ".join(files["stages_effects.md"].read_text().split())
        assert "Measured on a server, which hands out no weights: effects alone" in caption

    def test_a_server_trains_nothing(self, small):
        for backend in ("simulated", "remote"):
            with pytest.raises(
                JobError, match=f"recipe: execution.backend is {backend}, .*; take recipe out"
            ):
                load_job(str(small), ["recipe=embedded", f"execution.backend={backend}"])

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
