"""A virtual environment with everything that this one has, except this project."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROJECT = "posttrace"
ROOT = Path(__file__).parents[3]


def names_of_project() -> list[str]:
    """Top-level modules that belong to this project, tests and benchmarks included."""
    return sorted(folder.parent.name for folder in ROOT.glob("*/__init__.py"))


def make_environment(folder: Path, **links: Path) -> Path:
    """Make the environment, with `links` (module name -> folder) on top, and return its interpreter.

    Its packages are links to the installed ones, so it costs no download and has the very same versions. Links of
    single packages, not a path to where they lie: there the project may lie too, as an installed wheel or as the
    .pth file of an editable install.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    ours = {PROJECT, *names_of_project()}
    for installed in (
        path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")
    ):
        for entry in installed.iterdir():
            name = entry.name.split("-")[0].split(".")[0].lower()
            if name not in ours and entry.suffix != ".pth" and not (site / entry.name).exists():
                os.symlink(entry, site / entry.name)
    for name, source in links.items():
        os.symlink(source, site / name)
    return folder / "bin" / "python"


class NotInstalled(Exception):
    """A package of the server's cannot be had here."""


def server_package(name: str, version: str) -> Path:
    """The folder of a pure-Python package that is no dependency of this project, fetched from the index once.

    Kept in the user's cache. What it needs in turn is what is installed here, so a run has the very same versions on
    both sides; the Python that it asks for is not looked at (ndif asks for 3.12, and what is used of it runs on 3.11).
    Raises NotInstalled with the reason.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "posttrace-tests" / f"{name}-{version}"
    if not (folder / name).is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            order = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--ignore-requires-python",
            ]
            order += ["--only-binary=:all:", "--no-compile", "--target", f"{fresh}/it", f"{name}=={version}"]
            done = subprocess.run(order, capture_output=True, text=True, timeout=300)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["pip says nothing"]
                raise NotInstalled(f"{name} {version} cannot be installed: {lines[-1]}")
            try:
                os.replace(f"{fresh}/it", folder)
            except OSError:  # another test run was quicker
                pass
    return folder / name
