"""How to read the figures of the confidence study."""

from __future__ import annotations

GUIDE = (
    (
        "Entropy neurons",
        "Neurons of the last MLP whose output vector has a large norm but favours no token: its cosine with the "
        "unembedding hardly varies over the vocabulary (LogitVar). Through the final norm they could change how "
        "confident the model is without changing what it says. The scatter shows every neuron and the ten candidates; "
        "lines link those that two stages share.",
    ),
    (
        "Overlap",
        "How many candidates two stages share, and how many they would share if only their norms were related. "
        " The sensitivity table repeats the count for other thresholds: a result that depends on "
        "one of them means little.",
    ),
    (
        "Ablation",
        "The candidates are held at their mean activation, together and one by one, and compared with random neurons "
        "of similar norm. “Norm frozen” keeps the scale that the final norm has in the unablated run: a true entropy "
        "neuron would change the entropy, but hardly with the norm frozen. Candidates that lie among the random dots "
        "do nothing special, whatever their weights look like.",
    ),
    (
        "Calibration",
        "Confidence is the larger of P(TRUE) and P(FALSE), renormalised. On the diagonal a stage is right as often as "
        "it is confident; below it, it is overconfident. ECE is never below 0 and is larger with few statements: "
        "compare it between stages on the same statements.",
    ),
)
"""How to read each kind of figure: heading and text."""
