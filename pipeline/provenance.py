"""Where a store comes from: versions, revision of the code, device. Never the environment or the command line."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("posttrace", "torch", "transformers", "nnsight", "accelerate", "numpy", "xarray", "zarr")


def provenance(device: str, overrides=()) -> dict[str, Any]:
    """Record what runs: package versions, git commit and dirty flag, Python, device, time (UTC).

    Parameters
    ----------
    overrides
        The `--set` arguments given. git_commit is None when the code is not run from a checkout.

    Examples
    --------
    >>> sorted(provenance("cpu"))
    ['device', 'git_commit', 'git_dirty', 'overrides', 'platform', 'python', 'started', 'versions']
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "overrides": list(overrides),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
