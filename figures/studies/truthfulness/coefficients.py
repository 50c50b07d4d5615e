"""Line figure of the intervention effect by coefficient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import CONFIDENCE, Bootstrap, mean_of
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, effect_of, parted, steered_sets
from posttrace.figures.studies.truthfulness.panels import (
    family,
    gaps,
    label_outer,
    panels,
    stage_legend,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def effect_by_coefficient(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/coefficients`, for jobs with several coefficients."""
    summary, sets = parted(groups)
    names = steered_sets(summary, sets) if summary else []
    if summary is None or not names or "effect_coefficient" not in summary.data:
        return
    coefficients = [float(c) for c in summary.data["coefficient"].values]
    found = []
    for c in range(len(coefficients)):
        found.append(mean_of([effect_of(sets[n], sets[n].array("p_diff_coefficient")[c]) for n in names]))
    yield Drawing(
        name="truthfulness/coefficients",
        heading="Effect by coefficient",
        caption=(
            f"{family(summary)}intervention effect, mean of both directions and over {len(names)} sets, by the "
            f"coefficient of the direction: the stage's own (solid, {CONFIDENCE:.0%} interval over statements), "
            f"{summary.stages[0]}'s (dashed) and random directions of the same norm (grey: median and 95 % range). n "
            f"= {found[0].n} statements.{gaps(summary, names)}"
        ),
        alt="Lines of the intervention effect over coefficients, one panel for each stage.",
        figure=_draw_coefficients(summary, coefficients, found, sets[names[0]].controls),
        complete=len(names) == len(summary.sets),
    )


def _draw_coefficients(summary: Summary, coefficients, found: Sequence[Bootstrap], controls) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    both = np.stack([one.value[0] for one in found])  # coefficient x direction x target
    ends = np.stack([one.interval[:, 0] for one in found])
    with theme.look():
        figure, axes = panels(len(summary.stages), 1.6, columns=len(summary.stages))
        for t, (ax, stage) in enumerate(zip(axes, summary.stages, strict=True)):
            random = both[:, controls, t]
            low, high = np.quantile(random, [0.025, 0.975], axis=1)
            ax.fill_between(coefficients, low, high, color=theme.MUTED, alpha=0.25, linewidth=0)
            (line,) = ax.plot(coefficients, np.median(random, axis=1), color=theme.MUTED, linewidth=0.9)
            name = f"median and 95 % range of {len(controls)} random directions"
            note(line, name=name, n=found[0].n, interval=[low, high])
            own = summary.directions.index(stage)
            ax.fill_between(coefficients, ends[:, 0, own, t], ends[:, 1, own, t], color=colours[stage], alpha=0.15,
                            linewidth=0)  # fmt: skip
            lines = ax.plot(coefficients, both[:, own, t], "o-", markersize=3, color=colours[stage])
            if stage != base:
                lines += ax.plot(coefficients, both[:, summary.directions.index(base), t], color=colours[stage],
                                 linestyle=(0, (3, 3)), linewidth=0.9)  # fmt: skip
            for line, name in zip(lines, (stage, base), strict=False):
                interval = ends[:, :, summary.directions.index(name), t].T
                note(line, name=f"{name}'s direction", n=found[0].n, interval=interval)
            ax.axhline(0, color=theme.GUIDE, linewidth=0.6, zorder=0)
            ax.set_title(f"into {stage}", pad=3)
        label_outer(axes, "effect", "coefficient")
        theme.heading(figure, title(summary, "intervention effect by coefficient"))
        stage_legend(figure, summary, colours, f"{base}'s direction", random=True)
    return figure
