"""Figures and tables of the study `truthfulness`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.truthfulness.data:read",
    guide="posttrace.figures.studies.truthfulness.guide:GUIDE",
    verdict="posttrace.figures.studies.truthfulness.verdict:verdict",
    hero="truthfulness/effects",
    figures=(
        Figure(
            "truthfulness/accuracies",
            "tables: accuracy of own and transferred probes on held-out sets, and between all stages",
            "posttrace.figures.studies.truthfulness.tables:accuracies",
        ),
        Figure(
            "truthfulness/effects_table",
            "table: intervention effects of own, transferred and random directions",
            "posttrace.figures.studies.truthfulness.tables:effects",
        ),
        Figure(
            "truthfulness/completions",
            "table: sample completions before and after interventions",
            "posttrace.figures.studies.truthfulness.tables:completions",
            folded=True,
        ),
        Figure(
            "truthfulness/effects",
            "dots: intervention effects compared with random directions",
            "posttrace.figures.studies.truthfulness.effects:effects_against_random",
        ),
        Figure(
            "truthfulness/coefficients",
            "lines: intervention effect by coefficient, for jobs with several",
            "posttrace.figures.studies.truthfulness.coefficients:effect_by_coefficient",
        ),
        Figure(
            "truthfulness/accuracy",
            "lines: probe accuracy on held-out sets, by layer",
            "posttrace.figures.studies.truthfulness.accuracy:accuracy_by_layer",
        ),
        Figure(
            "truthfulness/cosine",
            "lines: cosine of the stages' truth directions, by layer",
            "posttrace.figures.studies.truthfulness.cosine:cosine_by_layer",
        ),
        Figure(
            "truthfulness/layers",
            "lines: the criteria for choosing the layers, on the training sets",
            "posttrace.figures.studies.truthfulness.layers:choice_of_layers",
            folded=True,
        ),
        Figure(
            "truthfulness/projection",
            "scatter: activations along the truth direction, by label and stage",
            "posttrace.figures.studies.truthfulness.projection:projections",
            folded=True,
        ),
    ),
)
