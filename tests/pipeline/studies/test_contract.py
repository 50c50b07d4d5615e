"""Every study keeps the contract, and so does a sixth one that is no part of the package."""

from pathlib import Path

import pytest

from posttrace.figures import registry
from posttrace.pipeline import studies
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


class TestTrace(StudyContract):
    study = "trace"


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
