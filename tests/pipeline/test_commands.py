"""Every command in a new interpreter: it imports what it needs by itself, and the tests' forks of one do the same."""

import signal

import pytest

from tests.support.commands import Command, posttrace, posttrace_anew, wait_for_units

COMMANDS = {
    "ls": (["ls", "jobs"], 0),
    "run": (["run", "{job}", "--store", "{store}"], 0),
    "show": (["show", "{store}"], 0),
    "verify": (["verify", "{store}"], 0),
    "figures": (["figures", "{store}", "--out", "{out}", "--only", "judgement"], 0),
    "a mistake": (["run", "{job}", "--store", "{out}", "--set", "layers=[99]"], 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_says_and_ends_as_in_a_fork(name, finished, job_file, tmp_path):
    words, status = COMMANDS[name]
    arguments = [word.format(job=job_file, store=finished, out=tmp_path / "out") for word in words]
    anew, forked = posttrace_anew(*arguments), posttrace(*arguments)
    assert anew.returncode == forked.returncode == status, anew.stderr
    assert (anew.stdout, anew.stderr) == (forked.stdout, forked.stderr) and anew.stdout + anew.stderr


def test_a_signal_reaches_a_fork(job_file, tmp_path):
    for number, status in [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]:
        command = Command("run", job_file, "--store", tmp_path / str(number))
        wait_for_units(tmp_path / str(number), 1, command)
        command.send_signal(number)
        assert command.wait() == status, command.err
