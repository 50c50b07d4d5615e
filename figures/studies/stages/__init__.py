"""Figures and tables of the study `stages`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.stages.data:read",
    guide="posttrace.figures.studies.stages.guide:GUIDE",
    verdict="posttrace.figures.studies.stages.verdict:verdict",
    hero="stages/credit",
    figures=(
        Figure(
            "stages/effects",
            "table: effect of every stage on every behaviour, mean and mean absolute, with intervals",
            "posttrace.figures.studies.stages.tables:effects",
        ),
        Figure(
            "stages/removal",
            "table: every update removed from the final weights, with the controls and the rounding floor",
            "posttrace.figures.studies.stages.tables:removal",
        ),
        Figure(
            "stages/estimators",
            "table: estimates of training without a stage, next to retraining",
            "posttrace.figures.studies.stages.estimators:estimators",
        ),
        Figure(
            "stages/weights",
            "table: norms, changed shares and cosines of the updates",
            "posttrace.figures.studies.stages.tables:weights",
            folded=True,
        ),
        Figure(
            "stages/credit",
            "bars: effect of every stage on every behaviour, with intervals",
            "posttrace.figures.studies.stages.bars:credit",
        ),
        Figure(
            "stages/dose",
            "lines: effect of removing a share of an update, with the band of the controls",
            "posttrace.figures.studies.stages.curves:dose",
        ),
        Figure(
            "stages/tokens",
            "heat maps: attribution of a stage's effect, layer by token",
            "posttrace.figures.studies.stages.maps:tokens",
        ),
        Figure(
            "stages/modules",
            "heat maps: attribution of a stage's effect, layer by module",
            "posttrace.figures.studies.stages.maps:modules",
            folded=True,
        ),
        Figure(
            "stages/agreement",
            "scatter: attribution of every module against its swaps",
            "posttrace.figures.studies.stages.agreement:agreement",
        ),
        Figure(
            "stages/scatter",
            "scatter: estimates of training without a stage against retraining",
            "posttrace.figures.studies.stages.estimators:scatter",
        ),
        Figure(
            "stages/cumulative",
            "lines: behaviour as the update is put in part by part, from below and from above",
            "posttrace.figures.studies.stages.curves:cumulative",
            folded=True,
        ),
    ),
)
