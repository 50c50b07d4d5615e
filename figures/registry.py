"""The figures and tables of every study. A new study is one entry in STUDIES: its reader, guide and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrace.figures.errors import FigureError


@dataclass(frozen=True)
class Figure:
    """One kind of figure or table of a study."""

    name: str
    """`study/kind`, as given to `--only`."""
    description: str
    """One line for `posttrace ls figures`."""
    function: str
    """`module:function`, imported when drawn: takes the study's groups as read, yields Drawing and Table."""


@dataclass(frozen=True)
class Study:
    """How the groups of one study become figures."""

    reader: str
    """`module:function`, imported when read: opened group (xarray Dataset) -> a `group.Group`."""
    guide: str
    """`module:constant`: (heading, text) for each kind of figure, for readers of the page."""
    figures: tuple[Figure, ...]
    """In the order of the report."""
    estimate_guide: str | None = None
    """As `guide`, added where a group holds estimates (its attribute `method` is "attribution")."""


STUDIES: dict[str, Study] = {
    "knowledge": Study(
        reader="posttrace.figures.studies.knowledge.data:PatchGrid.from_dataset",
        guide="posttrace.figures.studies.knowledge.guide:GUIDE",
        estimate_guide="posttrace.figures.studies.knowledge.guide:ESTIMATE_GUIDE",
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
                "knowledge/attribution",
                "of attribution patching, table and scatter: estimate against exact values, and the largest miss",
                "posttrace.figures.studies.knowledge.attribution:attribution",
            ),
            Figure(
                "knowledge/heatmaps",
                "normalised patching heat maps, a panel for each source and target stage",
                "posttrace.figures.studies.knowledge.heatmaps:heatmaps",
            ),
            Figure(
                "knowledge/heatmaps_raw",
                "the same heat maps as mean logit difference, not normalised, one colour scale",
                "posttrace.figures.studies.knowledge.heatmaps:heatmaps_raw",
            ),
            Figure(
                "knowledge/differences",
                "differences of normalised maps: storage minus base's, transfer minus the target's own",
                "posttrace.figures.studies.knowledge.differences:differences",
            ),
            Figure(
                "knowledge/differences_raw",
                "the same differences as mean logit difference, not normalised",
                "posttrace.figures.studies.knowledge.differences:differences_raw",
            ),
            Figure(
                "knowledge/heads",
                "of single attention heads (site z), change by patching each: layer x head, by token role",
                "posttrace.figures.studies.knowledge.heads:heads",
            ),
            Figure(
                "knowledge/recovery",
                "lines: share of the clean-corrupt gap recovered at subject, object, last and other tokens, "
                "by layer",
                "posttrace.figures.studies.knowledge.recovery:recovery",
            ),
        ),
    ),
    "confidence": Study(
        reader="posttrace.figures.studies.confidence.data:read",
        guide="posttrace.figures.studies.confidence.guide:GUIDE",
        figures=(
            Figure(
                "confidence/overlap",
                "tables: candidate entropy neurons that stages share, expected by chance, and for other thresholds",
                "posttrace.figures.studies.confidence.tables:overlaps",
            ),
            Figure(
                "confidence/candidates",
                "table: the candidates of every stage with their norm and LogitVar",
                "posttrace.figures.studies.confidence.tables:candidate_lists",
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
                "table: candidates that stages share, beside how their confidence differs",
                "posttrace.figures.studies.confidence.tables:stages_compared",
            ),
            Figure(
                "confidence/scatter",
                "norm against LogitVar with marginals, two stages side by side, shared candidates linked",
                "posttrace.figures.studies.confidence.scatter:scatter",
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
    ),
    "refusal": Study(
        reader="posttrace.figures.studies.refusal.data:Refusal.from_dataset",
        guide="posttrace.figures.studies.refusal.guide:GUIDE",
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
            ),
            Figure(
                "refusal/completions",
                "table: answers side by side, with and without each direction",
                "posttrace.figures.studies.refusal.tables:completions",
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
                "lines: refusals, log-odds and text against the length of what is added",
                "posttrace.figures.studies.refusal.coefficients:coefficients",
            ),
        ),
    ),
    "trace": Study(
        reader="posttrace.figures.studies.trace.data:TraceGroup",
        guide="posttrace.figures.studies.trace.guide:GUIDE",
        figures=(
            Figure(
                "trace/next_tokens",
                "table: the most probable next tokens of each prompt, with and without the operations",
                "posttrace.figures.studies.trace.tables:next_tokens",
            ),
            Figure(
                "trace/completions",
                "table: what every stage goes on to say, with and without the steers (jobs that generate)",
                "posttrace.figures.studies.trace.tables:completions",
            ),
        ),
    ),
    "truthfulness": Study(
        reader="posttrace.figures.studies.truthfulness.data:read",
        guide="posttrace.figures.studies.truthfulness.guide:GUIDE",
        figures=(
            Figure(
                "truthfulness/accuracies",
                "tables: accuracy of own and transferred probes on the sets left out, and between all stages",
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
            ),
            Figure(
                "truthfulness/effects",
                "dots: intervention effects beside those of random directions",
                "posttrace.figures.studies.truthfulness.effects:effects_against_random",
            ),
            Figure(
                "truthfulness/coefficients",
                "lines: intervention effect by coefficient, where a job asked for several",
                "posttrace.figures.studies.truthfulness.coefficients:effect_by_coefficient",
            ),
            Figure(
                "truthfulness/accuracy",
                "lines: probe accuracy on the sets left out, by layer",
                "posttrace.figures.studies.truthfulness.accuracy:accuracy_by_layer",
            ),
            Figure(
                "truthfulness/cosine",
                "lines: cosine of the stages' truth directions, by layer",
                "posttrace.figures.studies.truthfulness.cosine:cosine_by_layer",
            ),
            Figure(
                "truthfulness/layers",
                "lines: what the layers were chosen by, on the training sets",
                "posttrace.figures.studies.truthfulness.layers:choice_of_layers",
            ),
            Figure(
                "truthfulness/projection",
                "scatter: activations along the truth direction, by label and stage",
                "posttrace.figures.studies.truthfulness.projection:projections",
            ),
        ),
    ),
}

FIGURES: dict[str, str] = {
    figure.name: figure.description for study in STUDIES.values() for figure in study.figures
}
"""Name -> one-line description of everything that can be drawn."""


def chosen(only: str | Sequence[str] | None = None) -> list[Figure]:
    """Return the figures that names select: `study/kind`, a study, or a kind that only one study has.

    Example
    -------
    >>> [figure.name for figure in chosen("recovery")]
    ['knowledge/recovery']

    Raises
    ------
    FigureError: a name that selects nothing; the message lists the valid ones.
    """
    everything = [figure for study in STUDIES.values() for figure in study.figures]
    if only is None:
        return everything
    wanted: list[Figure] = []
    for name in [only] if isinstance(only, str) else only:
        found = [f for f in everything if name in (f.name, f.name.split("/")[0])]
        kinds = [f for f in everything if name == f.name.split("/")[1]]
        found = found or (kinds if len(kinds) == 1 else [])
        if not found:
            raise FigureError(f"--only {name}: no such figure; valid are {', '.join([*STUDIES, *FIGURES])}")
        wanted += found
    return [figure for figure in everything if figure in wanted]
