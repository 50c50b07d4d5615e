"""How to read the figures of the truthfulness study."""

GUIDE = (
    (
        "Truth direction",
        "The direction is the difference of mean activations at the last token of bare statements, true minus false, "
        "over all sets but one. A probe along it then judges the held-out set, so its accuracy shows that the "
        "direction generalises beyond the topics it was learned on.",
    ),
    (
        "Probe transfer",
        "base → sft: the probe was trained on base's activations and judges sft's. If its accuracy is near that of "
        "the stage's own probe (Δ near 0), the two stages represent truth alike. Accuracy shows that truth can be read "
        "there, not that the model uses it.",
    ),
    (
        "Interventions",
        "The direction is added for false statements and subtracted for true ones at two tokens, in a range of blocks, "
        "and the change of the model's answer is measured. 0: no change, 1: certainty of the opposite. A model that "
        "was right and certain before, and then gives the same answer to every statement, scores 0.5. Any large vector "
        "disturbs a model, so compare with random directions of the same norm: only an effect beyond their range is "
        "due to the direction.",
    ),
    (
        "Choice of layers",
        "Layers are chosen on the training sets alone: the earliest whose probes are as good as any, and the block "
        "from which steering has the largest effect. The figure shows the whole sweep together with random directions: "
        "where their band covers the line or lies above it, the choice found the strongest disturbance, not a "
        "direction that matters.",
    ),
    (
        "Activation scatter",
        "True and false statements of a set that the direction was not learned on. If they are separated along the "
        "horizontal axis in every panel, one direction serves all stages.",
    ),
)
