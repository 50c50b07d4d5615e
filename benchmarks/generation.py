"""Greedy generation with a direction ablated at every layer, against hooks with `generate` and the paper's loop.

    python -m benchmarks.generation                      to benchmarks/results/
    python -m benchmarks.generation --quick --json quick.json
    python -m benchmarks.generation --device cuda --model llama-3.1-8b-shape --rounds 5

All methods start from the same prompts of unequal length, padded on the left, and generate the same number of tokens
greedily; nothing ends early. Turns alternate, and ratios are medians over rounds. The paper's loop has no cache: it
traces the whole text again for every token.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import cyclopts

from benchmarks.records import header, keep
from benchmarks.shapes import FIRST_WORD, SHAPES, Shape, random_module, tokenizer

PROMPT = (20, 40)
"""Tokens of the shortest and of the longest prompt."""
POSTTRACE, HOOKS, NEEDED, LOOP = (
    "posttrace",
    "transformers generate, a hook for every change",
    "transformers generate, hooks for the needed changes only",
    "a trace a token, no cache (the paper's loop)",
)

app = cyclopts.App(help=__doc__, version_flags=[])


@app.default
def main(
    *,
    quick: bool = False,
    json: Path | None = None,
    device: str = "cpu",
    model: str = "small",
    prompts: int = 32,
    new_tokens: int = 16,
    rounds: int | None = None,
    threads: int = 2,
) -> None:
    """Measure, print, write JSON (to benchmarks/results/ by default, for a quick run only if `json` is given)."""
    shape, rounds = SHAPES[model].but(pairs=prompts), rounds or (3 if quick else 15)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    options = dict(device=device, dtype=dtype, threads=threads)
    head = header("generation", shape=shape, quick=quick, rounds=rounds, **options)
    head |= dict(prompt_tokens=PROMPT, new_tokens=new_tokens)
    records = compare(shape, new_tokens=new_tokens, rounds=rounds, **options)
    for row in records:
        print(
            f"{row['name']:<58}{row['tokens_per_second']:10.1f} tokens/s {row['ratio_to_hooks']:6.3f} of hooks "
            f"({row['ratio_to_hooks_cpu']:.3f} in CPU time; needed ones {row['ratio_to_needed_hooks']:.3f}, "
            f"{row['ratio_to_needed_hooks_cpu']:.3f}) "
            f"{row['ratio_to_paper_loop']:6.2f}x the loop, {row['same_tokens']:.1%} same tokens"
        )
    keep(json, f"generation-{device.replace(':', '')}-{model}", quick, head, records)


def compare(
    shape: Shape, *, new_tokens: int, rounds: int, device: str, dtype: str, threads: int, module=None
) -> list[dict]:
    """Return a record for each method, with seconds for all prompts; `module` is a loaded model of that shape."""
    import torch

    from benchmarks.floor import synchronize
    from posttrace.tracers.batching.padding import left_padded
    from posttrace.tracers.engines.generation import Openings, generate
    from posttrace.tracers.engines.steering import ablation
    from posttrace.tracers.models.loading import wrap

    torch.set_num_threads(threads)
    module = module or random_module(shape, device=device, dtype=dtype)
    model = wrap(module, tokenizer(shape.vocab), name="random", check=False)
    rng = random.Random(0)
    texts = [
        [rng.randrange(FIRST_WORD, shape.vocab) for _ in range(rng.randint(*PROMPT))]
        for _ in range(shape.pairs)
    ]
    inputs = {name: value.to(device) for name, value in left_padded(texts).items()}
    vector = torch.randn(shape.hidden, generator=torch.Generator().manual_seed(0))
    unit = (vector / vector.norm()).to(device, getattr(torch, dtype))
    edits = ablation(vector, model.architecture.sites, model.n_layers)

    def ours():
        done = generate(
            model, texts, edits, Openings((3,), (4,)), max_new_tokens=new_tokens, max_tokens=10**9
        )
        return torch.tensor(done.ids)

    def hooked(needed):
        with torch.no_grad(), hooks(module, unit, needed):
            out = module.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
            )
        return out[:, inputs["input_ids"].shape[1] :].cpu()

    def loop():
        return _without_cache(model.nn, texts, unit, new_tokens)

    ways = {POSTTRACE: ours, HOOKS: lambda: hooked(False), NEEDED: lambda: hooked(True), LOOP: loop}
    expected = ways[HOOKS]()
    same = {name: float((run() == expected).float().mean()) for name, run in ways.items()}
    seconds: dict = {name: [] for name in ways}
    cpu_seconds: dict = {name: [] for name in ways}
    for turn in range(rounds):
        for name in ways if turn % 2 else reversed(ways):
            gc.collect()
            synchronize(device)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            ways[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - begin_cpu)

    def ratio(to: str, name: str, taken: dict = seconds) -> float:
        """Return the throughput of `name` relative to that of `to`."""
        return statistics.median(t / o for t, o in zip(taken[to], taken[name], strict=True))

    return [
        dict(
            name=name,
            method=name,
            device=device,
            cells=0,
            prompts=len(texts),
            seconds=statistics.median(each),
            seconds_each=each,
            tokens_per_second=len(texts) * new_tokens / statistics.median(each),
            ratio_to_hooks=ratio(HOOKS, name),
            ratio_to_needed_hooks=ratio(NEEDED, name),
            ratio_to_paper_loop=ratio(LOOP, name),
            cpu_seconds=statistics.median(cpu_seconds[name]),
            ratio_to_hooks_cpu=ratio(HOOKS, name, cpu_seconds),
            ratio_to_needed_hooks_cpu=ratio(NEEDED, name, cpu_seconds),
            ratio_to_paper_loop_cpu=ratio(LOOP, name, cpu_seconds),
            ratio_to_floor=None,
            same_tokens=same[name],
            max_abs_diff=None,
            peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        for name, each in seconds.items()
    ]


@contextmanager
def hooks(module, unit, needed: bool):
    """Ablate `unit` with forward hooks at the input, middle and output of every block, or only where it matters."""

    def without(stream):
        return stream - (stream @ unit)[..., None] * unit

    def before(_, args, kwargs):
        return ((without(args[0]), *args[1:]), kwargs)

    def after(_, args, output):
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    handles = []
    for number, block in enumerate(module.model.layers):
        if number == 0 or not needed:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        # If the incoming stream is free of the direction, ablating the middle means ablating the attention output.
        handles += [block.self_attn.register_forward_hook(after), block.register_forward_hook(after)]
    yield
    for handle in handles:
        handle.remove()


def _without_cache(nn, texts, unit, new_tokens: int):
    import torch

    from posttrace.tracers.batching.padding import left_padded

    texts = [list(text) for text in texts]
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = _whole_text(nn, left_padded(texts), unit)
        for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
            text.append(token)
    return torch.tensor([text[-new_tokens:] for text in texts])


def _whole_text(nn, inputs, unit):
    with nn.trace(**inputs, use_cache=False):
        for block in nn.model.layers:
            entered = block.input
            block.input = entered - (entered @ unit)[..., None] * unit
            attended = block.self_attn.output
            block.self_attn.output = (attended[0] - (attended[0] @ unit)[..., None] * unit, *attended[1:])
            left = block.output
            block.output = left - (left @ unit)[..., None] * unit
        logits = nn.lm_head.output[:, -1].save()
    return logits


if __name__ == "__main__":
    app()
