"""How to read the figures of the refusal study."""

from __future__ import annotations

GUIDE = (
    (
        "The experiment",
        "The refusal direction of a stage is the mean stream of harmful minus that of harmless prompts, at the input "
        "of one block and one of the last tokens of the template. Ablation removes it from the stream at every layer; "
        "addition adds it in one block, at every token of prompt and answer. If refusal is this one direction, "
        "ablation makes the model answer harmful instructions and addition makes it refuse harmless ones.",
    ),
    (
        "Refusal tables",
        "Own: the target's own direction; then the directions of the other stages applied to the same target, in the "
        "same block and with the same length, so that only the direction differs; then random directions, mean and "
        "range. A direction that does no more than random ones has no effect of its own. The share counts answers that "
        "begin with a refusal phrase; the log-odds need no phrases and use the first token alone. Where the two "
        "disagree, read the answers.",
    ),
    (
        "Mean negative log-likelihood and repetition",
        "Mean negative log-likelihood of the answer in the same stage unsteered, from its second token on, nats per "
        "token; a rise means that steering broke the text rather than just changing the answer. Repetition: share of "
        "adjacent token pairs that occurred in the answer before; it detects loops that the likelihood misses.",
    ),
    (
        "Sweep",
        "Every place that the direction could be taken from, on validation prompts: bypass (harmful, ablated: lower "
        "is better), induce (harmless, added: above 0, refusal is more likely), and the KL divergence that ablation "
        "causes on harmless prompts. The ring is the chosen place.",
    ),
    (
        "Cosines",
        "1: two stages have the same direction at that layer and position; 0: no more alike than by chance.",
    ),
)
"""How to read each kind of figure: heading and text."""
