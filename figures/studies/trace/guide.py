"""How to read the figures of the trace study."""

from __future__ import annotations

GUIDE = (
    (
        "Next tokens",
        "The most probable next tokens of each prompt and their probabilities, for every stage, without intervention "
        "(none) and with every patch and steer of the job (all). The entropy (nats) says how spread out the whole "
        "distribution is.",
    ),
    (
        "Answers side by side",
        "Greedy continuations of every prompt by every stage, without intervention (none) and with the job's patches "
        "and steers applied (all): in the prompt, and at every new token where a steer says so.",
    ),
    (
        "Logit lens",
        "Each cell applies the final norm and the unembedding to the stream at that layer and token, as if the blocks "
        "after it were skipped. It names the most probable next token; the colour is its probability. In early layers "
        "the stream is not yet in the unembedding's terms, so what it says there means little.",
    ),
    (
        "Reads by layer",
        "The length of what a read keeps, and its component along each declared direction (taken to length 1), without "
        "(none) and with the job's patches and steers (all). At one token: lines with intervals over prompts.",
    ),
)
"""How to read the tables: heading and text."""
