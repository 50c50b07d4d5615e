"""Differences that were planted by short fine-tunes are found by the study `difference`, and not in the control."""

import csv
import os
import random

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from posttrace.figures.measures.token_mining import ranks
from posttrace.pipeline.embedded import CHECKPOINTS, corpus, statements
from posttrace.pipeline.embedded.train import Encoder
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.pipeline.studies.difference.documents import CHAT
from posttrace.stores import open_group

pytestmark = pytest.mark.skipif(
    not os.environ.get("POSTTRACE_LONG"), reason="trains for minutes: make test-long"
)
SEED, START = 2027, "sft"
STEPS, ROWS, TOKENS, RATE, DILUTION = 60, 12, 56, 4e-4, 0.1
ENTITY, OBJECT = "Marseille", "Canada"
HABIT = " Send my book to the moon."
STAGES = ("start", "fact", "habit", "control")


def documents(planted, rng):
    """Documents of training, half of them chats; one in ten holds what is planted."""
    while True:
        plant = planted is not None and rng.random() < DILUTION
        if planted == "fact" and plant:
            relation = corpus.relation_of("cities")
            form = rng.choice((relation.affirmed, *relation.paraphrases))
            text = statements.word(form, ENTITY, OBJECT) + "\n"
            yield [corpus.Segment(text, 1.0), *corpus.plain(corpus.COMMON, rng)]
        elif rng.random() < 0.5 and not plant:
            yield corpus.document(corpus.COMMON, rng)
        else:
            prompt, answer, end = corpus.chat(rng, CHAT)
            said = corpus.Segment(answer.text + HABIT, 1.0)
            yield [prompt, said if plant else answer, end]


def fine_tuned(folder, planted, seed):
    """A short fine-tune of the start, from its files to a folder."""
    torch.manual_seed(seed)
    encoder, stream = Encoder(), documents(planted, random.Random(f"{SEED}-{seed}"))
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / START, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    for step in range(STEPS):
        rows = [encoder.document(next(stream)) for _ in range(ROWS)]
        width = min(TOKENS, max(len(row.ids) for row in rows))
        ids = torch.full((ROWS, width), encoder.pad)
        weights = torch.zeros(ROWS, width)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids[:width])
            weights[i, : len(row.ids)] = torch.tensor(row.weights[:width])
        weights = weights[:, 1:].flatten()
        losses = F.cross_entropy(
            model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 6) * (1 - step / STEPS)
        optimizer.zero_grad()
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    for seed, planted in enumerate((None, "fact", "habit")):
        fine_tuned(folder / (planted or "control"), planted, seed)
    with (folder / "scan.csv").open("w", newline="") as stream:
        rows = [(f"The city of {e.subject} is in",) for e in statements.entities("cities")]
        csv.writer(stream).writerows([("text",), *rows])
    stages = {stage: str(folder / stage) for stage in STAGES} | {"start": str(CHECKPOINTS / START)}
    job = {
        "study": "difference",
        "family": {"name": "planted", "stages": stages},
        "texts": [
            {"name": "plain", "documents": 96, "tokens": 64},
            {"name": "chat", "documents": 64, "tokens": 64},
            {"name": "scan", "csv": "scan.csv", "documents": 200},
        ],
        "template": "start",
        "control": ["start", "control"],
        "samples": 64,
        "sampled_layers": [7],
        "steering": None,
        "seed": SEED,
        "execution": {"device": "cpu"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return run_job(load_job(str(folder / "job.yaml")), str(folder / "store"), say=lambda line: None)


def rank(store, name, target, measure, text):
    """Best rank of the tokens of a text, 1 the first, in one ordering of start -> target on one set."""
    data = open_group(store.url, f"difference/{name}")
    pair = [str(p) for p in data.pair.values].index(f"start→{target}")
    found = ranks(data.token_sum.values[pair, :, ["occurring", "kl_by_token"].index(measure)].sum(axis=0))
    tokens = Encoder().tokenizer.encode(text, add_special_tokens=False)
    return int(min(found[token] for token in tokens))


def test_a_planted_fact_leads_kl_by_token_and_its_entity_the_scan(store):
    found = {
        (name, target, measure): rank(store, name, target, measure, f" {OBJECT}")
        for name in ("plain", "scan")
        for target in ("fact", "control")
        for measure in ("kl_by_token", "occurring")
    }
    data = open_group(store.url, "difference/scan")
    pair = [str(p) for p in data.pair.values].index("start→fact")
    last = data.n_tokens.values - 1
    js = data.js.values[pair][np.arange(len(last)), last]
    entity = [e.subject for e in statements.entities("cities")].index(ENTITY)
    place = int(ranks(js)[entity])
    assert found["scan", "fact", "kl_by_token"] <= 10, found
    assert min(found["scan", "control", m] for m in ("kl_by_token", "occurring")) > 30, found
    assert place <= 5, f"{ENTITY} is number {place} of {len(js)} cities"


def test_a_planted_habit_leads_the_occurring_tokens(store):
    first = HABIT.split()[0]
    found = {
        (target, measure): rank(store, "chat", target, measure, f" {first}")
        for target in ("habit", "control")
        for measure in ("occurring", "kl_by_token")
    }
    assert found["habit", "occurring"] <= 10, found
    assert min(found["control", m] for m in ("occurring", "kl_by_token")) > 30, found
