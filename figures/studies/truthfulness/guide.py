"""How to read the figures of the truthfulness study."""

GUIDE = (
    (
        "Truth direction",
        "Activations at the last token of bare statements, true minus false, averaged over all sets but one: that "
        "difference is the direction. The set that was left out is then judged by a probe made of it, so accuracy "
        "means that the direction holds beyond the topics it was learned on.",
    ),
    (
        "Probe transfer",
        "base → sft: the probe was trained on base's activations and judges sft's. Near the stage's own accuracy "
        "(Δ near 0), the two stages represent truth alike. Accuracy says that truth can be read there, not that the "
        "model uses it.",
    ),
    (
        "Interventions",
        "The direction is added to false statements and taken from true ones at two tokens, in a range of blocks, and "
        "the model's own answer is watched. 0: nothing changes, 1: certainty of the opposite; one and the same answer "
        "to every statement gives a half where the model was right and certain before. Any large push disturbs a "
        "model, so compare with random directions of the same norm: only an effect beyond their range belongs to the "
        "direction.",
    ),
    (
        "Choice of layers",
        "Layers are chosen on the training sets alone: the earliest whose probes are as good as any, and the block "
        "from which a push has the largest effect. The figure shows the whole sweep beside random directions: where "
        "their band covers the line or lies above it, the choice found the strongest push, not a direction that "
        "matters.",
    ),
    (
        "Activation scatter",
        "True and false statements of a set that the direction was not learned on. Apart along the horizontal axis in "
        "every panel: one direction serves all stages.",
    ),
)
