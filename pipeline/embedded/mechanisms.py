"""A quick look inside the family: truth probes, a small patch grid, the refusal direction.

    python -m posttrace.pipeline.embedded.mechanisms --json pipeline/embedded/mechanisms.json

The studies of this project do this properly, on any model; here it is done in a
few lines of plain torch, to know whether a newly trained family is worth
studying, and as an independent check on the studies.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from posttrace.pipeline.embedded import CHECKPOINTS, REFUSAL_PHRASES, STAGES
from posttrace.pipeline.embedded.corpus import LABELS
from posttrace.pipeline.embedded.instructions import KINDS, instructions
from posttrace.pipeline.embedded.measure import answers, few_shot, is_coherent, is_refusal, load
from posttrace.pipeline.embedded.statements import statement_sets

TRUTH_SETS = ("cities", "sp_en_trans", "inventors", "animal_class", "element_symb", "facts")
PAIRS = 16


def residuals(model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`resid_post` of one text, dims layer x token x hidden, and the logits at its last token."""
    kept: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: kept.append(out[0])) for b in model.model.layers]
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return torch.stack(kept), logits


def stream(model, tokenizer, texts: list[str], position: int = -1) -> torch.Tensor:
    """`resid_post` at one token counted from the end, dims text x layer x hidden."""
    out = []
    for text in texts:
        has_begin = text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not has_begin)["input_ids"]
        out.append(residuals(model, ids)[0][:, position])
    return torch.stack(out)


def put(rows: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor):
    """Return a hook that writes `values[tokens[i]]` at token `tokens[i]` of batch row `i`."""

    def patch(_module, _inputs, out):
        out = out.clone()
        out[rows, tokens] = values[tokens]
        return out

    return patch


def without(direction: torch.Tensor):
    """Return a hook that removes the component along a unit vector from a module's output."""
    return lambda _m, _i, out: out - (out @ direction)[..., None] * direction


def truth(models: dict) -> dict:
    """Leave one set out: accuracy of the sign of the projection on the difference of class means.

    `own` uses each stage's direction, `base` the base stage's; `label_cosine` is the
    cosine of the direction (all sets) with the one that writes TRUE rather than FALSE.
    Lists go over layers.
    """
    states, labels = {}, {}
    for stage, (model, tokenizer) in models.items():
        for name in TRUTH_SETS:
            rows = statement_sets()[name]
            h = stream(model, tokenizer, [r.statement for r in rows])
            states[stage, name] = h - h.mean(0)
            labels[name] = torch.tensor([bool(r.label) for r in rows])

    def direction(stage: str, names: list[str]) -> torch.Tensor:
        h = torch.cat([states[stage, n] for n in names])
        y = torch.cat([labels[n] for n in names])
        return h[y].mean(0) - h[~y].mean(0)

    out: dict = {}
    for stage, (model, tokenizer) in models.items():
        out[stage] = {"own": {}, "base": {}}
        for name in TRUTH_SETS:
            rest = [n for n in TRUTH_SETS if n != name]
            for kind, source in (("own", stage), ("base", "base")):
                score = (states[stage, name] * direction(source, rest)).sum(-1) > 0
                accuracy = (score == labels[name][:, None]).float().mean(0)
                out[stage][kind][name] = [round(x, 3) for x in accuracy.tolist()]
        false, true = (tokenizer.encode(t, add_special_tokens=False)[0] for t in LABELS)
        writes = (model.lm_head.weight[true] - model.lm_head.weight[false]) * model.model.norm.weight
        t = direction(stage, list(TRUTH_SETS))
        b = direction("base", list(TRUTH_SETS))
        out[stage]["label_cosine"] = [
            round(x, 3) for x in torch.cosine_similarity(t, writes[None], dim=-1).tolist()
        ]
        out[stage]["base_cosine"] = [round(x, 3) for x in torch.cosine_similarity(t, b, dim=-1).tolist()]
    return out


def city_pairs(tokenizer, count: int = PAIRS) -> list[tuple[str, str, int]]:
    """Return (true prompt, false prompt, statement tokens): same shots, same country, subjects of three tokens."""
    rows = [
        r
        for r in statement_sets()["cities"]
        if r.split == "judged" and len(tokenizer.encode(f" {r.subject}", add_special_tokens=False)) == 3
    ]
    out = []
    used = set()
    for row in rows:
        other = next(
            (
                f
                for f in rows
                if row.label
                and not f.label
                and f.object == row.object
                and f.statement not in used
                and f.subject != row.subject
            ),
            None,
        )
        if other:
            used.add(other.statement)
            clean = few_shot("cities", row)
            corrupt = clean.rpartition(row.statement)
            false = corrupt[0] + other.statement + corrupt[2]
            if other.subject not in corrupt[0]:
                tail = row.statement + corrupt[2]
                out.append((clean, false, len(tokenizer.encode(tail, add_special_tokens=False))))
    return out[:count]


