"""The project's own files agree with each other, and the folders import only what they may."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_gives_the_versions_that_the_tests_pass_with():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, packages = environment[0], environment[1], environment[2]["pip"]
    assert packages == ["-c constraints.txt", "-e ."]
    assert python == f"python{PROJECT['requires-python']}" and pip == "pip"


def test_every_dependency_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(n): v for n, v in (line.split("==") for line in lines if not line.startswith("#"))
    }
    names = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
    for requirement in map(Requirement, names):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} against constraints.txt"


def test_the_folders_import_only_what_they_may():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_needs_no_model_library():
    """`--help` answers at once because neither torch nor a plotting library is imported for it."""
    code = "import json, sys; sys.argv = ['posttrace', '--help']\nfrom posttrace.pipeline.cli import main\n"
    code += "try: main()\n"
    code += "except SystemExit: pass\nprint('MODULES' + json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    help_text, modules = out.split("MODULES")
    heavy = {"torch", "transformers", "nnsight", "matplotlib", "seaborn", "xarray", "zarr", "pandas", "scipy"}
    assert not heavy & set(json.loads(modules))
    for command in ("run", "check", "figures", "report", "view", "show", "verify", "ls"):
        assert re.search(rf"^│ {command} ", help_text, re.M)


def test_every_module_says_what_it_is_for():
    for folder in ("pipeline", "tracers", "stores", "figures"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), (
                f"{path.relative_to(ROOT)} has no docstring"
            )


def test_no_test_imports_another():
    """What several tests share lives in tests/support, not in a test module or a conftest.py."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            module = (getattr(node, "module", None) or "").split(".")
            parts = [*module, *(part for name in names for part in name.split("."))]
            wrong = [part for part in parts if part == "conftest" or part.startswith("test_")]
            assert not wrong, f"{path.relative_to(ROOT)}:{node.lineno} imports {'.'.join(wrong)}"
