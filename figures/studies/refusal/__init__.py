"""Figures and tables of the study `refusal`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.refusal.data:Refusal.from_dataset",
    guide="posttrace.figures.studies.refusal.guide:GUIDE",
    verdict="posttrace.figures.studies.refusal.verdict:verdict",
    hero="refusal/cosines",
    figures=(
        Figure(
            "refusal/scores",
            "tables: share of refusals, log-odds and text scores, baseline against every direction, with intervals",
            "posttrace.figures.studies.refusal.tables:scores",
        ),
        Figure(
            "refusal/selection",
            "table: layer, position and coefficient of every stage's direction",
            "posttrace.figures.studies.refusal.tables:selection",
            folded=True,
        ),
        Figure(
            "refusal/completions",
            "table: answers side by side, with and without each direction",
            "posttrace.figures.studies.refusal.tables:completions",
            folded=True,
        ),
        Figure(
            "refusal/sweep",
            "lines: bypass, induce and KL of the direction of every layer and position",
            "posttrace.figures.studies.refusal.sweep:sweep",
        ),
        Figure(
            "refusal/cosines",
            "heat maps: cosine similarity of the stages' directions, layer by position",
            "posttrace.figures.studies.refusal.cosines:cosines",
        ),
        Figure(
            "refusal/coefficients",
            "lines: refusals, log-odds and mean NLL against the length of the added vector",
            "posttrace.figures.studies.refusal.coefficients:coefficients",
        ),
    ),
)