def patch_grid(source, target, tokenizer, pairs) -> tuple[torch.Tensor, float, float]:
    """Mean logit difference after each patch (dims layer x token), and unpatched clean and corrupt."""
    false, true = (tokenizer.encode(t, add_special_tokens=False)[0] for t in LABELS)
    layers = len(target.model.layers)
    grids, ends = [], []
    for clean_text, corrupt_text, width in pairs:
        clean, corrupt = (tokenizer(t, return_tensors="pt")["input_ids"] for t in (clean_text, corrupt_text))
        values, first = residuals(source, clean)
        last = residuals(target, corrupt)[1]
        rows = torch.arange(width)
        tokens = corrupt.shape[1] - width + rows
        grid = torch.zeros(layers, width)
        for layer in range(layers):
            hook = target.model.layers[layer].register_forward_hook(put(rows, tokens, values[layer]))
            with torch.no_grad():
                logits = target(corrupt.expand(width, -1)).logits[:, -1]
            hook.remove()
            grid[layer] = logits[:, true] - logits[:, false]
        grids.append(grid)
        ends.append(((first[true] - first[false]).item(), (last[true] - last[false]).item()))
    clean, corrupt = (sum(e[i] for e in ends) / len(ends) for i in (0, 1))
    return torch.stack(grids).mean(0), clean, corrupt


def knowledge(models: dict) -> dict:
    """Patch grids of base and instruct on cities and their correlation."""
    tokenizer = models["base"][1]
    pairs = city_pairs(tokenizer)
    grids = {s: patch_grid(models[s][0], models[s][0], tokenizer, pairs) for s in models}
    out: dict = {
        s: {
            "grid": [[round(x, 2) for x in r] for r in g.tolist()],
            "clean": round(c, 2),
            "corrupt": round(k, 2),
        }
        for s, (g, c, k) in grids.items()
    }
    tail = tokenizer.encode(pairs[0][0], add_special_tokens=False)[-pairs[0][2] :]
    out["tokens"] = tokenizer.convert_ids_to_tokens(tail)
    out["pairs"] = len(pairs)
    if "instruct" in grids:
        both = torch.stack([grids["base"][0].flatten(), grids["instruct"][0].flatten()])
        out["correlation_base_instruct"] = round(torch.corrcoef(both)[0, 1].item(), 4)
    return out


def prompt(tokenizer, instruction: str, chat: bool) -> str:
    """Return the text a stage sees before it answers, begin token included."""
    if chat:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True
        )
    return f"{tokenizer.bos_token}User: {instruction}\nAssistant:"


def refusal_direction(model, tokenizer, chat: bool, layer: int) -> torch.Tensor:
    """Harmful minus harmless mean of `resid_post` at the last template token, not normalised."""
    means = []
    for kind in KINDS:
        rows = [r for r in instructions(kind) if r.split == "train"][:128]
        means.append(
            stream(model, tokenizer, [prompt(tokenizer, r.instruction, chat) for r in rows])[:, layer].mean(0)
        )
    return means[0] - means[1]


def refusal(model, tokenizer, chat: bool, count: int = 48) -> dict:
    """Share of refusals per layer: harmful with the direction ablated, harmless with it added."""
    phrases = tuple(REFUSAL_PHRASES.read_text(encoding="utf-8").splitlines())
    out: dict = {"ablated_harmful": [], "ablated_coherent": [], "added_harmless": [], "random_ablated": []}
    rows = {k: [r for r in instructions(k) if r.split == "test"][::3][:count] for k in KINDS}
    blocks = model.model.layers
    for layer in range(2, len(blocks) - 1):
        r = refusal_direction(model, tokenizer, chat, layer)
        u = r / r.norm()
        noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(layer))
        for name, v in (("ablated_harmful", u), ("random_ablated", noise / noise.norm())):
            # The embedding, and whatever a block or its MLP writes.
            places = [model.model.embed_tokens, *blocks, *(b.mlp for b in blocks)]
            hooks = [m.register_forward_hook(without(v)) for m in places]
            texts = answers(model, tokenizer, rows["harmful"], chat)
            for hook in hooks:
                hook.remove()
            out[name].append(round(sum(is_refusal(t, phrases) for t in texts) / len(texts), 3))
            if name == "ablated_harmful":
                out["ablated_coherent"].append(round(sum(map(is_coherent, texts)) / len(texts), 3))
        hook = blocks[layer].register_forward_hook(lambda _m, _i, o, r=r: o + r)
        texts = answers(model, tokenizer, rows["harmless"], chat)
        hook.remove()
        out["added_harmless"].append(round(sum(is_refusal(t, phrases) for t in texts) / len(texts), 3))
    out["layers"] = list(range(2, len(blocks) - 1))
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Look inside the embedded family.")
    parser.add_argument("--family", type=Path, default=CHECKPOINTS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    stages = [s for s in STAGES if (args.family / s).exists()]
    models = {s: load(args.family / s) for s in stages}
    found = {
        "truth": truth(models),
        "knowledge": knowledge(models),
        "refusal": {s: refusal(models[s][0], models[s][1], chat=s != "base") for s in stages},
    }
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for stage in stages:
        t = found["truth"][stage]
        for kind in ("own", "base"):
            mean = torch.tensor(list(t[kind].values())).mean(0).tolist()
            print(
                f"truth {stage} {kind} direction, mean over sets, by layer:",
                " ".join(f"{x:.2f}" for x in mean),
            )
        print(f"truth {stage} cosine with the label:", *t["label_cosine"], "| with base:", *t["base_cosine"])
    k = found["knowledge"]
    print(
        "cities grid, base (pairs:",
        k["pairs"],
        "clean",
        k["base"]["clean"],
        "corrupt",
        k["base"]["corrupt"],
        ")",
    )
    print(" ", *(f"{t[:5]:>6}" for t in k["tokens"]))
    for row in k["base"]["grid"]:
        print(" ", *(f"{x:6.1f}" for x in row))
    print("correlation base-instruct:", k.get("correlation_base_instruct"))
    for stage, r in found["refusal"].items():
        print("refusal", stage, json.dumps(r))


if __name__ == "__main__":
    main()
