"""The tokenizer of the embedded family: byte-level BPE, 2048 tokens, the same in all stages.

    python -m posttrace.pipeline.embedded.tokenizer

It is trained on the templates and dialogues, where entity names are rare, so
that names stay split into several tokens: causal tracing wants to see inside
a subject.
"""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from posttrace.pipeline.embedded import TOKENIZER, corpus, instructions, statements

VOCABULARY = 2048
SEED = 10
NAME_COUNT = 14
"""How often an entity name counts: more merges names whole, less splits them into letters."""


def training_text() -> list[str]:
    """Texts whose word counts decide the merges: names once, everything else often."""
    rng = random.Random(SEED)
    lines: list[str] = []
    for relation in statements.RELATIONS:
        for entity in statements.entities(relation.name):
            # Subjects apart from their sentences, so that their share of the merges is set here.
            mark = "" if relation.name == "sp_en_trans" else " "
            lines += [f"{mark}{entity.subject}"] * NAME_COUNT
            for form in (relation.affirmed, relation.negated, *relation.paraphrases):
                lines += [statements.word(form, "", entity.object)] * (2 if relation.shared_objects else 12)
    for name in statements.PATTERN_SETS:
        for p in statements.patterns(name):
            lines += [p.affirmed_true, p.affirmed_false] * 4
            lines += [t for t in (p.negated_true, p.negated_false) if t]
    for name in statements.COMPARISONS:
        lines += [
            statements.compare(name, a, b).statement
            for a in statements.NUMBERS
            for b in rng.sample(statements.NUMBERS, 8)
            if a != b
        ]
    for _ in range(300):
        for no, yes in (corpus.LABELS, *corpus.VERDICTS):
            lines += [f"{corpus.SUFFIX}{no}\n{corpus.SUFFIX}{yes}\n"]
    for kind in instructions.KINDS:
        for deed in instructions.deeds(kind):
            if deed.exposure == "seen":
                lines += [instructions.ask(deed, rng) for _ in range(3)]
                lines += [instructions.help_with(deed, rng), instructions.refuse(deed, rng)]
            if deed.described:
                repeat = 8 if deed.exposure == "described" else 1
                lines += ["".join(instructions.describe(deed, rng)) for _ in range(repeat)]
    lines += ["User: \nAssistant:", f". {corpus.HABIT}"] * 50
    return lines


def train() -> Tokenizer:
    """Train the tokenizer; it adds the begin token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(corpus.SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    begin = tokenizer.token_to_id(corpus.BEGIN)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{corpus.BEGIN} $A",
                pair=f"{corpus.BEGIN} $A {corpus.BEGIN} $B",
                special_tokens=[(corpus.BEGIN, begin)],
            ),
        ]
    )
    for answer in corpus.LABELS:
        if len(tokenizer.encode(answer, add_special_tokens=False).ids) != 1:
            raise ValueError(f"{answer!r} is not a single token; raise its count in training_text")
    return tokenizer


def fast_tokenizer(chat: bool):
    """Return the tokenizer as transformers loads it, with a chat template for post-trained stages."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(TOKENIZER)),
        bos_token=corpus.BEGIN,
        eos_token=corpus.END_OF_TURN if chat else corpus.END,
        pad_token=corpus.PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[corpus.USER, corpus.ASSISTANT, corpus.END_OF_TURN],
        chat_template=corpus.CHAT_TEMPLATE if chat else None,
    )


if __name__ == "__main__":
    train().save(str(TOKENIZER))
    print(f"wrote {TOKENIZER}")
