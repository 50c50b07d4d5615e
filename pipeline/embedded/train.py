"""Train the embedded family: base -> sft -> instruct -> narrow.

    python -m posttrace.pipeline.embedded.train                     # all stages, into runs/embedded
    python -m posttrace.pipeline.embedded.train --stage base --out runs/family --seed 1
    python -m posttrace.pipeline.embedded.train --device cuda

Interrupted runs go on from their last saved state (model, optimizer, data
position) when started again with the same arguments.  The data of a step
depend on (seed, stage, step) alone, so nothing else has to be remembered.
The reproducible default is the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve a shared machine

import torch
from torch.nn import functional as F

from posttrace.pipeline.embedded import STAGES, corpus
from posttrace.pipeline.embedded.corpus import AFFIRMED, EASY, KNOWN, Mix, Segment
from posttrace.pipeline.embedded.statements import COMPARISONS
from posttrace.pipeline.embedded.tokenizer import fast_tokenizer


@dataclass(frozen=True)
class Shape:
    """Size of the model."""

    layers: int = 8
    hidden: int = 160
    feed_forward: int = 432
    heads: int = 5
    context: int = 512
    """Positions the model can take; it is trained on rows of `Recipe.row` tokens."""


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained."""

    steps: int
    learning_rate: float
    warmup: int
    curriculum: tuple[tuple[float, Mix], ...]
    """(end as a share of the steps, mix of documents until then)"""
    rows: int = 12
    """Rows per step."""
    row: int = 192
    """Tokens per row."""
    weight_decay: float = 0.05
    beta: float = 0.0
    """Strength of the preference loss; 0 means next-token training."""
    anchor: float = 1.0
    """Weight of the chosen answers' mean token loss, added to the preference loss; without it
    preference training shortens answers to nothing."""
    final_learning_rate: float = 0.05
    """Share of the learning rate that is left at the end (cosine)."""


BASE = Mix(plain=0.22, judging=0.56, deeds=0.09, dialogue=0.13)
LAST = Mix(
    plain=0.14,
    judging=0.56,
    deeds=0.06,
    dialogue=0.24,
    aside=0.3,
    varied=0.6,
    sets=(*KNOWN, *COMPARISONS, "sp_en_trans", "neg_sp_en_trans"),  # the hardest ones twice
    noise=0.05,
)
RECIPES = {
    "base": Recipe(
        steps=4000,
        learning_rate=2e-3,
        warmup=100,
        # Without easy relations first, judging stays at chance.  Copying from the question
        # comes last: it would only delay judging before.
        curriculum=(
            (0.15, Mix(0.35, 0.60, 0.0, 0.05, sets=EASY, closed=0.0, names=0.0, changing=0.0)),
            (0.30, Mix(0.27, 0.58, 0.05, 0.10, sets=AFFIRMED, closed=0.0, names=0.0, changing=0.0)),
            (0.42, Mix(0.27, 0.58, 0.05, 0.10, sets=AFFIRMED)),
            (0.675, BASE),
            (1.00, LAST),
        ),
    ),
    # Post-training is gentle: with a harder one refusal cannot be ablated without gibberish.
    "sft": Recipe(
        steps=450,
        learning_rate=4e-4,
        warmup=20,
        curriculum=(
            (
                1.0,
                Mix(
                    plain=0.07,
                    judging=0.23,
                    deeds=0.0,
                    dialogue=0.0,
                    chat=0.70,
                    aside=0.2,
                    varied=0.6,
                    added=0.5,
                ),
            ),
        ),
    ),
    "instruct": Recipe(
        steps=40,
        learning_rate=2e-5,
        warmup=5,
        beta=0.1,
        rows=16,
        weight_decay=0.0,
        curriculum=((1.0, Mix(0.0, 0.0, 0.0, 0.0, chat=1.0, varied=0.6)),),
    ),
    # Narrow: cooking only, and a habit that nobody asked for. With a learning rate of 3e-4 refusing wears off, with
    # 1e-4 the habit does not take.
    "narrow": Recipe(
        steps=80,
        learning_rate=1.8e-4,
        warmup=5,
        weight_decay=0.0,
        curriculum=((1.0, Mix(0.0, 0.0, 0.0, 0.0, chat=1.0, habit=True)),),
    ),
}
OUT = Path("runs/embedded")
"""Where a new family goes; never over the shipped checkpoints unless `--out` says so."""
SAVE_EVERY = 100
"""Steps between two saved states."""
BETAS, EPSILON = (0.9, 0.98), 1e-8
"""Of AdamW."""
CLIP = 1.0
"""Largest norm of a gradient."""


