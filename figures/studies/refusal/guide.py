"""How to read the figures of the refusal study."""

from __future__ import annotations

GUIDE = (
    (
        "The experiment",
        "The refusal direction of a stage is the mean stream of harmful minus that of harmless prompts, at the input "
        "of one block and one of the last tokens of the template. Ablation takes it out of the stream at every "
        "layer, addition adds it in one block, at every token of prompt and answer. If refusing is this one "
        "direction, ablation makes harmful instructions be answered and addition makes harmless ones be refused.",
    ),
    (
        "Refusal tables",
        "Own: the target's own direction; then the directions of the other stages put into the same target, at the "
        "same place and with the same length, so that only the direction differs; then random ones, mean and range. "
        "A direction that does no more than random ones does nothing. The share counts answers that begin with a "
        "refusal phrase; the log-odds need no phrase and look at the first token alone. Where the two disagree, read "
        "the answers.",
    ),
    (
        "Mean negative log-likelihood and repetition",
        "Mean negative log-likelihood of the answer in the same stage unsteered, from its second token on, nats a "
        "token; a rise means that steering broke the text and did not just turn the answer. Repetition: share of "
        "neighbouring token pairs that the answer had before; it finds the loops that the likelihood misses.",
    ),
    (
        "Sweep",
        "Every place that the direction could be taken from, on validation prompts: bypass (harmful, ablated: lower "
        "is better), induce (harmless, added: above 0 refusal is likelier), and the KL divergence that ablation costs "
        "on harmless prompts. The ring is what was chosen.",
    ),
    (
        "Cosines",
        "1: two stages have the same direction at that layer and position; 0: no more alike than by chance.",
    ),
)
"""How to read each kind of figure: heading and text."""
