"""What can be drawn. A new study is one entry in STUDIES: how to read its groups, and the functions that draw them."""

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
    """`module:function`, imported when drawn: takes the study's groups as read and yields Drawing and Table."""


@dataclass(frozen=True)
class Study:
    """How the groups of one study become figures."""

    reader: str
    """`module:function`, imported when read: opened group (xarray Dataset) -> what the figures of this study take."""
    guide: str
    """`module:constant`: (heading, text) for each kind of figure, for readers of the page."""
    figures: tuple[Figure, ...]
    """In the order of the report."""
    estimate_guide: str | None = None
    """As `guide`, added where a group holds estimates (its attribute `method` is "attribution")."""


STUDIES: dict[str, Study] = {
    "knowledge": Study(
        reader="posttrace.figures.knowledge.patchgrid:PatchGrid.from_dataset",
        guide="posttrace.figures.knowledge.maps:GUIDE",
        estimate_guide="posttrace.figures.knowledge.maps:ESTIMATE_GUIDE",
        figures=(
            Figure(
                "knowledge/judgement",
                "table: unpatched logit differences and the share of pairs that the model judges right",
                "posttrace.figures.knowledge.tables:judgement",
            ),
            Figure(
                "knowledge/statistics",
                "tables: correlation, max difference and K between patching matrices, with 95 % intervals",
                "posttrace.figures.knowledge.tables:statistics",
            ),
            Figure(
                "knowledge/attribution",
                "of attribution patching, table and scatter: estimate against exact values, and the largest miss",
                "posttrace.figures.knowledge.attribution:attribution",
            ),
            Figure(
                "knowledge/heatmaps",
                "normalised patching heat maps, a panel for each source and target stage",
                "posttrace.figures.knowledge.maps:heatmaps",
            ),
            Figure(
                "knowledge/heatmaps_raw",
                "the same heat maps as mean logit difference, not normalised, one colour scale",
                "posttrace.figures.knowledge.maps:heatmaps_raw",
            ),
            Figure(
                "knowledge/differences",
                "differences of normalised maps: storage minus base's, transfer minus the target's own",
                "posttrace.figures.knowledge.maps:differences",
            ),
            Figure(
                "knowledge/differences_raw",
                "the same differences as mean logit difference, not normalised",
                "posttrace.figures.knowledge.maps:differences_raw",
            ),
            Figure(
                "knowledge/heads",
                "of single attention heads (site head_out), change by patching each: layer x head, by token role",
                "posttrace.figures.knowledge.heads:heads",
            ),
            Figure(
                "knowledge/recovery",
                "lines: share of the clean-corrupt gap recovered at subject, object, last and other tokens, "
                "by layer",
                "posttrace.figures.knowledge.recovery:recovery",
            ),
        ),
    ),
    "confidence": Study(
        reader="posttrace.figures.confidence.results:read",
        guide="posttrace.figures.confidence.results:GUIDE",
        figures=(
            Figure(
                "confidence/overlap",
                "tables: candidate entropy neurons that stages share, expected by chance, and for other thresholds",
                "posttrace.figures.confidence.overlap:overlaps",
            ),
            Figure(
                "confidence/candidates",
                "table: the candidates of every stage with their norm and LogitVar",
                "posttrace.figures.confidence.overlap:chosen",
            ),
            Figure(
                "confidence/ablation",
                "table: change of entropy and loss by ablating candidates and random neurons, norm frozen or not",
                "posttrace.figures.confidence.effects:ablation",
            ),
            Figure(
                "confidence/calibration",
                "table: accuracy, confidence and expected calibration error of the answers, with intervals",
                "posttrace.figures.confidence.calibration:calibration",
            ),
            Figure(
                "confidence/stages",
                "table: candidates that stages share, beside how their confidence differs",
                "posttrace.figures.confidence.overlap:beside",
            ),
            Figure(
                "confidence/scatter",
                "norm against LogitVar with marginals, two stages side by side, shared candidates linked",
                "posttrace.figures.confidence.scatter:scatter",
            ),
            Figure(
                "confidence/changes",
                "strips: change of entropy and loss by ablating candidates and random neurons",
                "posttrace.figures.confidence.effects:changes",
            ),
            Figure(
                "confidence/reliability",
                "reliability curves: accuracy against confidence, for every set and stage",
                "posttrace.figures.confidence.calibration:reliability",
            ),
        ),
    ),
    "refusal": Study(
        reader="posttrace.figures.refusal.results:Refusal.from_dataset",
        guide="posttrace.figures.refusal.results:GUIDE",
        figures=(
            Figure(
                "refusal/scores",
                "tables: share of refusals, log-odds and text scores, baseline against every direction, with intervals",
                "posttrace.figures.refusal.tables:scores",
            ),
            Figure(
                "refusal/selection",
                "table: layer, position and coefficient of every stage's direction",
                "posttrace.figures.refusal.tables:selection",
            ),
            Figure(
                "refusal/completions",
                "table: answers side by side, with and without each direction",
                "posttrace.figures.refusal.completions:completions",
            ),
            Figure(
                "refusal/sweep",
                "lines: bypass, induce and KL of the direction of every layer and position",
                "posttrace.figures.refusal.sweep:sweep",
            ),
            Figure(
                "refusal/cosines",
                "heat maps: cosine similarity of the stages' directions, layer by position",
                "posttrace.figures.refusal.sweep:cosines",
            ),
            Figure(
                "refusal/coefficients",
                "lines: refusals, log-odds and text against the length of what is added",
                "posttrace.figures.refusal.sweep:coefficients",
            ),
        ),
    ),
    "trace": Study(
        reader="posttrace.figures.trace.tables:TraceGroup",
        guide="posttrace.figures.trace.tables:GUIDE",
        figures=(
            Figure(
                "trace/next_tokens",
                "table: the most probable next tokens of each prompt, with and without the operations",
                "posttrace.figures.trace.tables:next_tokens",
            ),
            Figure(
                "trace/completions",
                "table: what every stage goes on to say, with and without the steers (jobs that generate)",
                "posttrace.figures.trace.tables:completions",
            ),
        ),
    ),
    "truthfulness": Study(
        reader="posttrace.figures.truthfulness.source:read",
        guide="posttrace.figures.truthfulness.guide:GUIDE",
        figures=(
            Figure(
                "truthfulness/accuracies",
                "tables: accuracy of own and transferred probes on the sets left out, and between all stages",
                "posttrace.figures.truthfulness.tables:accuracies",
            ),
            Figure(
                "truthfulness/effects_table",
                "table: intervention effects of own, transferred and random directions",
                "posttrace.figures.truthfulness.tables:effects",
            ),
            Figure(
                "truthfulness/completions",
                "table: sample completions before and after interventions",
                "posttrace.figures.truthfulness.completions:completions",
            ),
            Figure(
                "truthfulness/effects",
                "dots: intervention effects beside those of random directions",
                "posttrace.figures.truthfulness.points:effects_beside_random",
            ),
            Figure(
                "truthfulness/coefficients",
                "lines: intervention effect by coefficient, where a job asked for several",
                "posttrace.figures.truthfulness.lines:effect_by_coefficient",
            ),
            Figure(
                "truthfulness/accuracy",
                "lines: probe accuracy on the sets left out, by layer",
                "posttrace.figures.truthfulness.lines:accuracy_by_layer",
            ),
            Figure(
                "truthfulness/cosine",
                "lines: cosine of the stages' truth directions, by layer",
                "posttrace.figures.truthfulness.lines:cosine_by_layer",
            ),
            Figure(
                "truthfulness/layers",
                "lines: what the layers were chosen by, on the training sets",
                "posttrace.figures.truthfulness.choice:choice_of_layers",
            ),
            Figure(
                "truthfulness/projection",
                "scatter: activations along the truth direction, by label and stage",
                "posttrace.figures.truthfulness.points:projections",
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
