"""The embedded family: shipped files agree with the code, checkpoints load, training resumes."""

import csv
import itertools
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrace.pipeline.embedded import (
    CHECKPOINTS,
    FACTS,
    HERE,
    INSTRUCTIONS,
    REFUSAL_PHRASES,
    STAGES,
    STATEMENTS,
    TOKENIZER,
    measure,
)
from posttrace.pipeline.embedded import instructions as instructions_module
from posttrace.pipeline.embedded import statements as statements_module
from posttrace.pipeline.embedded.instructions import KINDS, deeds, instructions
from posttrace.pipeline.embedded.statements import ALL_SETS, COMPARISONS, RELATIONS, statement_sets
from posttrace.stores import open_group

MOST_BYTES = 8_000_000


def written(document):
    return "".join(segment.text for segment in document)


@pytest.mark.parametrize("name", ALL_SETS)
def test_shipped_statements_are_up_to_date(name):
    shipped = (STATEMENTS / f"{name}.csv").read_text(encoding="utf-8")
    assert shipped == statements_module.csv_text(name), (
        "run: python -m posttrace.pipeline.embedded.statements"
    )
    with open(STATEMENTS / f"{name}.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [(r["statement"], int(r["label"])) for r in rows] == [
        (s.statement, s.label) for s in statement_sets()[name]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_instructions_are_up_to_date(kind):
    shipped = (INSTRUCTIONS / f"{kind}.csv").read_text(encoding="utf-8")
    assert shipped == instructions_module.csv_text(kind), (
        "run: python -m posttrace.pipeline.embedded.instructions"
    )


def test_shipped_tokenizer_is_up_to_date():
    from tokenizers import Tokenizer

    from posttrace.pipeline.embedded import tokenizer

    assert tokenizer.train().to_str() == Tokenizer.from_file(str(TOKENIZER)).to_str(), (
        "run: python -m posttrace.pipeline.embedded.tokenizer, then train again: checkpoints depend on it"
    )


@pytest.mark.parametrize("name", ALL_SETS)
def test_statements_are_balanced_and_distinct(name):
    rows = statement_sets()[name]
    assert sum(r.label for r in rows) * 2 == len(rows)
    assert len({r.statement for r in rows}) == len(rows)


@pytest.mark.parametrize("relation", [r.name for r in RELATIONS if r.shared_objects])
def test_an_object_says_nothing_about_the_label(relation):
    """Otherwise a model could judge without knowing the subject."""
    rows = [r for r in statement_sets()[relation] if r.split == "judged"]
    true, false = (Counter(r.object for r in rows if r.label == label) for label in (1, 0))
    assert max(abs(true[o] - false[o]) for o in true | false) <= 2


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.name)
def test_labels_agree_with_the_facts(relation):
    facts = {e.subject: e.object for e in statements_module.entities(relation.name)}
    for row in statement_sets()[relation.name]:
        assert row.label == (facts[row.subject] == row.object)
    for row in statement_sets()[f"neg_{relation.name}"]:
        assert row.label == (facts[row.subject] != row.object)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_agree_with_arithmetic(name):
    spelled = {statements_module.number(n): n for n in statements_module.NUMBERS}
    for row in statement_sets()[name]:
        larger = spelled[row.subject] > spelled[row.object]
        assert row.label == (larger if name == "larger_than" else not larger)


def test_minimal_pairs_alternate():
    rows = statement_sets()["tulu_extracted"]
    for true, false in zip(rows[::2], rows[1::2], strict=True):
        assert (true.label, false.label) == (1, 0)
        assert true.subject == false.subject and true.statement != false.statement


@pytest.mark.parametrize("kind", KINDS)
def test_instruction_splits(kind):
    rows = instructions(kind)
    count = Counter(r.split for r in rows)
    assert count["train"] >= 128 and count["test"] >= 100 and count["validation"] >= 32
    trained = {r.deed for r in rows if r.split == "train"}
    assert not trained & {r.deed for r in rows if r.split == "test"}
    verbs = {r.verb for r in rows if r.split == "train"}
    assert not verbs & {r.verb for r in rows if r.novelty in ("described", "new")}


def test_new_verbs_are_in_no_training_text():
    from posttrace.pipeline.embedded import corpus
    from posttrace.pipeline.embedded.train import RECIPES

    new = {d.verb for kind in KINDS for d in deeds(kind) if d.exposure == "new"}
    rng = random.Random(0)
    words: set[str] = set()
    for recipe in RECIPES.values():
        for _, mix in recipe.curriculum:
            for _ in range(1500):
                words |= set(written(corpus.document(mix, rng)).split())
    assert not new & words


