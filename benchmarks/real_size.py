"""Time and peak memory of what reads a store of real size: figures, show, verify, and analysis without a model.

    python -m benchmarks.real_size --study truthfulness

Stores are synthetic: the arrays, units and markers are those of a job on three models of the 8B shape (no weights), the
values are random. They take up to 14 GB of disk, one study at a time, and are removed. Each reader runs in a process of
its own, whose peak is what the system says of it.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import ROOT
from benchmarks.records import header, write

SHAPE: dict[str, Any] = dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
)
TINY = SHAPE | dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=4096
)
BARS = {"figures_seconds": 180.0, "peak_mib": 4096.0}
TOPICS = ("cities", "facts", "inventors", "animal_class", "element_symb", "sp_en_trans")
CHEAP = {"learn", "accuracy", "effect", "chosen", "selection"}
"""Kinds of analysis that are done as a job does them while a store is written."""
TRIED = {
    "truthfulness": ("fit", "learn", "probe", "accuracy", "effect"),
    "confidence": ("chosen",),
    "refusal": ("selection",),
    "difference": ("compare", "analyse"),
}
"""Kinds of analysis of which one unit is measured."""


def jobs(folder: Path) -> dict[str, list[str]]:
    """Return study -> the changes to its built-in job that make it one of real size; `z` is knowledge by heads."""
    stages = ", ".join(f"{stage}: {folder / 'models' / stage}" for stage in ("base", "sft", "instruct"))
    common = [f"family={{name: 8B, stages: {{{stages}}}}}", "dtype=bfloat16", "execution.device=cpu"]
    sets = [
        f"{{name: {name}, csv: {folder / name}.csv}}" for topic in TOPICS for name in (topic, f"neg_{topic}")
    ]
    return {
        "knowledge": [*common, "max_pairs=null"],
        "z": [*common, "site=z", "sets=[cities, larger_than]", "max_pairs=null"],
        "truthfulness": [*common, f"sets=[{', '.join(sets)}]"],
        "refusal": common,
        "confidence": common,
        "trace": common,
        "stages": [*common, "dtype=auto"],
        # Random final states do not have the entropies that are stored.
        "difference": [*common, "execution.check_share=0"],
    }


def make_inputs(folder: Path, sizes: dict, statements: int) -> None:
    """Write three models with no weights but the unembedding, and twelve sets of statements."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from posttrace.pipeline.spec import families

    for stage, source in families()["embedded"].items():
        target = folder / "models" / stage
        target.mkdir(parents=True)
        LlamaConfig(
            **sizes, dtype="bfloat16", tie_word_embeddings=False, architectures=["LlamaForCausalLM"]
        ).save_pretrained(target)
        for file in Path(source).iterdir():
            if file.suffix in (".json", ".jinja") and file.name not in (
                "config.json",
                "model.safetensors.index.json",
            ):
                shutil.copy(file, target)
        # Looked for by the study of neurons, read by `difference`: the same ones for all stages.
        weights = target / "model.safetensors"
        if stage == "base":
            first = weights
            shape = sizes["vocab_size"], sizes["hidden_size"]
            unembedding = torch.randn(shape, dtype=torch.bfloat16)
            norm = torch.ones(shape[1], dtype=torch.bfloat16)
            save_file({"lm_head.weight": unembedding, "model.norm.weight": norm}, first)
        else:
            os.link(first, weights)
    rng = random.Random(0)
    words = ["north", "river", "stone", "garden", "winter", "letter", "market", "silver", "bridge", "island"]
    for topic in TOPICS:
        for name, verb in ((topic, "is in"), (f"neg_{topic}", "is not in")):
            with (folder / f"{name}.csv").open("w", newline="") as stream:
                out = csv.writer(stream)
                out.writerow(["statement", "label"])
                for i in range(statements):
                    one, two, three = rng.sample(words, 3)
                    out.writerow([f"The {one} of {two} {i} {verb} {three}.", i % 2])


def prepared(name: str, folder: Path):
    """Return the study of a job, whose models have no weights."""
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.plan import prepare
    from posttrace.pipeline.stages import Stages

    Stages.check_weights = lambda self: None  # type: ignore[method-assign]
    return prepare(load_job("knowledge" if name == "z" else name, jobs(folder)[name]))


def make_store(study, url: str) -> None:
    """Write every unit of a study: random values, and its own analysis where that takes no time."""
    from posttrace.pipeline.plan import declaration, fingerprint
    from posttrace.stores import Store

    units = [one.unit for one in study.work]
    store = Store.create(
        url, study.groups, units, job=declaration(study), fingerprint=fingerprint(study), provenance={}
    )
    values = Values(study)
    with store.lease():
        for one in study.work:
            done = study.run(one, None, store)[0] if one.kind in CHEAP else values.of(one.unit)
            store.write(one.unit, done, record={"seconds": 1.0})
        store.finalise()


