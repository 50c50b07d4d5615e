"""Figures and tables of the study `confidence`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.confidence.data:read",
    guide="posttrace.figures.studies.confidence.guide:GUIDE",
    verdict="posttrace.figures.studies.confidence.verdict:verdict",
    hero="confidence/changes",
    figures=(
        Figure(
            "confidence/overlap",
            "tables: candidate entropy neurons that stages share, compared with chance, and for other thresholds",
            "posttrace.figures.studies.confidence.tables:overlaps",
        ),
        Figure(
            "confidence/candidates",
            "table: the candidates of every stage with their norm and LogitVar",
            "posttrace.figures.studies.confidence.tables:candidate_lists",
            folded=True,
        ),
        Figure(
            "confidence/ablation",
            "table: change of entropy and loss by ablating candidates and random neurons, norm frozen or not",
            "posttrace.figures.studies.confidence.tables:ablation",
        ),
        Figure(
            "confidence/calibration",
            "table: accuracy, confidence and expected calibration error of the answers, with intervals",
            "posttrace.figures.studies.confidence.tables:calibration",
        ),
        Figure(
            "confidence/stages",
            "table: candidates that stages share, next to how their confidence differs",
            "posttrace.figures.studies.confidence.tables:stages_compared",
        ),
        Figure(
            "confidence/scatter",
            "norm against LogitVar with marginals, two stages side by side, shared candidates linked",
            "posttrace.figures.studies.confidence.scatter:scatter",
            folded=True,
        ),
        Figure(
            "confidence/changes",
            "strips: change of entropy and loss by ablating candidates and random neurons",
            "posttrace.figures.studies.confidence.changes:changes",
        ),
        Figure(
            "confidence/reliability",
            "reliability curves: accuracy against confidence, for every set and stage",
            "posttrace.figures.studies.confidence.reliability:reliability",
        ),
    ),
)