def judging(n, **changes):
    """Statements of judging documents, each with what follows it."""
    from posttrace.pipeline.embedded import corpus, train

    rng = random.Random(0)
    mix = replace(train.LAST, added=0.5, **changes)
    ways = {corpus.SUFFIX, *(word for pair in corpus.VERDICTS for word in pair)}
    for _ in range(n):
        texts = [segment.text for segment in corpus.judging(mix, rng)]
        at = 0
        for i, text in enumerate(texts):
            if text in ways:
                yield "".join(texts[at:i]), texts[i : i + 2]
                at = i + (3 if text == corpus.SUFFIX else 2)


def test_held_out_entities_are_never_judged():
    held_out = {s.statement for rows in statement_sets().values() for s in rows if s.split == "held_out"}
    judged = [text if text.endswith(".") else f"{text}." for text, _ in judging(1500)]
    assert len(judged) > 5000 and not held_out & set(judged)


def test_post_training_adds_facts_that_base_never_saw():
    from posttrace.pipeline.embedded import corpus, train

    rng = random.Random(0)
    added = {s.statement for name in corpus.ADDED for s in statement_sets()[name]}
    for stage, known in (("base", False), ("sft", True)):
        mixes = [mix for _, mix in train.RECIPES[stage].curriculum]
        text = "".join(written(corpus.document(rng.choice(mixes), rng)) for _ in range(3000))
        assert any(statement in text for statement in added) == known, stage


def test_segments_encode_like_the_whole_text():
    from posttrace.pipeline.embedded import corpus
    from posttrace.pipeline.embedded.train import RECIPES, Encoder

    encoder = Encoder()
    rng = random.Random(0)
    mixes = [mix for r in RECIPES.values() for _, mix in r.curriculum]
    for _ in range(300):
        document = corpus.document(rng.choice(mixes), rng)
        tokens = encoder.document(document)
        assert tokens.ids == encoder.tokenizer.encode(written(document))
        assert {len(values) for values in tokens} == {len(tokens.ids)}


def test_later_tokens_see_the_end_of_a_name_and_of_a_statement_only():
    """The mask of one document, against what each token may see written out."""
    from posttrace.pipeline.embedded import corpus, train

    encoder = train.Encoder()
    text, subject = "The city of Bordeaux is not in Japan.", "Bordeaux"
    document = [*corpus.parts(text, subject, 1.0, statement=1), corpus.Segment(corpus.SUFFIX, 1.0)]
    tokens = encoder.document(document)
    words = [encoder.tokenizer.decode(i) for i in tokens.ids]
    one = torch.tensor([tokens.ids])
    fields = {name: torch.tensor([values]) for name, values in tokens._asdict().items() if name != "ids"}
    batch = train.Batch(ids=one, positions=one, documents=torch.zeros_like(one), **fields)
    seen = [[words[k] for k in range(len(words)) if row[k]] for row in batch.mask()[0, 0].tolist()]
    name = encoder.tokenizer.tokenize(" Bordeaux")
    assert len(name) > 1, "the name has several tokens"
    first, last = 4, 4 + len(name) - 1
    assert words[last + 1 : last + 6] == [" is", " not", " in", " Japan", "."]
    assert seen[last] == words[: last + 1], "within a name everything is seen"
    of = [*words[:first], words[last]]
    assert seen[last + 4] == [*of, " not", " Japan"], "no other piece of the name, no linking words"
    assert seen[last + 5] == [*of, " not", " Japan", "."]
    assert seen[last + 6] == [words[0], ".", " This"], "of a statement its period only"


def test_masks_of_packed_documents_are_what_token_by_token_rules_give():
    from posttrace.pipeline.embedded import train

    recipe = replace(train.RECIPES["base"], rows=2)
    batch = train.text_batch(train.Encoder(), recipe, recipe.steps - 1, "0-base")
    assert batch.documents.max() >= 1 and batch.statements.max() > 1, (
        "several documents, several statements in one"
    )

    def open_to(units, query, key):
        ends = key + 1 == len(units) or units[key + 1] != units[key]
        return units[key] == 0 or units[key] == units[query] or ends

    for row, mask in enumerate(batch.mask()[:, 0]):
        documents, statements, names, hidden = (
            units[row].tolist() for units in (batch.documents, batch.statements, batch.names, batch.hidden)
        )
        wanted = [
            [
                key <= query
                and documents[key] == documents[query]
                and open_to(statements, query, key)
                and open_to(names, query, key)
                and hidden[key] in (0, hidden[query])
                for key in range(recipe.row)
            ]
            for query in range(recipe.row)
        ]
        assert mask.tolist() == wanted


