"""What 16 bits do to the results: the patch grids of the embedded family in bfloat16 and float16 against float32.

    python -m benchmarks.precision

Three stages, each patched into each. Differences are in nats; what figures show (a set's mean grid, and the share that
patching recovers) is compared as well, since conclusions rest on it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import header, keep

SETS = ("cities", "larger_than")
DTYPES = ("bfloat16", "float16")


def measure(sets: tuple[str, ...], pairs: int, stages: tuple[str, ...]) -> list[dict]:
    """Compare each 16-bit dtype with float32; returns a record for each."""
    with tempfile.TemporaryDirectory() as folder:
        exact = _grids(sets, pairs, stages, "float32", Path(folder))
        return [_compared(dtype, exact, _grids(sets, pairs, stages, dtype, Path(folder))) for dtype in DTYPES]


def _grids(sets, pairs, stages, dtype, folder: Path) -> list:
    from posttrace.figures.studies.knowledge.data import PatchGrid
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job
    from posttrace.stores import open_group

    changes = [
        f"sets=[{', '.join(sets)}]",
        f"stages=[{', '.join(stages)}]",
        f"max_pairs={pairs}",
        f"dtype={dtype}",
    ]
    url = str(folder / dtype)
    run_job(load_job("knowledge", [*changes, "execution.device=cpu"]), url, quiet=True)
    return [PatchGrid.from_dataset(open_group(url, f"knowledge/{name}")) for name in sets]


def _compared(dtype: str, exact: list, rounded: list) -> dict:
    runs = [np.abs(a - b).ravel() for x, y in zip(exact, rounded, strict=True) for a, b in _unpatched(x, y)]
    cells = [(y.values - x.values).ravel() for x, y in zip(exact, rounded, strict=True)]
    # A prompt's own rounding moves all of its cells alike: what is left of a cell relative to its unpatched run.
    within = [
        (
            (y.values - y.corrupt[None, :, :, None, None]) - (x.values - x.corrupt[None, :, :, None, None])
        ).ravel()
        for x, y in zip(exact, rounded, strict=True)
    ]
    means = [np.abs(_mean(y) - _mean(x)).ravel() for x, y in zip(exact, rounded, strict=True)]
    shares = [np.abs(_recovered(y) - _recovered(x)).ravel() for x, y in zip(exact, rounded, strict=True)]
    return dict(
        name=dtype,
        stages=len(exact[0].sources),
        pairs=sum(x.values.shape[2] for x in exact),
        unpatched=_about(np.concatenate(runs)),
        patched=_about(np.concatenate(cells)),
        patched_minus_unpatched=_about(np.concatenate(within)),
        mean_grid=_about(np.concatenate(means)),
        recovered_share=_about(np.concatenate(shares)),
        largest_recovered_share=float(max(np.nanmax(_recovered(x)) for x in exact)),
        correlation_of_grids=float(
            min(
                np.corrcoef(_mean(x).ravel(), _mean(y).ravel())[0, 1]
                for x, y in zip(exact, rounded, strict=True)
            )
        ),
        largest_logit_difference=float(max(np.nanmax(np.abs(x.values)) for x in exact)),
    )


def _unpatched(x, y):
    yield x.clean, y.clean
    yield x.corrupt, y.corrupt


def _mean(grid) -> np.ndarray:
    """Mean over pairs; dims source x target x layer x column."""
    return np.nanmean(grid.values.astype(np.float64), axis=2)


def _recovered(grid) -> np.ndarray:
    from posttrace.figures.measures.patching import recovered_share

    return recovered_share(_mean(grid), grid.clean.mean(1)[:, None], grid.corrupt.mean(1)[None])


def _about(values: np.ndarray) -> dict:
    some = np.abs(values[np.isfinite(values)])
    median, high = np.quantile(some, [0.5, 0.95])
    return {"n": len(some), "median": float(median), "95 %": float(high), "largest": float(some.max())}


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=24, help="of each set")
    parser.add_argument("--json", type=Path, help="where to write; benchmarks/results by default")
    arguments = parser.parse_args()
    head = header(
        "precision", device="cpu", dtype="16 bits", threads=torch.get_num_threads(), quick=False, rounds=1
    )
    keep(
        arguments.json,
        "precision-cpu",
        False,
        head,
        measure(SETS, arguments.pairs, ("base", "sft", "instruct")),
    )


if __name__ == "__main__":
    main()
