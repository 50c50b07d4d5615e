"""What the command line prints, where, and how much of it."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrace.figures.errors import FigureError
from posttrace.figures.registry import chosen
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.progress_bar import progress
from posttrace.pipeline.rows import read_rows
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import read_set
from posttrace.stores import Store
from tests.support.commands import posttrace
from tests.support.jobs import UNITS, write_csv
from tests.support.stores import example


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("max_pair=8", "max_pairs"),
        ("execution.devise=cpu", "device"),
        ("execution.remote.deadlines=9", "deadline"),
        ("family={name: x, stages: {base: {modle: y}}}", "model"),
        ("sets=[{name: x, csv: y.csv, pair: free}]", "pairs"),
        ("study=knowlege", "knowledge"),
        ("family=embeded", "embedded"),
        ("sets=[citties]", "cities"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(override, near):
    with pytest.raises(JobError, match=re.escape(f"(did you mean '{near}'?)")):
        load_job("knowledge", [override])


def test_a_mistyped_job_figure_or_command_is_told_the_nearest():
    with pytest.raises(JobError, match="did you mean 'truthfulness'"):
        load_job("truthfullness")
    with pytest.raises(FigureError, match="did you mean 'heatmaps'"):
        chosen("heatmap")
    assert "figures" in posttrace("ls", "figure").stderr


def test_a_set_that_is_not_known_is_one_mistake():
    with pytest.raises(JobError, match="'citties' is not a known set") as caught:
        load_job("knowledge", ["sets=[citties]"])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(JobError, match="sets: Tuple should have at least 1"):
        load_job("knowledge", ["sets=[]"])


def test_a_name_that_is_near_nothing_gets_no_suggestion():
    with pytest.raises(JobError) as caught:
        load_job("knowledge", ["colour=red"])
    assert "did you mean" not in str(caught.value) and "posttrace describe knowledge" in str(caught.value)


@pytest.mark.parametrize("what", ["models", "datasets", "jobs", "figures", "architectures"])
def test_ls_as_json_names_what_the_text_does(what):
    listed = json.loads(posttrace("ls", what, "--json").stdout)
    lines = posttrace("ls", what).stdout.splitlines()
    assert list(listed) == [line.split()[0] for line in lines]
    if what == "models":
        assert list(listed["embedded"]["stages"]) == ["base", "sft", "instruct"]
    if what == "jobs":
        assert all(line.endswith(listed[line.split()[0]]["question"]) for line in lines)
        assert any("Where is knowledge stored, before and after post-training?" in line for line in lines)
        assert all(Path(job["file"]).is_file() for job in listed.values())


def test_a_quiet_run_prints_nothing_and_a_log_has_it_all(job_file, tmp_path):
    store, log = tmp_path / "a store", tmp_path / "logs" / "run.log"
    quiet = posttrace("run", job_file, "--store", store, "--quiet", "--log", log)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    said = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in said)
    assert f"{UNITS} units to do" in said[0] and "100 %" in said[-1]
    again = posttrace("run", job_file, "--store", store, "--log", log)
    assert "0 to go" in again.stderr and "0 to go" in log.read_text().splitlines()[len(said)]
    hint = again.stdout.partition("next: ")[2]
    assert shlex.split(hint)[2] == str(store), "the hint can be pasted, with the space in the name"


def test_a_log_that_cannot_be_written_is_a_mistake(job_file, tmp_path):
    done = posttrace("run", job_file, "--store", tmp_path / "store", "--log", tmp_path)
    assert done.returncode == 2 and "--log" in done.stderr and "choose another file" in done.stderr


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [44, 80, 200])
def test_a_narrow_terminal_keeps_the_percentage(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress(100, 0, stream) as advance:
        advance(42, "knowledge/larger_than/grid/instruct/0016")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    shown = [line for line in lines if "42 %" in line]
    assert shown and all(len(line) <= columns and "left" in line for line in shown)
    if columns == 200:
        assert "knowledge/larger_than/grid/instruct/0016" in shown[-1]


@pytest.mark.slow
def test_figures_sums_up_in_a_line_and_lists_files_when_asked(finished, tmp_path):
    short = posttrace("figures", finished, "--out", tmp_path / "a", "--only", "judgement")
    assert len(short.stdout.splitlines()) == 1 and f"3 files in {tmp_path / 'a'}" in short.stdout
    long = posttrace("figures", finished, "--out", tmp_path / "b", "--only", "judgement", "--verbose")
    assert len(long.stdout.splitlines()) == 4 and "tables/knowledge_judgement.csv" in long.stdout


@pytest.mark.slow
def test_a_store_of_another_job_is_refused_in_three_lines(finished, job_file):
    """However much differs: every key of the job here, and long values."""
    sets = f"sets=[{{name: other, csv: {job_file.parent / 'cities.csv'}, few_shot: [{', '.join(['w1'] * 300)}]}}]"
    changes = [
        "seed=3",
        "max_pairs=5",
        "few_shot=2",
        "suffix=' This is'",
        "pairs_per_unit=2",
        "site=mlp_out",
        sets,
    ]
    arguments = [word for change in changes[:-1] for word in ("--set", change)]
    done = posttrace("run", job_file, "--store", finished, *arguments)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and len(done.stderr) < 800, done.stderr
    assert "belongs to another job" in lines[0] and "more keys" in lines[1] and "--store" in lines[2]


def test_show_works_on_a_store_that_no_study_wrote(tmp_path):
    Store.create(
        tmp_path / "s",
        [example.group()],
        example.units(),
        job={"imported": "grid.npz"},
        fingerprint="f",
        provenance={},
    )
    done = posttrace("show", tmp_path / "s")
    assert done.returncode == 0 and "job: imported grid.npz" in done.stdout, done.stderr
    assert "None" not in done.stdout and re.search(r"^from: [^ ,]+$", done.stdout, re.M)


def test_labels_may_be_words_and_other_separators_are_named_as_such(tmp_path):
    words = StatementSet(name="words", csv=str(tmp_path / "words.csv"))
    write_csv(tmp_path / "words.csv", [("A is B.", "True"), ("A is C.", "false"), ("A is D.", "1")])
    assert [one.label for one in read_set(words)] == [True, False, True]
    write_csv(tmp_path / "words.csv", [("A is B.", "yes")])
    with pytest.raises(JobError, match=r"line 2: .* with label 'yes'; .*label be 1 or true, 0 or false"):
        read_set(words)
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        (tmp_path / "other.csv").write_text(f"statement{separator}label\nA is B.{separator}1\n")
        with pytest.raises(JobError, match=f"is separated by {word}.*save it with commas"):
            read_rows(str(tmp_path / "other.csv"), "set x", "edit", needed=("statement",), help="")


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is tried in bash")
def test_completion_installs_and_completes(tmp_path):
    environment = {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = posttrace("--install-completion", env=environment)
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / ".local/share/bash-completion/completions").iterdir()
    words = 'COMP_WORDS=(posttrace des); COMP_CWORD=1; COMP_LINE="posttrace des"; COMP_POINT=13'
    name = "$(complete -p posttrace | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    ask = f"source {script}; f={name}; {words}; $f posttrace des posttrace; echo ${{COMPREPLY[@]}}"
    environment = {**os.environ, **environment}
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=environment)
    assert found.stdout.split() == ["describe"], found.stderr
