"""Peak memory of reading the neurons of the last MLP from the files of a synthetic sharded checkpoint.

    python -m benchmarks.weights_memory                  4 GiB on disk, to benchmarks/results/
    python -m benchmarks.weights_memory --quick          a small one, printed only
    python -m benchmarks.weights_memory --folder /big/disk

Shapes are those of Llama-3.1-8B with fewer blocks, in bfloat16, so that the tensors in use (unembedding, final norm,
the last block's output projection) are as large as in the whole model. The checkpoint is removed afterwards. A separate
process reads a tiny checkpoint first; the result is how far its resident memory rises above that.
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
from benchmarks.shapes import Shape

app = cyclopts.App(help=__doc__, version_flags=[])

LLAMA_8B = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=6,
                num_attention_heads=32, num_key_value_heads=8, head_dim=128)  # fmt: skip
SMALL = LLAMA_8B | dict(vocab_size=32000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=2,
                        num_attention_heads=8, num_key_value_heads=2)  # fmt: skip
TINY = SMALL | dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, head_dim=8)
MIB = 2**20


@app.default
def main(
    *, quick: bool = False, json_file: Path | None = None, folder: Path | None = None, threads: int = 2
) -> None:
    """Make the checkpoint, measure, remove it, print, write JSON (to benchmarks/results/ by default)."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="posttrace-weights-") as place:
        big, tiny = Path(place) / "big", Path(place) / "tiny"
        make_checkpoint(tiny, TINY, shard_bytes=MIB)
        size, shards = make_checkpoint(
            big, SMALL if quick else LLAMA_8B, shard_bytes=(64 if quick else 1100) * MIB
        )
        options = dict(device="cpu", dtype="bfloat16", threads=threads, quick=quick, rounds=1)
        head = header("weights memory", shape=shape_of(SMALL if quick else LLAMA_8B), **options)
        row = dict(name="posttrace", checkpoint_bytes=size, shards=shards) | measured(big, tiny, threads)
    print(
        f"{size / 2**30:.2f} GiB in {shards} shards; largest tensor in use "
        f"{row['largest_tensor_bytes'] / MIB:.0f} MiB, "
        f"all in use {row['tensors_in_use_bytes'] / MIB:.0f} MiB; peak {row['peak_bytes'] / MIB:.0f} MiB above "
        f"{row['baseline_bytes'] / MIB:.0f} MiB, {row['peak_over_largest']:.2f} of the largest; {row['seconds']:.0f} s"
    )
    keep(json_file, "weights_memory-cpu", quick, head, [row])


def measured(big: Path, tiny: Path, threads: int) -> dict:
    """Measure in a separate process and return its record."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.weights_memory",
        "measure",
        str(big),
        str(tiny),
        str(threads),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@app.command
def measure(big: Path, tiny: Path, threads: int) -> None:
    """Read the neurons of `big` in this process, after those of `tiny`, and print the record as JSON."""
    import torch

    from posttrace.tracers.models.entropy_neurons import neuron_weights
    from posttrace.tracers.models.loading import empty_model, quiet_libraries
    from posttrace.tracers.models.mlp_neurons import find_neurons
    from posttrace.tracers.models.safetensors import Checkpoint

    quiet_libraries()
    torch.set_num_threads(threads)
    neuron_weights(str(tiny), find_neurons(empty_model(str(tiny))))
    baseline = memory_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin = time.perf_counter()
    neurons = find_neurons(empty_model(str(big)))
    found = neuron_weights(str(big), neurons)
    seconds, peak = time.perf_counter() - begin, memory_of("VmHWM")
    files = Checkpoint(str(big))
    names = (neurons.unembed[0], neurons.norm_weight, neurons.down_weight)
    sizes = [files.tensor(name).n_bytes for name in names]
    record = dict(
        seconds=seconds,
        baseline_bytes=baseline,
        peak_bytes=peak - baseline,
        peak_total_bytes=peak,
        largest_tensor_bytes=max(sizes),
        tensors_in_use_bytes=sum(sizes),
        peak_over_largest=(peak - baseline) / max(sizes),
        neurons=neurons.n_neurons,
        finite=bool(torch.isfinite(found.logit_var).all()),
    )
    print(json.dumps(record))


def make_checkpoint(folder: Path, sizes: dict, shard_bytes: int, seed: int = 0) -> tuple[int, int]:
    """Write a sharded Llama checkpoint with random weights; return its size in bytes and number of shards."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from posttrace.tracers.models.loading import empty_model

    folder.mkdir()
    LlamaConfig(
        **sizes, dtype="bfloat16", tie_word_embeddings=False, architectures=["LlamaForCausalLM"]
    ).save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    some = torch.randn(2**22, generator=generator)
    shapes = {name: tuple(p.shape) for name, p in empty_model(str(folder)).named_parameters()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        n_bytes = 2 * torch.Size(shape).numel()
        if shards[-1] and filled + n_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += n_bytes
    where = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _random(shapes[name], some, generator) for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=where)))
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")), len(shards)


def _random(shape, some, generator):
    """Return random bfloat16 values, made from a stock of them that is rotated for each block."""
    import torch

    n = torch.Size(shape).numel()
    values = torch.empty(n, dtype=torch.bfloat16)
    for begin in range(0, n, len(some)):
        shift = int(torch.randint(len(some), (1,), generator=generator))
        part = 0.02 * some.roll(shift)[: n - begin]
        values[begin : begin + len(part)] = part.to(torch.bfloat16)
    return values.view(shape)


def memory_of(key: str) -> int:
    """Return an entry of this process's status, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(key)))


def shape_of(sizes: dict) -> Shape:
    return Shape(
        layers=sizes["num_hidden_layers"], hidden=sizes["hidden_size"], heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"], intermediate=sizes["intermediate_size"], vocab=sizes["vocab_size"],
    )  # fmt: skip


if __name__ == "__main__":
    app()
