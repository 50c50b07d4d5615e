"""Figures and tables of the study `difference`."""

from posttrace.figures.study import Figure, Study

_HERE = "posttrace.figures.studies.difference"

STUDY = Study(
    reader=f"{_HERE}.data:Difference.from_dataset",
    guide=f"{_HERE}.guide:GUIDE",
    verdict=f"{_HERE}.verdict:verdict",
    hero="difference/roles",
    figures=(
        Figure(
            "difference/divergence",
            "table: JS, KL, entropy and loss by pair and role of the token, and how concentrated JS is",
            f"{_HERE}.tables:divergence",
        ),
        Figure(
            "difference/worse_than_chance",
            "table: tokens that a stage predicts worse than chance: a template that it never saw",
            f"{_HERE}.tables:worse_than_chance",
        ),
        Figure(
            "difference/tokens",
            "table: tokens that became more probable, in two orderings, with their ranks in the control pair",
            f"{_HERE}.tables:tokens",
            folded=True,
        ),
        Figure(
            "difference/topics",
            "table: tokens that rise together, and where",
            f"{_HERE}.tables:topics",
            folded=True,
        ),
        Figure(
            "difference/lens",
            "table: what the mean difference points to, by layer and slot, blank below the bound",
            f"{_HERE}.tables:lens",
            folded=True,
        ),
        Figure(
            "difference/components",
            "table: what principal components point to, and where they are most extreme",
            f"{_HERE}.tables:components",
            folded=True,
        ),
        Figure(
            "difference/patchscope",
            "table: what a prompt that repeats tokens reads in the mean difference, where it reads known tokens",
            f"{_HERE}.tables:patchscope",
            folded=True,
        ),
        Figure(
            "difference/completions",
            "table: what the source says when it is steered by the mean difference",
            f"{_HERE}.tables:completions",
            folded=True,
        ),
        Figure(
            "difference/roles",
            "dots: JS by role of the token, with intervals over documents",
            f"{_HERE}.roles:roles",
        ),
        Figure(
            "difference/contexts",
            "text: the contexts that change most, coloured by token",
            f"{_HERE}.contexts:contexts",
        ),
        Figure(
            "difference/streams",
            "heat maps: relative length and cosine of the difference of streams, by layer and role",
            f"{_HERE}.streams:streams",
        ),
        Figure(
            "difference/maps",
            "lines: CKA, and R² of the target's stream predicted from the source's, by layer",
            f"{_HERE}.layers:maps",
        ),
        Figure(
            "difference/steering",
            "lines: share of JS recovered by adding the mean difference, next to controls, by layer",
            f"{_HERE}.layers:steering",
        ),
        Figure(
            "difference/spectra",
            "lines: variance that each principal component of the difference explains, against shuffled columns",
            f"{_HERE}.layers:spectra",
            folded=True,
        ),
    ),
)
