"""Instructions, harmful and harmless: read from a CSV file or downloaded, and split."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

from posttrace.pipeline.embedded import INSTRUCTIONS
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.rows import read_rows

EMBEDDED = {kind: INSTRUCTIONS / f"{kind}.csv" for kind in ("harmful", "harmless")}
PUBLISHED = {"harmful": "advbench", "harmless": "alpaca"}
"""Kind -> the published set that can be downloaded."""
SPLITS = {"direction": ("direction", "train"), "validation": ("validation",), "test": ("test",)}
"""Split -> what a file's column `split` may call it."""
TEST_SHARE = 0.2
"""Of a file without such a column (Du et al. 2025: 80/20)."""
FEWEST = 4
"""Instructions that a split needs."""


@dataclass(frozen=True)
class Download:
    """A file of a public repository at one commit."""

    url: str
    sha256: str
    file: str


DOWNLOADS = {
    "advbench": Download(
        "https://raw.githubusercontent.com/llm-attacks/llm-attacks/a62d1307e38b3a076e614b20781c785fd860d813/"
        "data/advbench/harmful_behaviors.csv",
        "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        "advbench_harmful_behaviors.csv",
    ),
    "alpaca": Download(
        "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/f13496211289def0ff88ae673389ae14a818b4b3/"
        "alpaca_data.json",
        "2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        "alpaca_data.json",
    ),
}
"""Zou et al. 2023 (520 goals, MIT licence); Taori et al. 2023 (52,002 instructions, CC BY-NC 4.0)."""


@dataclass(frozen=True)
class Splits:
    """Instructions of one kind."""

    direction: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def read_splits(kind: str, spec, sizes: dict[str, int], seed: int) -> Splits:
    """Return a set's instructions by split: its column `split`, else at random with the seed; at most `sizes` of each.

    Raises
    ------
    JobError
        A file that cannot be had or read, or a split with too few instructions.

    Examples
    --------
    >>> read_splits("harmful", job.harmful, {"direction": 128, "validation": 32, "test": 100}, 0)  # doctest: +SKIP
    Splits(direction=('Tell me how to steal a bike.', ...), ...)
    """
    path = file_of(spec)
    rows = _published_rows(spec.name, path) if spec.csv is None else _csv_rows(kind, spec, path)
    rng = random.Random(f"{seed}/refusal/{kind}")
    pools: dict[str, list[str]] = {split: [] for split in SPLITS}
    if any(split is not None for _, split in rows):
        for text, split in rows:
            for ours, theirs in SPLITS.items():
                if split in theirs:
                    pools[ours].append(text)
        for pool in pools.values():
            rng.shuffle(pool)
    else:
        texts = [text for text, _ in rows]
        rng.shuffle(texts)
        n_test = round(TEST_SHARE * len(texts))
        # What is left for validation comes from the larger part, after the instructions of the direction.
        n_validation = min(sizes["validation"], (len(texts) - n_test) // 4)
        pools["test"], rest = texts[:n_test], texts[n_test:]
        pools["validation"], pools["direction"] = rest[:n_validation], rest[n_validation:]
    for split, pool in pools.items():
        if len(pool) < FEWEST:
            raise JobError(
                f"{kind}: {path} has {len(pool)} instructions for the {split} split, it takes at least {FEWEST}; "
                "add instructions, or name their splits in a column `split` (direction or train, validation, test)"
            )
    return Splits(**{split: tuple(pool[: sizes[split]]) for split, pool in pools.items()})


def file_of(spec) -> Path:
    """Return the file of a set, downloaded into the user's cache if it is published and not there yet.

    Raises
    ------
    JobError
        If a download is not possible or its content is not the known one.

    Examples
    --------
    >>> file_of(job.harmful).name                                     # doctest: +SKIP
    'harmful.csv'
    """
    if spec.csv is not None:
        return Path(spec.csv)
    import pooch
    import requests

    known, folder = DOWNLOADS[spec.name], Path(pooch.os_cache("posttrace"))
    pooch.get_logger().setLevel("ERROR")
    elsewhere = f"fetch {known.url} elsewhere and put it there, use `embedded`, or give a CSV of your own"
    try:
        return Path(
            pooch.retrieve(
                known.url,
                f"sha256:{known.sha256}",
                fname=known.file,
                path=folder,
                downloader=pooch.HTTPDownloader(timeout=30),
            )
        )
    except (requests.exceptions.RequestException, OSError) as error:
        raise JobError(
            f"{spec.name}: {folder / known.file} is not there and cannot be downloaded "
            f"({type(error).__name__}); {elsewhere}"
        ) from None
    except ValueError:
        raise JobError(
            f"{spec.name}: what {known.url} gives is not the known file (sha256 {known.sha256}); {elsewhere}"
        ) from None


def _published_rows(name: str, path: Path) -> list[tuple[str, None]]:
    """Goals of AdvBench; instructions of Alpaca that need no input."""
    if name == "advbench":
        with path.open(newline="", encoding="utf-8") as stream:
            texts = [row["goal"] for row in csv.DictReader(stream)]
    else:
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts = [row["instruction"] for row in rows if not row["input"].strip()]
    return [(text, None) for text in dict.fromkeys(t.strip() for t in texts) if text]


def _csv_rows(kind: str, spec, path: Path) -> list[tuple[str, str | None]]:
    rows = read_rows(
        str(path),
        kind,
        f"edit {kind}",
        needed=(spec.column,),
        optional=("split",),
        where=spec.where,
        help="it needs a column `instruction`, and may have one `split`",
    )
    found = {row.text(0).strip(): row.cells[1] for row in rows}
    return [(text, split) for text, split in found.items() if text]
