"""Figures and tables of the study `knowledge`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.knowledge.data:PatchGrid.from_dataset",
    guide="posttrace.figures.studies.knowledge.guide:GUIDE",
    estimate_guide="posttrace.figures.studies.knowledge.guide:ESTIMATE_GUIDE",
    verdict="posttrace.figures.studies.knowledge.verdict:verdict",
    hero="knowledge/recovery",
    figures=(
        Figure(
            "knowledge/judgement",
            "table: unpatched logit differences and the share of pairs that the model judges right",
            "posttrace.figures.studies.knowledge.tables:judgement",
        ),
        Figure(
            "knowledge/statistics",
            "tables: correlation, max difference and K between patching matrices, with 95 % intervals",
            "posttrace.figures.studies.knowledge.tables:statistics",
        ),
        Figure(
            "knowledge/recovery",
            "lines: share of the clean-corrupt gap recovered at subject, object, last and other tokens, "
            "by layer",
            "posttrace.figures.studies.knowledge.recovery:recovery",
        ),
        Figure(
            "knowledge/differences",
            "differences of normalised maps: storage minus base's, transfer minus the target's own",
            "posttrace.figures.studies.knowledge.differences:differences",
        ),
        Figure(
            "knowledge/heads",
            "single attention heads (site z), change of the answer by patching each: layer x head, by token role",
            "posttrace.figures.studies.knowledge.heads:heads",
        ),
        Figure(
            "knowledge/heatmaps",
            "normalised patching heat maps, a panel for each source and target stage",
            "posttrace.figures.studies.knowledge.heatmaps:heatmaps",
            folded=True,
        ),
        Figure(
            "knowledge/heatmaps_raw",
            "the same heat maps as mean logit difference, not normalised, one colour scale",
            "posttrace.figures.studies.knowledge.heatmaps:heatmaps_raw",
            folded=True,
        ),
        Figure(
            "knowledge/differences_raw",
            "the same differences as mean logit difference, not normalised",
            "posttrace.figures.studies.knowledge.differences:differences_raw",
            folded=True,
        ),
        Figure(
            "knowledge/attribution",
            "attribution patching, table and scatter: estimates against exact values, and the largest error",
            "posttrace.figures.studies.knowledge.attribution:attribution",
        ),
    ),
)
