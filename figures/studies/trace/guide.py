"""How to read the figures of the trace study."""

from __future__ import annotations

GUIDE = (
    (
        "Next tokens",
        "The most probable next tokens of each prompt and their probabilities, for every stage, with the prompt "
        "as it is (none) and with every patch and steer of the job at work (all). The entropy (nats) says how "
        "spread the whole distribution is.",
    ),
    (
        "Answers side by side",
        "What every stage goes on to say, greedily, with the prompt as it is (none) and with the job's steers at work "
        "at every token (all).",
    ),
)
"""How to read the tables: heading and text."""
