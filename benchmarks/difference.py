"""Comparing two stages on a text, against their forward passes alone.

    python -m benchmarks.difference                to benchmarks/results/
    python -m benchmarks.difference --quick --json quick.json

Two stages with random weights (the second is the first with noise) run documents of the embedded corpus. *Bare*: plain
transformers forward passes over the documents of a unit, both stages one after the other, with logits at every token
and no cache. *Difference*: every unit of a job of the study without steering and patchscope, each written to a Zarr
store. Opening a model is timed in neither. Turns alternate. The vocabulary counts: both ordered pairs are compared at
every token. What is done once a set, whatever its size, is most of a small one's time: sets of two sizes are measured.
"""

from __future__ import annotations

import gc
import resource
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import cyclopts

from benchmarks.records import header, keep

app = cyclopts.App(help=__doc__, version_flags=[])
SIZES = {"small": (8, 256, 2048), "large": (12, 1024, 32_000)}
"""Name -> blocks, hidden size, vocabulary."""
WARM_UP = 8
"""Documents of the first turn, which is not counted."""


@app.default
def main(
    *,
    quick: bool = False,
    json: Path | None = None,
    device: str = "cpu",
    rounds: int | None = None,
    documents: tuple[int, ...] = (64, 320),
    tokens: int = 96,
    threads: int = 2,
) -> None:
    """Measure, print, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given)."""
    import torch

    torch.set_num_threads(threads)
    rounds = rounds or (1 if quick else 3)
    head = header("difference", device=device, dtype="float32", threads=threads, quick=quick, rounds=rounds)
    head["text"] = dict(tokens=tokens)
    records = []
    for name in ["small"] if quick else SIZES:
        for number in documents[:1] if quick else documents:
            row = compare(name, *SIZES[name], documents=number, tokens=tokens, rounds=rounds, device=device)
            records.append(row)
            print(
                f"{name:<8}{number} documents: bare {row['seconds_bare']:.2f} s, difference {row['seconds']:.2f} s: "
                f"{row['ratio']:.2f}x ({row['ratio_cpu']:.2f}x in CPU time), of which in CPU time "
                + ", ".join(f"{kind} {share:.2f}x" for kind, share in row["ratio_cpu_by_kind"].items()),
                flush=True,
            )
            keep(json, f"difference-{device.replace(':', '')}", quick, head, records)


def compare(
    name: str,
    layers: int,
    hidden: int,
    vocabulary: int,
    *,
    documents: int,
    tokens: int,
    rounds: int,
    device: str,
) -> dict:
    """Return the record of one size, with seconds for all documents."""
    from posttrace.pipeline.job import make_job
    from posttrace.pipeline.plan import declaration, fingerprint, prepare
    from posttrace.stores import Store
    from posttrace.tracers.models.loading import open_model

    clocks: dict[str, list[dict[str, tuple[float, float]]]] = {"bare": [], "difference": []}
    with tempfile.TemporaryDirectory() as folder:
        stages = make_stages(Path(folder), layers, hidden, vocabulary)
        study, few = (
            prepare(
                make_job(
                    {
                        "study": "difference",
                        "family": {"name": name, "stages": stages},
                        "texts": [{"name": "plain", "documents": number, "tokens": tokens}],
                        "steering": None,
                        "patchscope": None,
                        "execution": {"device": device},
                    }
                )
            )
            for number in (documents, WARM_UP)
        )
        few.unembeddings = study.unembeddings
        models = {stage: open_model(path, device=device) for stage, path in stages.items()}
        for turn in range(-1, rounds):
            now = few if turn < 0 else study
            for way in ("bare", "difference")[:: 1 if turn % 2 else -1]:
                gc.collect()
                if way == "bare":
                    taken = run_bare(now, models)
                else:
                    url = str(Path(folder) / "store")
                    store = Store.create(
                        url,
                        now.groups,
                        [w.unit for w in now.work],
                        declaration(now),
                        fingerprint(now),
                        {},
                    )
                    taken = run_study(now, models, store)
                    shutil.rmtree(url)
                if turn >= 0:
                    clocks[way].append(taken)
    turns = list(zip(clocks["bare"], clocks["difference"], strict=True))

    def ratio(clock: int, kinds=None) -> float:
        return statistics.median(
            sum(t[clock] for kind, t in ours.items() if kinds is None or kind in kinds)
            / bare["forward"][clock]
            for bare, ours in turns
        )

    return dict(
        name=name,
        method="difference",
        device=device,
        cells=0,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        documents=documents,
        seconds=statistics.median(sum(t[0] for t in ours.values()) for _, ours in turns),
        seconds_bare=statistics.median(bare["forward"][0] for bare, _ in turns),
        ratio=ratio(0),
        ratio_cpu=ratio(1),
        ratio_by_kind={kind: ratio(0, {kind}) for kind in turns[0][1]},
        ratio_cpu_by_kind={kind: ratio(1, {kind}) for kind in turns[0][1]},
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def make_stages(folder: Path, layers: int, hidden: int, vocabulary: int) -> dict[str, str]:
    """Save two stages with random weights and the embedded tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from posttrace.pipeline.spec import families

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256), intermediate_size=hidden * 7 // 2, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(families()["embedded"]["base"])
    stages = {stage: str(folder / stage) for stage in ("base", "tuned")}
    for stage, path in stages.items():
        if stage == "tuned":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.1 * weight.std() * torch.randn_like(weight))
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return stages


def run_bare(study, models) -> dict[str, tuple[float, float]]:
    """Run the documents of every unit through both plain models; seconds and CPU seconds."""
    import torch

    from posttrace.tracers.batching.padding import right_padded

    taken: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    (texts,) = study.inputs.values()
    with torch.no_grad():
        for stage, model in models.items():
            for begin, end in texts.units:
                ids, real = right_padded([d.ids[stage] for d in texts.documents[begin:end]])
                inputs = dict(input_ids=ids.to(model.device), attention_mask=real.long().to(model.device))
                with timed(taken, "forward"):
                    model.nn._module(**inputs, use_cache=False).logits.sum().item()
    return dict(taken)


def run_study(study, models, store) -> dict[str, tuple[float, float]]:
    """Run and write every unit; seconds and CPU seconds of each kind of unit."""
    from posttrace.pipeline.writer import Writer

    taken: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for work in study.work:
        with timed(taken, work.kind), Writer(store) as writer:
            writer.write(work.unit, *study.run(work, models.get(work.stage), store))
    return dict(taken)


@contextmanager
def timed(taken: dict[str, tuple[float, float]], kind: str):
    """Add what is done within to the seconds and CPU seconds of a kind."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = taken[kind]
    taken[kind] = seconds + time.perf_counter() - begin, cpu + time.process_time() - begin_cpu


if __name__ == "__main__":
    app()
