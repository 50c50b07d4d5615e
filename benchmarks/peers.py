"""Environments of the other tools, one each, with pinned versions.

    python -m benchmarks.peers install            install all (some GB; torch first, to avoid a CUDA build)
    python -m benchmarks.peers install pyvene     install one
    python -m benchmarks.peers list               list what is installed

They are kept in runs/peers, or in the folder POSTTRACE_PEERS. Arguments after `--` are passed to pip, for instance
`install -- --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
COMMON = ("transformers==5.23.0", "numpy==2.4.6")
PINS = {
    "transformer_lens_4": ("transformer_lens==4.3.0", *COMMON),
    "transformer_lens_3": ("transformer_lens==3.9.0", *COMMON),
    "pyvene": ("pyvene==0.1.8", *COMMON),
}
NEEDS = {
    "TransformerLens 4, generic_activation_patch": "transformer_lens_4",
    "TransformerLens 3, generic_activation_patch": "transformer_lens_3",
    "TransformerLens 3, batched, start_at_layer": "transformer_lens_3",
    "pyvene": "pyvene",
}
"""Method -> environment; the others run in posttrace's own."""


def folder() -> Path:
    return Path(os.environ.get("POSTTRACE_PEERS", ROOT / "runs" / "peers"))


def python_of(method: str) -> Path | None:
    """Return the interpreter that a method runs in; None if its environment is not installed.

    Examples
    --------
    >>> python_of("posttrace") == Path(sys.executable)
    True
    """
    if method not in NEEDS:
        return Path(sys.executable)
    python = folder() / NEEDS[method] / "bin" / "python"
    return python if (python.parent.parent / ".installed").exists() else None


def install(name: str, options: list[str]) -> None:
    """Create one environment; its marker is written last."""
    where = folder() / name
    venv.create(where, with_pip=True, clear=True)
    for packages in ([TORCH], [TORCH, *PINS[name]]):
        subprocess.run(
            [where / "bin" / "python", "-m", "pip", "install", "--quiet", *options, *packages], check=True
        )
    (where / ".installed").write_text("\n".join([TORCH, *PINS[name]]) + "\n")


def main(arguments: list[str]) -> None:
    options = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    unknown = set(words[1:]) - set(PINS)
    if not words or words[0] not in ("install", "list") or unknown:
        sys.exit(f"{__doc__}\nknown peers: {', '.join(PINS)}")
    for name in words[1:] or PINS:
        if words[0] == "install":
            install(name, options)
        state = "installed" if (folder() / name / ".installed").exists() else "not installed"
        print(f"{name}: {state}, {folder() / name}")


if __name__ == "__main__":
    main(sys.argv[1:])