class Values:
    """Random values that the readers of a study accept."""

    SIGNED = (
        "logit",
        "log_odds",
        "activation",
        "attribution",
        "direction",
        "hidden_sum",
        "stream",
        "final",
        "p_diff",
        "probe_",
    )

    def __init__(self, study):
        self.groups = {group.path: group for group in study.groups}
        self.rng = np.random.default_rng(0)
        self.normal = self.rng.standard_normal(2**22).astype("float32")
        self.uniform = self.rng.uniform(0.05, 0.95, 2**22).astype("float32")
        self.bits = (self.normal.view("uint32") >> 16).astype("uint16")
        self.layers = study.stages.n_layers

    def of(self, unit) -> dict[str, np.ndarray]:
        """Return the arrays of a unit."""
        return {name: self._array(unit, name) for name in unit.arrays}

    def _array(self, unit, name: str) -> np.ndarray:
        group = self.groups[unit.group]
        window = group.window(name, unit.region, unit.id)
        shape = [w.stop - w.start for w in window]
        dtype = group.array(name).dtype
        n = int(np.prod(shape))
        if dtype == "bfloat16":
            return self._some(self.bits, n).reshape(shape)
        if dtype == "string":
            return np.array([f"answer {i % 97} goes on." for i in range(n)], dtype=object).reshape(shape)
        if dtype == "bool":
            return (self._some(self.uniform, n) > 0.4).reshape(shape)
        if dtype.startswith("int"):
            return self._whole(group, name, n).reshape(shape).astype(dtype)
        source = self.normal if any(word in name for word in self.SIGNED) else self.uniform
        found = self._some(source, n).reshape(shape).astype(dtype)
        return np.clip(found, -0.9, 0.9) if name.startswith("p_diff") else found

    def _some(self, stock: np.ndarray, n: int) -> np.ndarray:
        """Return n values of a stock, another part of it each time."""
        start = int(self.rng.integers(len(stock)))
        return np.resize(np.roll(stock[: min(n, len(stock))], start), n)

    def _whole(self, group, name: str, n: int) -> np.ndarray:
        if "layer" in name:
            return np.full(n, self.layers // 2)
        if name == "candidate":
            return self.rng.permutation(group.sizes["neuron"])[:n]
        if name == "extreme_sample":
            return self.rng.integers(0, group.sizes["sample"], n)
        return self.rng.integers(1, 100, n)


def measured(arguments: Iterable[str]) -> dict[str, Any]:
    """Run a command; returns seconds, CPU seconds and peak memory (MiB) of its process, and how it ended."""
    begin, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, stdout=said, stderr=said)
        while True:
            # What the system reports at the end would include the memory of this process, before the command began.
            peak = max(peak, _peak_kib(process.pid))
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return dict(
        seconds=round(time.perf_counter() - begin, 1),
        cpu_seconds=round(used.ru_utime + used.ru_stime, 1),
        peak_mib=round(peak / 1024),
        status=process.returncode,
        **({"said": text[-2000:]} if process.returncode else {}),
    )


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def measure(name: str, sizes: dict, statements: int, folder: Path) -> dict[str, Any]:
    """Write the store of a study, measure its readers, and remove it."""
    make_inputs(folder, sizes, statements)
    url = str(folder / "store")
    begin = time.perf_counter()
    study = prepared(name, folder)
    make_store(study, url)
    found: dict[str, Any] = dict(
        name=name,
        bytes=sum(file.stat().st_size for file in Path(url).rglob("*") if file.is_file()),
        units=len(study.work),
        seconds_to_write=round(time.perf_counter() - begin, 1),
    )
    found["show"] = measured(["posttrace", "show", url])
    found["figures"] = measured(["posttrace", "figures", url, "--out", str(folder / "figures")])
    found["verify"] = measured(["posttrace", "verify", url])
    for kind in TRIED.get(name, ()):
        unit = next(one.unit.id for one in study.work if one.kind == kind)
        options = ["--folder", str(folder), "--study", name, "--unit", unit]
        found[f"analysis: {kind}"] = measured(["benchmarks.real_size", *options])
    return found


def analyse(name: str, folder: Path, unit: str) -> None:
    """Do one unit of a store's analysis again, without writing it."""
    from posttrace.stores import Store

    study = prepared(name, folder)
    work = next(one for one in study.work if one.unit.id == unit)
    study.run(work, None, Store.open(folder / "store"))


def main() -> None:
    """Measure, and write the JSON after every study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", action="append", help="may be repeated; all by default")
    parser.add_argument(
        "--statements", type=int, default=1250, help="of each of the twelve sets of truthfulness"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models: whether it runs at all")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "real_size-cpu.json")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unit:
        analyse(arguments.study[0], arguments.folder, arguments.unit)
        return
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    head = header(
        "real size", device="cpu", dtype="bfloat16", threads=threads, quick=arguments.tiny, rounds=1
    )
    records = []
    for name in arguments.study or list(jobs(Path())):
        with tempfile.TemporaryDirectory() as folder:
            records.append(
                measure(name, TINY if arguments.tiny else SHAPE, arguments.statements, Path(folder))
            )
        print(records[-1], flush=True)
        write(arguments.json, head | dict(bars=BARS), records)


if __name__ == "__main__":
    main()
