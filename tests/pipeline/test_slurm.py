"""The scripts of docs/clusters.md, submitted to a real SLURM; skipped where there is none."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrace.stores import Store

DOC = Path(__file__).parents[2] / "docs" / "clusters.md"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="SLURM is not installed"),
]


def changed(text, changes):
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def slurm():
    """Skip where no controller answers; asking takes seconds then, so not while tests are collected."""
    asked = subprocess.run(["sinfo"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"SLURM is installed, but its controller does not answer: {asked.stderr.strip()}")


def test_the_scripts_of_the_page_run(slurm, job_file, finished, tmp_path, monkeypatch):
    text = DOC.read_text()
    shards, coordinate = re.findall(r"```bash\n(.*?)```", text, re.S)
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    common = {
        "my-job.yaml": str(job_file),
        "posttrace run": f"{sys.executable} -m posttrace run",
        "/shared/runs/my-job": str(tmp_path / "store"),
    }
    small = {
        "array=0-7": "array=0-1",
        "}/8": "}/2",
        "#SBATCH --gres=gpu:1\n": "",
        "=64G": "=2G",
        "task=4": "task=1",
    }
    settings = changed(settings, {"64GiB": "2GiB"})
    (tmp_path / "jobqueue.yaml").write_text(re.sub(r".*job-extra-directives.*\n", "", settings))
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path))
    scripts = {
        "shards": changed(shards, {**common, **small}),
        "coordinate": changed(coordinate, {**common, "workers 8": "workers 2", "bfloat16": "float32"}),
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(script.replace(str(tmp_path / "store"), str(tmp_path / f"store-{name}")))
        done = subprocess.run(
            ["sbatch", "--wait", tmp_path / name], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, [path.read_text() for path in tmp_path.glob("slurm-*")]
        made, expected = Store.open(tmp_path / f"store-{name}"), Store.open(finished)
        assert made.progress.complete(len(made.units)) and made.done() == expected.done()
