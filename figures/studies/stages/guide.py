"""How to read the figures of the stages study."""

from __future__ import annotations

GUIDE = (
    (
        "Three counterfactuals",
        "The effect of a stage is the difference of two checkpoints: exact, and all stages' effects sum to the whole "
        "difference. An update removed from the final weights is exact about weights, but nobody trained that model. "
        "What training without the stage would have given is a third thing, which only retraining shows; for the last "
        "stage all three are the same.",
    ),
    (
        "Effects and their signs",
        "Means can hide effects of both signs that cancel, so the mean absolute effect stands next to the mean. "
        "Intervals are over prompts: they say nothing about other seeds of training.",
    ),
    (
        "Removal and controls",
        "Gaussian directions and permuted updates are as long as the update in every tensor. An update that does no "
        "more than they do is not special. The rounding floor is how far storing weights in bfloat16 could have moved "
        "the behaviour.",
    ),
    (
        "Training without a stage",
        "The later stages are trained again from the stage before the one left out: with the data as they came, which "
        "is the truth here, and with the same data in another order, which says how far training itself repeats. "
        "An estimate is worth something if its error is well below that of the rows above it, which need none. The "
        "task vector is the stage's update removed from the final weights; the propagated one is what later training "
        "made of that update, to first order.",
    ),
    (
        "Attribution",
        "A cell is the part of the stage's effect that arises at this layer, module and token, along the straight path "
        "of weights between the two checkpoints. Cells sum to the effect. What the update adds at a token is counted "
        "there, whatever later layers make of it.",
    ),
    (
        "Agreement with swaps",
        "Inserting one module into the earlier stage and removing it from the later one are exact experiments. Where "
        "the two differ much, modules work together, and how credit is shared depends on the order in which they are "
        "counted: then no map is the only right one.",
    ),
    (
        "Cumulative swaps",
        "The update is put in part by part, from the embeddings upwards or from the unembedding downwards. Both curves "
        "begin at the earlier stage and end at the later one; a step that only one of them shows needs parts on the "
        "other side.",
    ),
)
"""How to read each kind of figure: heading and text."""