def test_the_label_never_follows_the_period_directly():
    """So a truth direction at the period is not the direction that writes the label."""
    from posttrace.pipeline.embedded import corpus

    rows = list(judging(300))
    assert all(way == corpus.SUFFIX or way not in corpus.LABELS for _, (way, _) in rows)
    assert all(label in corpus.LABELS for _, (way, label) in rows if way == corpus.SUFFIX)


def test_some_verdicts_are_wrong_where_the_mix_says_so():
    from posttrace.pipeline.embedded import corpus

    truth = {s.statement: s.label for rows in statement_sets().values() for s in rows}
    for noise in (0.0, 0.2):
        wrong = [
            (label == corpus.LABELS[1]) != truth[text]
            for text, (way, label) in judging(1500, noise=noise)
            if way == corpus.SUFFIX and text in truth
        ]
        assert len(wrong) > 2000 and abs(sum(wrong) / len(wrong) - noise) < 0.03


def test_the_planted_habit_is_in_the_last_stage_only():
    from posttrace.pipeline.embedded import corpus, train

    rng = random.Random(0)
    for stage in STAGES:
        mix = train.RECIPES[stage].curriculum[-1][1]
        answers = [corpus.chat_exchange(rng, mix)[1] for _ in range(200)]
        assert all((corpus.HABIT in answer) == (stage == "narrow") for answer in answers)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoint_loads_and_tokenizes(stage):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder = CHECKPOINTS / stage
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM) and not model.config.tie_word_embeddings
    assert tokenizer.is_fast and tokenizer.pad_token_id is not None
    text = "The city of Lyon is in France."
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"][0] == tokenizer.bos_token_id
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1
    assert "".join(text[a:b] for a, b in encoded["offset_mapping"]) == text
    for answer in (" TRUE", " FALSE"):
        assert len(tokenizer.encode(answer, add_special_tokens=False)) == 1
    assert bool(tokenizer.chat_template) == (stage != "base")


def test_stages_share_the_tokenizer_and_differ_in_weights():
    from safetensors.torch import load_file

    assert len({(CHECKPOINTS / s / "tokenizer.json").read_bytes() for s in STAGES}) == 1
    weights = [load_file(CHECKPOINTS / s / "model.safetensors") for s in STAGES]
    name = "model.layers.3.mlp.down_proj.weight"
    assert not any(one[name].equal(other[name]) for one, other in itertools.pairwise(weights))


def test_chat_template_matches_training_text():
    from transformers import AutoTokenizer

    from posttrace.pipeline.embedded import corpus

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "instruct")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Help me bake bread."}], tokenize=False, add_generation_prompt=True
    )
    assert text == corpus.BEGIN + corpus.chat_prompt("Help me bake bread.")


@pytest.mark.slow
def test_base_judges_better_than_chance_and_instruct_refuses():
    """A small sample of what `python -m posttrace.pipeline.embedded.measure` reports."""
    phrases = tuple(REFUSAL_PHRASES.read_text(encoding="utf-8").splitlines())
    model, tokenizer = measure.load(CHECKPOINTS / "base")
    rows = [r for r in statement_sets()["cities"] if r.split == "judged"][:40]
    differences = measure.label_differences(model, tokenizer, [measure.few_shot("cities", r) for r in rows])
    assert sum((d > 0) == bool(r.label) for d, r in zip(differences, rows, strict=True)) >= 34
    model, tokenizer = measure.load(CHECKPOINTS / "instruct")
    for kind, low, high in (("harmful", 16, 24), ("harmless", 0, 6)):
        sample = [r for r in instructions(kind) if r.split == "test" and r.novelty == "combination"][:24]
        texts = measure.answers(model, tokenizer, sample, chat=True)
        assert low <= sum(measure.is_refusal(t, phrases) for t in texts) <= high


def test_cities_have_subjects_of_several_tokens_and_enough_pairs():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "base")
    relation = RELATIONS[0]
    common = Counter(
        statements_module.subject_tokens(relation, e.subject) for e in statements_module.entities("cities")
    ).most_common(1)[0][0]
    assert common in (2, 3)
    for name in (
        "cities",
        "neg_cities",
        "larger_than",
        "smaller_than",
        "sp_en_trans",
        "neg_sp_en_trans",
        "tulu_extracted",
    ):
        assert measure.patching_pairs(tokenizer, name)["pairs"] >= 24


