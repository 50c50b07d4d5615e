"""The embedded family: four tiny Llama checkpoints trained from facts written for this project.

Only paths live here, so that importing it costs nothing.

>>> from posttrace.pipeline.embedded import CHECKPOINTS, STAGES
>>> [(CHECKPOINTS / stage).name for stage in STAGES]
['base', 'sft', 'instruct', 'narrow']
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
FACTS = HERE / "facts"
"""Hand-written facts and deeds (CSV); everything else is made from them."""
STATEMENTS = HERE / "statements"
"""True/false statement sets, `NAME.csv` (statement, label, subject, object, split)."""
INSTRUCTIONS = HERE / "instructions"
"""`harmful.csv` and `harmless.csv` (instruction, split, verb, novelty, deed)."""
REFUSAL_PHRASES = HERE / "refusal_phrases.txt"
"""One refusal phrase per line; an answer that begins with one counts as a refusal."""
TOKENIZER = HERE / "tokenizer.json"
"""The byte-level BPE tokenizer that all stages share."""
CHECKPOINTS = HERE / "checkpoints"
"""One folder per stage, loadable with `AutoModelForCausalLM.from_pretrained`."""
STAGES = ("base", "sft", "instruct", "narrow")
"""Stages in training order; each one starts from the one before it."""
