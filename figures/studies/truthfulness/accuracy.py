"""Line figures of probe accuracy on held-out sets, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED, Bootstrap, mean_of
from posttrace.figures.studies.truthfulness.data import StatementSet, Summary, accuracy, parted, tested_sets
from posttrace.figures.studies.truthfulness.panels import (
    family,
    gaps,
    label_outer,
    layer_axis,
    panels,
    stage_legend,
    title,
)
from posttrace.figures.studies.truthfulness.tables import MEAN, PROBES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_by_layer(groups: Sequence[Summary | StatementSet]) -> Iterator[Drawing]:
    """Yield `truthfulness/accuracy_<probe>`: accuracy on each held-out set by layer, own probe and base's."""
    summary, sets = parted(groups)
    names = tested_sets(summary, sets) if summary else []
    if summary is None or not names:
        return
    found = {name: accuracy(sets[name]) for name in names}
    found[MEAN] = mean_of([found[name] for name in names])
    for k, probe in enumerate(summary.probes):
        kind = PROBES.get(probe, probe)
        yield Drawing(
            name=f"truthfulness/accuracy_{probe}",
            heading=f"Accuracy by layer, {kind}",
            caption=(
                f"{family(summary)}share of statements of the held-out set that a probe ({kind}) trained on the other "
                f"sets judges right, by layer. Solid: the stage's own probe, with its {CONFIDENCE:.0%} "
                f"percentile interval over statements ({RESAMPLES} resamples, seed {SEED}); dashed: "
                f"{summary.stages[0]}'s probe on the stage. Vertical line: the layer chosen without that set. "
                f"Horizontal line: chance. {_counts(found)}{gaps(summary, names)}"
            ),
            alt=f"Lines of probe accuracy over layers, one panel for each of {len(names)} sets and one for their mean.",
            figure=_draw_accuracy(summary, found, k, kind),
            complete=len(names) == len(summary.sets),
        )


def _draw_accuracy(summary: Summary, found: dict[str, Bootstrap], k: int, kind: str) -> Figure:
    colours, base = theme.stage_colours(summary.stages), summary.stages[0]
    with theme.look():
        figure, axes = panels(len(found), 1.35)
        for ax, (name, drawn) in zip(axes, found.items(), strict=True):
            low, high = drawn.interval[:, k]
            for s, stage in enumerate(summary.stages):
                ax.fill_between(
                    summary.layers, low[s, s], high[s, s], color=colours[stage], alpha=0.13, linewidth=0
                )
                lines = ax.plot(
                    summary.layers,
                    drawn.value[k, s, s],
                    color=colours[stage],
                    linewidth=max(2.4 - 0.7 * s, 0.9),
                )
                if stage != base:
                    lines += ax.plot(summary.layers, drawn.value[k, 0, s], color=colours[stage], linewidth=0.9,
                                     linestyle=(3.0 * s, (3, 3)), zorder=3)  # fmt: skip
                for line, probe in zip(lines, (s, 0), strict=False):
                    whose = f"{summary.stages[probe]}'s probe on {stage}"
                    note(line, name=whose, n=drawn.n, interval=[low[probe, s], high[probe, s]])
            if name != MEAN:
                ax.axvline(
                    summary.layers[summary.layer(name)], color=theme.MUTED, linewidth=0.6, linestyle=":"
                )
            ax.axhline(0.5, color=theme.GUIDE, linewidth=0.6, zorder=0)
            ax.set_title(f"{name} (n = {drawn.n})", pad=3, fontweight="bold" if name == MEAN else "normal")
            ax.set_ylim(min(0.4, float(low.min())), 1.02)
            layer_axis(ax, summary)
        label_outer(axes, "accuracy", "layer")
        theme.heading(figure, title(summary, f"{kind}: accuracy on the held-out set"))
        stage_legend(figure, summary, colours, f"{base}'s probe")
    return figure


def _counts(found: dict[str, Bootstrap]) -> str:
    return (
        "n = " + ", ".join(f"{one.n} {name}" for name, one in found.items() if name != MEAN) + " statements."
    )