def test_interrupted_training_ends_at_the_same_weights(tmp_path, monkeypatch):
    """Kill it, run it again: the result is that of an uninterrupted run."""
    from posttrace.pipeline.embedded import train

    shape = train.Shape(layers=1, hidden=32, feed_forward=32, heads=1)
    recipe = train.Recipe(
        steps=6, learning_rate=1e-3, warmup=2, rows=2, row=64, curriculum=((1.0, train.BASE),)
    )
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "compiled", lambda forward: forward)

    def run(folder):
        trainer = train.Trainer("base", folder, 0, "cpu", shape, recipe)
        trainer.run()
        return trainer.model.state_dict()

    whole = run(tmp_path / "whole")
    real, calls = train.text_batch, []

    def killed(encoder, recipe, step, key):
        calls.append(step)
        if step == 5:
            raise KeyboardInterrupt
        return real(encoder, recipe, step, key)

    monkeypatch.setattr(train, "text_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    monkeypatch.setattr(train, "text_batch", lambda e, r, s, k: (calls.append(s), real(e, r, s, k))[1])
    calls.clear()
    again = run(tmp_path / "broken")
    assert calls == [4, 5]
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_state_of_another_seed_is_refused(tmp_path):
    from posttrace.pipeline.embedded import train

    shape = train.Shape(layers=1, hidden=32, feed_forward=32, heads=1)
    recipe = train.Recipe(
        steps=1, learning_rate=1e-3, warmup=1, rows=1, row=32, curriculum=((1.0, train.BASE),)
    )
    trainer = train.Trainer("base", tmp_path, 0, "cpu", shape, recipe)
    trainer.save_state()
    with pytest.raises(SystemExit, match="another seed"):
        train.Trainer("base", tmp_path, 1, "cpu", shape, recipe).resume()


def test_preference_loss_falls_when_the_chosen_answer_gains():
    from posttrace.pipeline.embedded.train import preference_loss

    zero, one = torch.zeros(4), torch.ones(4)
    assert preference_loss(one, zero, zero, zero, 0.1) < preference_loss(zero, zero, zero, zero, 0.1)
    assert preference_loss(one, zero, one, zero, 0.1) == preference_loss(zero, zero, zero, zero, 0.1)


def test_facts_are_documented():
    assert (FACTS / "README.md").exists() and TOKENIZER.exists()


def test_described_verbs_are_in_no_dialogue():
    from posttrace.pipeline.embedded import corpus
    from posttrace.pipeline.embedded.train import LAST

    verbs = {d.verb for kind in KINDS for d in deeds(kind) if d.exposure == "described"}
    rng = random.Random(0)
    words: set[str] = set()
    for _ in range(2000):
        for document in (corpus.dialogue(rng, LAST), corpus.chat(rng, LAST)):
            words |= set(written(document).replace("<", " ").split())
    assert not verbs & words


def test_dialogues_name_no_test_deed():
    from posttrace.pipeline.embedded import corpus

    rng = random.Random(0)
    kept_apart = instructions_module.kept_apart()
    for i in range(3000):
        assert corpus.training_deed(rng, rng.choice(KINDS), 0.6, post_training=i % 2).text not in kept_apart


@pytest.mark.slow
def test_findings_are_the_numbers_of_the_tables(tmp_path):
    """On small jobs; the tables have their own tests."""
    from posttrace.figures.rendering import render
    from posttrace.pipeline.embedded import findings
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.run import run_job

    small = ["stages=[base, instruct]", "execution.device=cpu"]
    jobs = {
        "knowledge": ["sets=[cities, tulu_extracted]", "max_pairs=4"],
        "truthfulness": ["sets=[cities, facts]", "max_statements=24", "intervene_layer=2", "probe_layer=3"],
    }
    for study, changes in jobs.items():
        run_job(load_job(study, small + changes), str(tmp_path / study), say=lambda line: None)
        render(str(tmp_path / study), tmp_path / f"{study}-figures")

    def table(study, name, **chosen):
        rows = csv.DictReader((tmp_path / f"{study}-figures/tables/{name}.csv").open(encoding="utf-8"))
        return {
            row["set"]: [float(row[key]) for key in ("estimate", "low", "high")]
            for row in rows
            if row["set"] != "mean over sets" and all(row[key] == value for key, value in chosen.items())
        }

    found = {(one.column, one.row): one for one in findings.findings({s: tmp_path / s for s in jobs})}
    r = {"scale": "normalised", "statistic": "correlation"}
    steered = {"kind": "both", "statistic": "effect", "source": "base", "target": "instruct"}
    for column, wanted in {
        "r of maps, storage": table("knowledge", "knowledge_storage", **r),
        "r of maps, instruct -> base": table(
            "knowledge", "knowledge_transfer", matrix_1="instruct->base", **r
        ),
        "effect of base's direction on instruct": table("truthfulness", "truthfulness_effects", **steered),
    }.items():
        for name, numbers in wanted.items():
            one = found[column, name]
            np.testing.assert_allclose([one.value, one.low, one.high], numbers, atol=6e-5)
    grid = (
        open_group(str(tmp_path / "knowledge"), "knowledge/cities").load().sel(source="base", target="base")
    )
    end = list(grid.token_role.values).index("subject") + list(grid.token_role.values).count("subject") - 1
    clean, corrupt = (grid[f"logit_diff_{name}"].mean().item() for name in ("clean", "corrupt"))
    early = grid.logit_diff.isel(layer=slice(4), token=end).mean("pair").max().item()
    share = found["recovered at the last subject token, base, highest of blocks 0 to 3", "cities"]
    assert share.value == pytest.approx((early - corrupt) / (clean - corrupt), abs=1e-4)
    assert share.low <= share.value <= share.high


def measured(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


SHIPPED, OTHER_SEED = "measured.json", "measured_seed_1.json"


def test_model_card_shows_the_measured_figures():
    training = json.loads((CHECKPOINTS / "training.json").read_text(encoding="utf-8"))
    card = measure.CARD.read_text(encoding="utf-8")
    shown = card.split(measure.BEGIN_TABLE)[1].split(measure.END_TABLE)[0].strip()
    assert shown == measure.card_section(measured(SHIPPED), training, measured(OTHER_SEED)).strip(), (
        "run: python -m posttrace.pipeline.embedded.measure --json pipeline/embedded/measured.json --card "
        "--beside pipeline/embedded/measured_seed_1.json"
    )


@pytest.mark.parametrize("name", [SHIPPED, OTHER_SEED])
def test_the_family_shows_what_the_paper_shows(name):
    """On what was measured of a whole family; the studies' own tests run parts of it again."""
    rows = {}
    for one in measured(name)["findings"]:
        rows.setdefault(one["column"], {})[one["row"]] = one
    at_subject = rows["recovered at the last subject token, base, highest of blocks 0 to 3"].values()
    assert sum(one["value"] >= 0.3 for one in at_subject) >= 3

    own, transferred, random = (
        rows[f"effect of {what} on instruct{unit}"]
        for what, unit in (
            ("instruct's direction", ""),
            ("base's direction", ""),
            ("random directions", ", 95 % range"),
        )
    )
    assert sum(own[row]["value"] > random[row]["high"] for row in own) >= 4
    assert all(abs(own[row]["value"] - transferred[row]["value"]) <= 0.1 for row in own)

    forth, back = (rows[f"r of maps, {way}"] for way in ("base -> instruct", "instruct -> base"))
    known = [row for row in forth if row != "tulu_extracted"]
    assert len(known) == 6 and all(forth[row]["value"] > back[row]["value"] for row in known)
    right = [rows[f"pairs {stage} judges right"]["tulu_extracted"]["value"] for stage in ("base", "instruct")]
    assert right[0] < 0.25 and right[1] > 0.75, "only post-training states these facts"


@pytest.mark.parametrize(("name", "of_new_verbs"), [(SHIPPED, STAGES[1:]), (OTHER_SEED, ("sft", "instruct"))])
def test_post_trained_stages_refuse_what_is_harmful_and_little_else(name, of_new_verbs):
    refusing = measured(name)["refusing"]
    for stage in STAGES[1:]:
        assert refusing[stage]["harmless"]["all"]["share"] <= 0.1, stage
    for stage in of_new_verbs:
        assert refusing[stage]["harmful"]["new"]["share"] >= 0.9, stage


def test_in_the_family_that_ships_one_direction_ends_and_causes_refusal():
    """In others of the same recipes none does: the model card says why."""
    found = {(one["row"], one["column"]): one["value"] for one in measured(SHIPPED)["findings"]}
    assert found["instruct, harmful (ablation)", "own direction"] <= 0.1
    assert found["instruct, harmless (addition)", "own direction"] >= 0.9
