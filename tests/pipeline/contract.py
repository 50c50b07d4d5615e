"""What every study must keep; a subclass names the study and gets all of it (docs/add-a-study.md)."""

import pickle
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml

from posttrace.figures.rendering import render
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import fingerprint, prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.study import Study
from posttrace.stores import Store, open_store
from posttrace.tracers.errors import TracerError
from tests.support.commands import Command, posttrace, wait_for_units
from tests.support.jobs import CHAT, WORDS, good_job, write_csv
from tests.support.models import random_module, word_tokenizer


class StudyContract:
    """Tests of one study on a small job over random models."""

    study: ClassVar[str]
    module = "posttrace"
    """What `python -m` runs as the command line."""
    needs_finite: ClassVar[dict] = {}
    """Changes of the job without which it runs no model."""
    fewest: ClassVar[tuple[str, ...]] = ("base",)
    """Stages that a job must have."""

    @pytest.fixture(scope="class")
    @classmethod
    def small(cls, inputs, tmp_path_factory):
        """A job of one stage more than it must have, as a file."""
        folder = tmp_path_factory.mktemp(cls.study)
        raw = good_job(cls.study, inputs) | cls.needs_finite
        raw["family"] = {"name": "x", "stages": {s: str(inputs / "model") for s in (*cls.fewest, "instruct")}}
        (folder / "job.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        return folder / "job.yaml"

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, small, shared):
        """The store of a run that nothing disturbed."""

        def make(folder):
            run_job(load_job(str(small)), str(folder / "store"), say=lambda line: None)

        return Store.open(shared(f"whole-{cls.study}", make) / "store")

    def changed(self, small, folder, **keys):
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(small.read_text()) | keys, sort_keys=False))
        return path

    def test_the_plan_fills_every_value_once_and_needs_come_first(self, small):
        study = prepare(load_job(str(small)))
        filled = {(g.path, a.name): np.zeros(g.shape(a.name), int) for g in study.groups for a in g.arrays}
        groups, done = {g.path: g for g in study.groups}, set()
        for work in study.work:
            assert set(work.needs) <= done, f"{work.unit.id} needs what comes later"
            assert work.unit.id not in done
            assert callable(getattr(study, f"run_{work.kind}"))
            done.add(work.unit.id)
            for name in work.unit.arrays:
                array = next(a for a in groups[work.unit.group].arrays if a.name == name)
                at = tuple(slice(*work.unit.region.get(dim, (None,))) for dim in array.dims)
                filled[work.unit.group, name][at] += 1
        for place, count in filled.items():
            assert (count <= 1).all(), f"{place} is written twice"
            assert (count == 1).all() or place[1] in study.gaps | self.left_out(), f"{place} is not filled"

    @pytest.mark.slow
    def test_the_plan_counts_spot_checks(self, small, whole):
        counted, not_counted = (
            prepare(load_job(str(small), changes)) for changes in ([], ["execution.check_share=0"])
        )
        checked = {unit for unit, record in whole.records().items() if "checked_cells" in record}
        for work in counted.work:
            if work.unit.id in checked and work.stage:
                assert counted.cost(work).multiply_adds > not_counted.cost(work).multiply_adds, work.unit.id

    def left_out(self) -> set[str]:
        """Arrays that the small job leaves empty."""
        return set()

    def test_the_summary_counts_every_unit(self, small):
        study = prepare(load_job(str(small)))
        rows = study.summary()
        assert sum(row["units"] for row in rows) == len(study.work)
        assert sum(row["forwards"] for row in rows) == sum(study.cost(work).forwards for work in study.work)

    @pytest.mark.slow
    def test_units_write_what_they_declare_and_figures_draw_it(self, whole, tmp_path):
        assert len(whole.done()) == len(whole.units)
        files = render(whole.url, tmp_path / "figures")
        assert any(self.study in str(path) for path in files)
        assert all(path.stat().st_size for path in files)
        tree = open_store(whole.url)
        for path, group in whole.groups.items():
            assert len(tree[path].data_vars) == len(group.arrays), f"{path}: an array is missing"
            for dim in tree[path].dims:
                assert f"{dim}_name" not in tree[path].coords, f"{path}: {dim} cannot be selected by its name"

    @pytest.mark.slow
    def test_stopped_after_any_unit_it_goes_on_to_the_same_store(self, small, whole, tmp_path, monkeypatch):
        run, ran = Study.run, []

        def stopping(self, work, model, store):
            if len(ran) in (1, 3, 7):
                ran.append("stop")
                raise KeyboardInterrupt
            ran.append(work.unit.id)
            return run(self, work, model, store)

        monkeypatch.setattr(Study, "run", stopping)
        for _ in range(4):
            try:
                store = run_job(load_job(str(small)), str(tmp_path / "store"), say=lambda line: None)
            except KeyboardInterrupt:
                continue
        assert "stop" in ran
        units = [unit for unit in ran if unit != "stop"]
        assert sorted(units) == sorted(whole.units), "a unit was done twice, or not at all"
        self.assert_same(store, whole)

    @pytest.mark.slow
    def test_killed_it_goes_on_to_the_same_store(self, small, whole, tmp_path):
        arguments = ["run", small, "--store", tmp_path / "store"]
        process = Command(*arguments, module=self.module)
        wait_for_units(tmp_path / "store", 1, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = posttrace(*arguments, module=self.module)
        assert again.returncode == 0, again.stderr
        self.assert_same(Store.open(tmp_path / "store"), whole)

    @pytest.mark.slow
    def test_through_the_bytes_of_a_request_it_gives_the_same(self, small, whole, tmp_path):
        job = load_job(str(small), ["execution.backend=simulated"])
        store = run_job(job, str(tmp_path / "store"), say=lambda line: None)
        assert store.fingerprint == whole.fingerprint
        self.assert_same(store, whole, rtol=1e-5, atol=1e-5)

    def assert_same(self, store, expected, **tolerance):
        compared = 0
        for path, group in expected.groups.items():
            for array in group.arrays:
                if array.name in self.left_out():
                    continue
                value, wanted = (s.read(path, array.name) for s in (store, expected))
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(value, wanted, **{"rtol": 0, "atol": 0} | tolerance)
                    compared += int(np.isfinite(wanted).sum())
                else:
                    np.testing.assert_array_equal(value, wanted)
        assert compared, "nothing was compared"

    def test_values_that_are_not_finite_are_named_and_not_stored(self, small, inputs, tmp_path):
        module = random_module("llama", 0)
        with torch.no_grad():
            module.model.layers[2].mlp.down_proj.weight[3, 5] = torch.nan
        module.save_pretrained(tmp_path / "broken")
        tokenizer = word_tokenizer([*WORDS, "User", "Assistant", "I", " cannot", "Sure"])
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(tmp_path / "broken")
        family = {"name": "x", "stages": {stage: str(tmp_path / "broken") for stage in self.fewest}}
        job = load_job(str(self.changed(small, tmp_path, family=family)))
        with pytest.raises(TracerError, match=r"unit .* not finite in float32; use dtype"):
            run_job(job, str(tmp_path / "store"), say=lambda line: None)

    @pytest.mark.slow
    def test_what_bears_on_no_result_changes_no_fingerprint(self, small):
        def of(*overrides):
            return fingerprint(prepare(load_job(str(small), overrides)))

        assert of("execution.max_tokens=100", "execution.check_share=0") == of()
        assert of("seed=1") != of() and of(f"stages=[{','.join(self.fewest)}]") != of()

    def test_a_worker_makes_the_same_plan_of_what_travels(self, small):
        study = prepare(load_job(str(small)))
        job, work = pickle.loads(pickle.dumps((study.job, study.work)))
        again = prepare(job)
        assert fingerprint(again) == fingerprint(study) and again.work == study.work == work

    def test_a_key_and_a_stage_that_are_not_there(self, small, tmp_path):
        with pytest.raises(JobError, match="colour: unknown key; a job of this study has"):
            load_job(str(small), ["colour=red"])
        with pytest.raises(JobError, match=r"stages: \['sfd'\] not in family x; it has"):
            load_job(str(small), ["stages=[sfd]"])

    def test_labels_of_the_study_cannot_name_a_stage(self, small, inputs, tmp_path):
        for label in load_job(str(small)).reserved:
            name = f"{label}0" if label.endswith("-") else label
            family = {"name": "x", "stages": {"base": str(inputs / "model"), name: str(inputs / "model")}}
            with pytest.raises(JobError, match=f"stages: .*{name}.* rename the stage"):
                load_job(str(self.changed(small, tmp_path, family=family)))


class StatementStudyContract(StudyContract):
    """Of a study that reads statement sets."""

    reads_words = "base"
    """The stage whose tokenizer reads a set first."""

    def sets(self, folder, *names, word="w3"):
        rows = [
            (f"The city of w{i} {word} is in w{50 + (i + off) % 2}.", 1 - off)
            for i in range(12)
            for off in (0, 1)
        ]
        for name in names:
            write_csv(folder / f"{name}.csv", rows)
        return [str(folder / f"{name}.csv") for name in names]

    def test_words_that_the_tokenizer_does_not_know(self, small, tmp_path):
        sets = self.sets(tmp_path, "one", "two", word="Xyzzy")
        with pytest.raises(
            JobError, match=rf"set one: stage {self.reads_words}: .*words that the tokenizer does not know"
        ):
            prepare(load_job(str(self.changed(small, tmp_path, sets=sets))))

    def test_a_set_in_the_place_of_an_array(self, small, tmp_path):
        groups = prepare(load_job(str(small))).groups
        taken = [a.name for g in groups if g.path == self.study for a in (*g.arrays, *g.coords)]
        for name in taken[:1]:
            sets = self.sets(tmp_path, name, "two")
            with pytest.raises(
                JobError, match=f"set {name}: results of the study are stored under that name"
            ):
                prepare(load_job(str(self.changed(small, tmp_path, sets=sets))))
