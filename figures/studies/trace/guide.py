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
)
"""How to read the tables: heading and text."""
