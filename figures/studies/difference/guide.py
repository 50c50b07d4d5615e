"""How to read the figures of the difference study."""

from __future__ import annotations

GUIDE = (
    (
        "What changed, and how to tell it from noise",
        "Two stages read the same text, and everything between them is compared. Intervals are over documents: they "
        "say how much depends on these texts, and nothing of what another training run would have given. Only a "
        "control pair does: two trainings without the difference that is sought, such as two seeds or two "
        "neighbouring checkpoints. Where a page says that there is no training control, small differences mean little.",
    ),
    (
        "Divergence",
        "The Jensen-Shannon divergence (JS) of the two next-token distributions is 0 where they are equal and ln 2 = "
        "0.693 nats where they have nothing in common. It is shown first since KL has no upper end and explodes where "
        "a format changes. A few tokens hold most of it, often ends of sentences and turns. A role belongs to the "
        "token that was read: the distribution is of the token after it.",
    ),
    (
        "Worse than chance",
        "Tokens that a stage predicts worse than a uniform guess, on average. A base model on a chat template that it "
        "never saw is off its distribution there, and whatever differs at these tokens says so and little else.",
    ),
    (
        "Tokens that became more probable",
        "Two orderings, to be read together. “occurring” is the share of positions at which a token is among the 20 "
        "whose log probability rises most: habits show there, and junk does where the stages hardly differ. “KL by "
        "token” is what a token adds to KL: changed facts show there. A token that leads in the control pair too is "
        "no finding.",
    ),
    (
        "Streams",
        "Length of the difference of the residual streams, relative to the source's stream, and their cosine, by "
        "layer and role. Grey: the stored 16 bits make more than 5 % of the difference.",
    ),
    (
        "CKA and R²",
        "CKA near 1: the same geometry up to rotation and scale. R² says how well the target's stream is predicted on "
        "held-out documents by the source's as it is, with a mean shift, and by a linear map.",
    ),
    (
        "Lens",
        "Tokens that the mean difference points to, read through the target's unembedding. Blank: no token exceeds "
        "what 95 % of random directions stay below. What is shown can be read there; whether the model uses it, "
        "steering says.",
    ),
    (
        "Patchscope",
        "A prompt that repeats tokens reads a stream that is put into it, if it can: the table says first how many "
        "known tokens it reads back at each block. Where these are fewer than half, what it would say of a mean "
        "difference means nothing, and is left out.",
    ),
    (
        "Steering",
        "The mean difference is added to the source's stream after one block, on documents that it was not computed "
        "from. 1: the source then behaves as the target; 0: no nearer than before; negative: farther away. Compare "
        "with the random directions of the same length.",
    ),
    (
        "Spectra",
        "How many directions a difference takes. Above the dashed line a component explains more than one of columns "
        "that were shuffled independently.",
    ),
)
"""How to read each kind of figure: heading and text."""