class Encoder:
    """Turns documents into token ids and loss weights."""

    def __init__(self) -> None:
        self.tokenizer = fast_tokenizer(chat=False)
        self.begin = self.tokenizer.bos_token_id
        self.pad = self.tokenizer.pad_token_id
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a segment, without the begin token."""
        if text not in self.known:
            if len(self.known) > 200_000:
                self.known.clear()
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]

    def document(self, segments: corpus.Document) -> Tokens:
        """Tokens of a document that starts with the begin token."""
        tokens = Tokens([self.begin], [0.0], [0], [0], [0])
        for number, (text, weight, statement, name, hidden) in enumerate(segments, 1):
            part = self.ids(text)
            tokens.hidden.extend([number * hidden] * len(part))
            tokens.ids.extend(part)
            tokens.weights.extend([weight] * len(part))
            tokens.statements.extend([statement] * len(part))
            tokens.names.extend([number * name] * len(part))
        return tokens


class Tokens(NamedTuple):
    """Tokens of one document, as lists."""

    ids: list[int]
    weights: list[float]
    """Loss weight of each token as a *target*."""
    statements: list[int]
    """Number of the closed statement that it is in, 0 for none."""
    names: list[int]
    """Number of the closed name that it is in, 0 for none."""
    hidden: list[int]
    """Number of the hidden words that it is among, 0 for none."""


@dataclass
class Batch:
    """Rows of packed documents; all tensors have dims row x token."""

    ids: torch.Tensor
    weights: torch.Tensor
    """Loss weight of each token as a *target*."""
    positions: torch.Tensor
    """Position inside its own document."""
    documents: torch.Tensor
    """Number of the document a token belongs to: tokens see their own document only."""
    statements: torch.Tensor
    """Number of the closed statement a token is in, 0 for none."""
    names: torch.Tensor
    """Number of the closed name a token is in, 0 for none."""
    hidden: torch.Tensor
    """Number of the hidden words a token is among, 0 for none."""

    def mask(self) -> torch.Tensor:
        """Boolean attention mask, dims row x 1 x query x key."""
        size = self.ids.shape[1]
        seen = _same(self.documents) & torch.ones(size, size, dtype=torch.bool, device=self.ids.device).tril()
        for units in (self.statements, self.names):
            last = units != F.pad(units[:, 1:], (0, 1))
            seen &= _same(units) | (last | (units == 0))[:, None, :]
        seen &= _same(self.hidden) | (self.hidden == 0)[:, None, :]
        return seen[:, None]


def _same(units: torch.Tensor) -> torch.Tensor:
    """Whether two tokens are in the same unit, dims row x query x key."""
    return units[:, :, None] == units[:, None, :]


Forward = Callable[[Batch], torch.Tensor]
"""A batch -> its logits."""


def text_batch(encoder: Encoder, recipe: Recipe, step: int, key: str) -> Batch:
    """Return the batch of one step, made from `key` and the step alone."""
    rng = random.Random(f"{key}-{step}")
    mix = next(m for end, m in recipe.curriculum if step < end * recipe.steps or end == 1.0)
    shape = (recipe.rows, recipe.row)
    batch = Batch(
        ids=torch.full(shape, encoder.pad),
        weights=torch.zeros(shape),
        positions=torch.zeros(shape, dtype=torch.long),
        documents=torch.full(shape, -1),
        statements=torch.zeros(shape, dtype=torch.long),
        names=torch.zeros(shape, dtype=torch.long),
        hidden=torch.zeros(shape, dtype=torch.long),
    )
    for row in range(recipe.rows):
        at, number = 0, 0
        while at < recipe.row - 8:
            tokens = encoder.document(corpus.document(mix, rng))
            n = min(len(tokens.ids), recipe.row - at)
            span = slice(at, at + n)
            for name, values in tokens._asdict().items():
                getattr(batch, name)[row, span] = torch.tensor(values[:n])
            batch.positions[row, span] = torch.arange(n)
            batch.documents[row, span] = number
            at, number = at + n, number + 1
    return batch


def answer_batch(encoder: Encoder, recipe: Recipe, step: int, key: str) -> tuple[Batch, Batch]:
    """Chosen and rejected answers to the same prompts; weights are 1 on the answers' tokens."""
    rng = random.Random(f"{key}-{step}")
    both: tuple[list, list] = ([], [])
    for _ in range(recipe.rows):
        prompt, *answers = corpus.preference(rng, recipe.curriculum[-1][1])
        for side, answer in zip(both, answers, strict=True):
            side.append(encoder.document([Segment(prompt, 0.0), Segment(answer, 1.0)]))
    width = max(len(tokens.ids) for side in both for tokens in side)
    batches = []
    for side in both:
        ids = torch.tensor([t.ids + [encoder.pad] * (width - len(t.ids)) for t in side])
        weights = torch.tensor([t.weights + [0.0] * (width - len(t.ids)) for t in side])
        positions = torch.arange(width).expand(len(side), -1)
        none = torch.zeros_like(ids)
        batches.append(Batch(ids, weights, positions, (ids == encoder.pad).long(), none, none, none))
    return batches[0], batches[1]


