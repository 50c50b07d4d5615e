"""Published numbers, shown for reference next to ours of the same model, without intervals.

Source: Du et al. 2025, "How Post-Training Reshapes LLMs" (arXiv 2504.02904), tables on knowledge storage, probe
transfer, truthful intervention and others.
"""

MODEL = "Llama-3.1-8B"
PAPER = f"Du et al. 2025, {MODEL}"
PAPER_TITLE = "Du et al. 2025, How Post-Training Reshapes LLMs, arXiv 2504.02904"

SETS = (
    "cities",
    "neg_cities",
    "larger_than",
    "smaller_than",
    "sp_en_trans",
    "neg_sp_en_trans",
    "tulu_extracted",
)
"""Statement sets in the paper's order."""

STORAGE_COMPARED = (("base", "base"), ("instruct", "instruct"))
"""The two (source, target) that the paper compares."""

STORAGE = {
    "correlation": dict(zip(SETS, (0.9923, 0.9853, 0.9969, 0.9805, 0.9945, 0.9822, 0.9978), strict=True)),
    "max": dict(zip(SETS, (0.4, 0.4, 0.3, 0.5, 0.3, 0.5, 0.2), strict=True)),
    "max_k": dict(zip(SETS, (0.2, 0.4, 0.1, 0.5, 0.2, 0.1, 0.1), strict=True)),
}
"""Normalised storage maps: statistic -> set -> value."""

ENTROPY_NEURONS = {
    "Llama-3.1-8B, base and instruct": (8, 0.000815),
    "Llama-3.1-8B, base and sft": (10, 0.000112),
    "Mistral-7B, base and instruct": (9, 0.000030),
    "Mistral-7B, base and sft": (8, 0.000089),
    "Llama-2-7B, base and instruct": (9, 0.001712),
}
"""Models -> overlapping entropy neurons out of 10, and average ratio difference."""

REFUSAL = {
    "base": {"harmful": {"baseline": 0.21, "own": 0.17}, "harmless": {"baseline": 0.01, "own": 0.59}},
    "instruct": {
        "harmful": {"baseline": 0.98, "own": 0.01, "base": 0.95},
        "harmless": {"baseline": 0.0, "own": 1.0, "base": 0.08},
    },
}
"""Stage -> instructions -> share of refusals: baseline, with the stage's own direction, with base's direction."""

TRUTH_SETS = ("cities", "sp_en_trans", "inventors", "animal_class", "element_symb", "facts")
"""Statement sets of the truthfulness tables, in the paper's order."""

_OWN_AND_TRANSFERRED = (
    ("base", "base"),
    ("sft", "sft"),
    ("base", "sft"),
    ("instruct", "instruct"),
    ("base", "instruct"),
)
_ACCURACY = (
    (81.06, 84.50, 85.32, 94.65, 95.91),
    (97.16, 98.45, 98.88, 95.18, 98.94),
    (92.72, 91.96, 93.12, 88.73, 92.18),
    (97.20, 96.01, 95.64, 98.75, 96.46),
    (92.02, 94.87, 97.02, 96.18, 95.13),
    (77.05, 77.58, 77.72, 82.47, 80.86),
)
_EFFECT = (
    (0.83, 0.91, 0.92, 0.88, 0.90),
    (0.78, 0.82, 0.83, 0.84, 0.81),
    (0.73, 0.79, 0.80, 0.71, 0.72),
    (0.72, 0.80, 0.82, 0.79, 0.83),
    (0.79, 0.84, 0.86, 0.73, 0.77),
    (0.61, 0.64, 0.66, 0.62, 0.66),
)

PROBE_TRANSFER = {
    name: dict(zip(_OWN_AND_TRANSFERRED, row, strict=True))
    for name, row in zip(TRUTH_SETS, _ACCURACY, strict=True)
}
"""Set -> (source, target) -> accuracy of the mass-mean probe, per cent."""

INTERVENTION = {
    name: dict(zip(_OWN_AND_TRANSFERRED, row, strict=True))
    for name, row in zip(TRUTH_SETS, _EFFECT, strict=True)
}
"""Set -> (source, target) -> intervention effect, mean of both directions."""


def is_about(family: str, models: str = MODEL) -> bool:
    """Tell whether published numbers are of the models of a family, by its name.

    Parameters
    ----------
    family
        As a store names it.
    models
        What the numbers are of: a model, perhaps followed by a comma and its stages.

    Examples
    --------
    >>> is_about("llama-3.1-8b"), is_about("embedded"), is_about("mistral-7b", "Mistral-7B, base and sft")
    (True, False, True)
    """
    return family.lower() == models.split(",")[0].lower()
