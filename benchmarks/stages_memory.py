"""Peak memory of the stages study on a synthetic pair of sharded checkpoints, of which one is to be in memory whole.

    python -m benchmarks.stages_memory                  2 GiB on disk, to benchmarks/results/
    python -m benchmarks.stages_memory --quick          a small pair, printed only
    python -m benchmarks.stages_memory --folder /big/disk

One stage is open, the other is read from its files: kept, or one module at a time as where memory is short.
Each way attributes one update, swaps four settings and removes the update, in a process of its own. The result is how
far resident memory rises above that of the open model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cyclopts

from benchmarks.peers import ROOT
from benchmarks.records import header, keep
from benchmarks.shapes import tokenizer
from benchmarks.weights_memory import MIB, SMALL, make_checkpoint, memory_of, shape_of

app = cyclopts.App(help=__doc__, version_flags=[])
BIG = SMALL | dict(hidden_size=2048, intermediate_size=7168, num_hidden_layers=8, num_attention_heads=16,
                   num_key_value_heads=4)  # fmt: skip
TOKENS, PROMPTS = 12, 2
WAYS = {
    "one module at a time": ("float32", False),
    "one module at a time, weights held in bfloat16": ("bfloat16", False),
    "kept": ("float32", True),
}
"""Name -> how the model's weights are held, and whether the second checkpoint is kept."""


@app.default
def main(
    *, quick: bool = False, json_file: Path | None = None, folder: Path | None = None, threads: int = 2
) -> None:
    """Make the pair, measure both ways, remove it, print, write JSON (to benchmarks/results/ by default)."""
    sizes = SMALL if quick else BIG
    with tempfile.TemporaryDirectory(dir=folder, prefix="posttrace-stages-") as place:
        pair = [Path(place) / name for name in ("earlier", "later")]
        made = [
            make_checkpoint(one, sizes, (64 if quick else 300) * MIB, seed) for seed, one in enumerate(pair)
        ]
        head = header(
            "stages memory",
            shape=shape_of(sizes),
            device="cpu",
            dtype="float32",
            threads=threads,
            quick=quick,
            rounds=1,
        )
        rows = [
            dict(name=name, pair_bytes=sum(size for size, _ in made), shards=sum(n for _, n in made))
            | measured(*pair, name, threads)
            for name in WAYS
        ]
    for row in rows:
        print(
            f"{row['pair_bytes'] / 2**30:.2f} GiB in {row['shards']} shards, {row['name']}: "
            f"{row['peak_bytes'] / MIB:.0f} MiB above the open model of {row['model_bytes'] / MIB:.0f} MiB; "
            f"{row['seconds']:.0f} s, largest |residual| {row['residual']:.1e}"
        )
    keep(json_file, "stages_memory-cpu", quick, head, rows)


def measured(earlier: Path, later: Path, name: str, threads: int) -> dict:
    """Measure in a separate process and return its record."""
    module = "benchmarks.stages_memory"
    command = [sys.executable, "-m", module, "measure", str(earlier), str(later), name, str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@app.command
def measure(earlier: Path, later: Path, name: str, threads: int) -> None:
    """Attribute, swap and remove an update in this process, and print the record as JSON."""
    import torch
    from transformers import LlamaForCausalLM

    from posttrace.tracers.engines.behaviours import LogOdds, Row
    from posttrace.tracers.engines.path_attribution import path_attribution
    from posttrace.tracers.engines.swaps import cut, only, swapped_values
    from posttrace.tracers.engines.weights import removed_values
    from posttrace.tracers.models.loading import empty_model, quiet_libraries, wrap
    from posttrace.tracers.models.safetensors import Checkpoint
    from posttrace.tracers.models.updates import Streamed, Update
    from posttrace.tracers.models.weighted import parts_of

    quiet_libraries()
    torch.set_num_threads(threads)
    dtype, kept = WAYS[name]
    module = LlamaForCausalLM.from_pretrained(later, dtype=getattr(torch, dtype)).eval()
    for parameter in module.parameters():
        # Out of the mapped file, whose pages come when they are first read.
        parameter.data = parameter.data.clone()
    model = wrap(module, tokenizer(module.config.vocab_size), name="later", check=False)
    parameters = dict(module.named_parameters())
    update = Update(empty_model(str(later)), Checkpoint(str(earlier)), Checkpoint(str(later)))
    prompts = [
        (Row(tuple(range(3 + i, 3 + i + TOKENS)), (TOKENS - 1,), LogOdds((5,), (6,))),)
        for i in range(PROMPTS)
    ]
    n = len(parts_of(model.n_layers))
    settings = [
        cut(0, n, below=True),
        cut(n // 2, n, below=True),
        only(n // 2, n, later=True),
        only(0, n, later=True),
    ]
    baseline = memory_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin = time.perf_counter()
    difference, before = (
        Streamed(read, parameters, keep=kept) for read in (update.difference, update.earlier)
    )
    found = path_attribution(model, prompts, difference, tolerance=1.0)
    swapped = swapped_values(model, prompts, before, settings)
    removed = removed_values(model, prompts, difference, alphas=[1.0])
    seconds = time.perf_counter() - begin
    largest = max(p.numel() * 4 for p in parameters.values())
    assert torch.allclose(removed[0], swapped[0], atol=1e-2), (removed, swapped)
    record = dict(
        seconds=seconds,
        baseline_bytes=baseline,
        peak_bytes=memory_of("VmHWM") - baseline,
        model_bytes=sum(p.numel() * p.element_size() for p in parameters.values()),
        largest_tensor_bytes=largest,
        residual=float(found.residual.abs().max()),
    )
    print(json.dumps(record))


if __name__ == "__main__":
    app()