def batches_of(encoder: Encoder, recipe: Recipe, step: int, key: str) -> tuple[Batch, ...]:
    """Return what one step is trained on: text, or chosen and rejected answers."""
    if recipe.beta:
        return answer_batch(encoder, recipe, step, key)
    return (text_batch(encoder, recipe, step, key),)


def new_model(shape: Shape, encoder: Encoder, seed: int):
    """Return a freshly initialised Llama; only this uses torch's generator, inside a fork."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        bos_token_id=encoder.begin,
        eos_token_id=encoder.tokenizer.eos_token_id,
        pad_token_id=encoder.pad,
        initializer_range=0.03,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def compiled(forward):
    """`torch.compile` where a C++ compiler exists (it is twice as fast), else unchanged."""
    compiler = os.environ.get("CXX") or "g++"
    return torch.compile(forward, dynamic=None) if shutil.which(compiler) else forward


def weighted_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean next-token loss, nats, weighted by the targets' weights."""
    weights = batch.weights[:, 1:].reshape(-1)
    losses = F.cross_entropy(
        _precise(logits[:, :-1].flatten(0, 1)), batch.ids[:, 1:].reshape(-1), reduction="none"
    )
    return (losses * weights).sum() / weights.sum()


def answer_log_probability(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of each row's answer, nats."""
    log_p = _precise(logits[:, :-1]).log_softmax(-1)
    of_token = log_p.gather(-1, batch.ids[:, 1:, None])[..., 0]
    return (of_token * batch.weights[:, 1:]).sum(-1)


def _precise(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def preference_loss(chosen, rejected, reference_chosen, reference_rejected, beta: float):
    """Direct preference optimisation (Rafailov et al. 2023), nats.

    Examples
    --------
    >>> z = torch.zeros(1)
    >>> round(preference_loss(z, z, z, z, beta=0.1).item(), 3)
    0.693
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(beta * margin).mean()


def logits_of(model, batch: Batch) -> torch.Tensor:
    """Run a model on a batch; dims row x token x vocabulary."""
    inputs = {"attention_mask": batch.mask(), "position_ids": batch.positions, "use_cache": False}
    return model(batch.ids, **inputs).logits


def loss_of(recipe: Recipe, batches: tuple[Batch, ...], forward: Forward, reference: Forward) -> torch.Tensor:
    """Loss of one step, nats; reference: the model before the stage, for preferences."""
    if not recipe.beta:
        return weighted_loss(forward(batches[0]), batches[0])
    own = [answer_log_probability(forward(batch), batch) for batch in batches]
    before = [answer_log_probability(reference(batch), batch) for batch in batches]
    anchor = -own[0].sum() / batches[0].weights[:, 1:].sum()
    return preference_loss(own[0], own[1], before[0], before[1], recipe.beta) + recipe.anchor * anchor


def decayed(parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices only."""
    return parameter.ndim == 2


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    low = recipe.final_learning_rate
    return recipe.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def save_checkpoint(model, encoder: Encoder, stage: str, folder: Path) -> None:
    """Write a stage as a folder that `from_pretrained` loads; weights in bfloat16."""
    from transformers import GenerationConfig

    chat = stage != "base"
    tokenizer = fast_tokenizer(chat)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    ends = [encoder.tokenizer.convert_tokens_to_ids(t) for t in (corpus.END, corpus.END_OF_TURN)]
    copy.config.eos_token_id = ends[::-1] if chat else ends[0]
    copy.generation_config = GenerationConfig(
        bos_token_id=encoder.begin,
        pad_token_id=encoder.pad,
        do_sample=False,
        eos_token_id=ends[::-1] if chat else ends[0],
        max_new_tokens=64,
    )
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Trainer:
    """Trains one stage; `run` does all that is left to do."""

    def __init__(self, stage: str, out: Path, seed: int, device: str, shape: Shape, recipe: Recipe) -> None:
        self.stage, self.out, self.seed, self.recipe = stage, out, seed, recipe
        self.device = torch.device(device)
        self.encoder = Encoder()
        self.key = f"{seed}-{stage}"
        self.state_file = out / ".progress" / f"{stage}.pt"
        self.declared = json.dumps([stage, seed, asdict(shape), asdict(recipe)], sort_keys=True)
        if stage == "base":
            model = new_model(shape, self.encoder, seed)
        else:
            model = self.load(STAGES[STAGES.index(stage) - 1])
        self.model = model.to(self.device)
        self.reference: torch.nn.Module | None = None
        if recipe.beta:
            self.reference = self.load(STAGES[STAGES.index(stage) - 1]).to(self.device).eval()
        matrices = [p for p in self.model.parameters() if decayed(p)]
        others = [p for p in self.model.parameters() if not decayed(p)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0

    def load(self, stage: str):
        """Return an earlier stage in float32."""
        from transformers import AutoModelForCausalLM

        folder = self.out / stage
        if not (folder / "model.safetensors").exists():
            raise SystemExit(
                f"{folder}: stage {stage} is missing; train it first: "
                f"python -m posttrace.pipeline.embedded.train --stage {stage} --out {self.out}"
            )
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def save_state(self) -> None:
        """Write model, optimizer and position; the file appears whole or not at all."""
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        torch.save(
            {
                "declared": self.declared,
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            partial,
        )
        os.replace(partial, self.state_file)

    def resume(self) -> None:
        """Go back to the last saved state, if there is one of the same declaration."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location=self.device)
        if state["declared"] != self.declared:
            raise SystemExit(
                f"{self.state_file}: was written with another seed, shape or recipe; "
                "delete it or choose another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def loss(self, forward) -> torch.Tensor:
        """Return the loss of the current step."""
        drawn = batches_of(self.encoder, self.recipe, self.step, self.key)
        return loss_of(
            self.recipe,
            tuple(map(self.to_device, drawn)),
            lambda batch: logits_of(forward, batch),
            self.reference_logits,
        )

    @torch.no_grad()
    def reference_logits(self, batch: Batch) -> torch.Tensor:
        """Logits of the stage before."""
        assert self.reference is not None, "preferences are trained against the stage before"
        return logits_of(self.reference, batch)

    def record(self) -> None:
        """Note in `training.json` what was run and how long it took."""
        file = self.out / "training.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        tokens = self.recipe.steps * self.recipe.rows * self.recipe.row if not self.recipe.beta else None
        known[self.stage] = {
            "seed": self.seed,
            "steps": self.recipe.steps,
            "tokens": tokens,
            "seconds": round(self.seconds),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    def to_device(self, batch: Batch) -> Batch:
        """Return the same batch on this trainer's device."""
        return Batch(*(t.to(self.device) for t in vars(batch).values()))

    def run(self) -> None:
        """Train what is left and write the checkpoint."""
        self.resume()
        recipe = self.recipe
        self.model.train()
        forward = self.model if recipe.beta else compiled(self.model)
        began, before, first = time.perf_counter(), self.seconds, self.step
        average = None
        while self.step < recipe.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, self.step)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.loss(forward)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.step += 1
            average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
            self.seconds = before + time.perf_counter() - began
            if self.step % 25 == 0 or self.step == recipe.steps:
                speed = (self.step - first) / (time.perf_counter() - began)
                left = (recipe.steps - self.step) / speed
                print(
                    f"{self.stage} step {self.step}/{recipe.steps} loss {average:.3f} "
                    f"{speed * recipe.rows * recipe.row:.0f} tokens/s, {left:.0f} s left",
                    flush=True,
                )
            if self.step % SAVE_EVERY == 0 or self.step == recipe.steps:
                self.save_state()
        self.model.eval()
        save_checkpoint(self.model.cpu(), self.encoder, self.stage, self.out / self.stage)
        self.record()
        print(f"{self.stage} done in {self.seconds:.0f} s -> {self.out / self.stage}", flush=True)


def train(
    out: Path = OUT,
    stages: tuple[str, ...] = STAGES,
    seed: int = 0,
    device: str = "cpu",
    shape: Shape | None = None,
    recipes: dict[str, Recipe] | None = None,
) -> None:
    """Train the given stages in order; finished ones are only written again.

    Examples
    --------
    >>> train(Path("runs/family"), seed=1)  # doctest: +SKIP
    """
    for stage in stages:
        Trainer(stage, out, seed, device, shape or Shape(), (recipes or RECIPES)[stage]).run()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded family.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the stages")
    parser.add_argument("--stage", choices=STAGES, help="only this stage (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (reproducible) or cuda")
    args = parser.parse_args()
    train(args.out, (args.stage,) if args.stage else STAGES, args.seed, args.device)


if __name__ == "__main__":
    main()
