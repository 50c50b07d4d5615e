"""A client that is killed goes on where it was: its jobs are asked for, not submitted again."""

import signal

import pytest

from tests.support.commands import Command, posttrace
from tests.support.remote.scenarios import KILLS
from tests.support.remote.sweep import accepted, check_complete


def arguments(folder, tmp_path):
    """Of the command line for the sweep's job on the server, one request at a time."""
    run = ["run", folder / "job.yaml", "--backend", "remote", "--store", tmp_path / "store"]
    return list(map(str, [*run, "--set", "execution.in_flight=1"]))


def variables(server):
    return {"NDIF_HOST": server.url, "NDIF_API_KEY": server.key}


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name)
def test_a_killed_client_goes_on(kill, sweep_job, sweep_values, server, remotely, tmp_path):
    server.fault(**kill.arm)
    client = Command(*arguments(sweep_job, tmp_path), env=variables(server))
    server.wait_for(seconds=120, alive=lambda: client.poll() is None, **kill.until)
    client.send_signal(signal.SIGKILL)
    assert client.wait() == -signal.SIGKILL, client.err
    before = accepted(server)
    server.clear()
    server.settle()
    error, lines = remotely(in_flight=1)
    assert error is None, error
    check_complete(tmp_path / "store", sweep_values, server)
    assert len(accepted(server)) == kill.jobs, "\n".join(lines)
    if kill.known:
        assert any("submitted earlier" in line and job in line for line in lines for job in before), lines


def run_command(folder, tmp_path, server, **other):
    return posttrace(*arguments(folder, tmp_path), env={**variables(server), **other})


@pytest.mark.slow
def test_the_command_line_gets_through_three_faults_at_once(sweep_job, sweep_values, server, tmp_path):
    server.fault("post_status", code=503)
    server.fault("post_drop", skip=1, accepted=True)
    server.fault("download_reset")
    ran = run_command(sweep_job, tmp_path, server)
    assert ran.returncode == 0, ran.stderr
    check_complete(tmp_path / "store", sweep_values, server)
    assert server.key not in ran.stdout + ran.stderr


@pytest.mark.slow
def test_the_command_line_says_that_the_key_was_refused(sweep_job, server, tmp_path):
    wrong = "11111111-0000-4000-8000-000000000000"
    ran = run_command(sweep_job, tmp_path, server, NDIF_API_KEY=wrong)
    assert ran.returncode == 2
    assert "answers 403" in ran.stderr and "NDIF_API_KEY" in ran.stderr and "Traceback" not in ran.stderr
    assert wrong not in ran.stdout + ran.stderr
    assert [post["code"] for post in server.since("post")] == [403]


@pytest.mark.slow
def test_the_command_line_names_the_unit_whose_code_failed_and_does_the_others(sweep_job, server, tmp_path):
    server.fault("fail", why="code")
    ran = run_command(sweep_job, tmp_path, server)
    assert ran.returncode == 2
    assert "knowledge/cities/clean/base/0000: read_statements" in ran.stderr.splitlines()[-2]
    assert "RuntimeError: a fault in the block" in ran.stderr
    assert len([run for run in server.since("run") if not run["error"]]) == 2
