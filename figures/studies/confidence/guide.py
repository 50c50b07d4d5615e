"""How to read the figures of the confidence study."""

from __future__ import annotations

GUIDE = (
    (
        "Entropy neurons",
        "Neurons of the last MLP with a long output vector that favours no token: its cosine with the unembedding "
        "hardly varies over the vocabulary (LogitVar). They could change how sure the model is, through the final "
        "norm, without changing what it says. The scatter shows every neuron and the ten candidates; lines link "
        "those that two stages share.",
    ),
    (
        "Overlap",
        "How many candidates two stages share, and how many they would share if nothing but their norms tied them "
        "together. The sensitivity table repeats the count for other thresholds: a result that hangs on one of "
        "them means little.",
    ),
    (
        "Ablation",
        "The candidates are held at their mean activation, together and one by one, beside random neurons of like "
        "norm. “Norm frozen” keeps the final norm's scale of the unablated run: an entropy neuron proper would "
        "change the entropy as it is and hardly with the norm frozen. Where candidates lie among the random dots, "
        "they do nothing particular, whatever their weights look like.",
    ),
    (
        "Calibration",
        "Confidence is the larger of P(TRUE) and P(FALSE), of the two together. On the diagonal a stage is right "
        "as often as it is sure; below it, it is overconfident. ECE is never below 0 and grows when statements are "
        "few: compare it between stages on the same statements.",
    ),
)
"""How to read each kind of figure: heading and text."""
