"""Line figure of refusals, log-odds and mean NLL against the length of the added vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.figures.studies.refusal.sweep import line_legend
from posttrace.figures.studies.refusal.tables import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def coefficients(groups: Sequence[Refusal]) -> Iterator[Drawing]:
    """Yield `refusal/coefficients`: scores against the length of the added vector, if coefficients were searched."""
    for group in groups:
        if "search_refused" not in group.data:
            continue
        finite = np.isfinite(group.data["search_log_odds"].values).all(axis=(1, 2))
        if not finite.any():
            continue
        yield Drawing(
            name="refusal/coefficients",
            heading="Score against coefficient",
            caption=(
                f"{group.incomplete}{group.family}: harmless validation prompts (n = "
                f"{group.data.attrs['n_validation'][1]}) answered with each stage's own direction added, against the "
                "length of the added vector, in multiples of the distance between the class means. Left: share of "
                "answers that begin with a refusal phrase, 95% Wilson intervals; middle: mean log-odds of refusal at "
                "the first token; right: mean negative log-likelihood of the answer in the unsteered stage, from its "
                "second token on, with 95% bootstrap intervals over prompts. Ring: chosen, the smallest coefficient "
                "with a share within 0.05 of the largest, or the distance itself if nothing is refused."
            ),
            alt="Lines of refusal share, log-odds and mean NLL over the coefficient, one for each stage.",
            figure=_draw_search(group, finite),
            complete=bool(finite.all()),
        )


def _draw_search(group: Refusal, finite: np.ndarray) -> Figure:
    colours = theme.stage_colours(group.stages)
    with theme.look():
        figure = theme.new_figure(7.2, 2.2, w_pad=0.03, h_pad=0.03, wspace=0.04)
        axes = figure.subplots(1, 3)
        for ax, (name, label) in zip(
            axes,
            [
                ("search_refused", "share of refusals"),
                ("search_log_odds", "log-odds of refusal, nats"),
                ("search_mean_nll", "mean NLL, nats per token"),
            ],
            strict=True,
        ):
            for m in np.flatnonzero(finite):
                one = group.data.isel(model=m)
                distance = float(
                    one.class_distance.isel(
                        layer=int(one.selected_layer),
                        position=group.positions.index(int(one.selected_position)),
                    )
                )
                x = one.search_coefficient.values / distance
                values = one[name].values.astype(np.float64)
                found = [estimate(row, name == "search_refused") for row in values]
                y, low, high = (
                    np.array([getattr(each, end) for each in found]) for end in ("value", "low", "high")
                )
                colour = colours[group.stages[m]]
                ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                (line,) = ax.plot(x, y, color=colour, marker="o", markersize=2.5)
                note(line, name=group.stages[m], n=[each.n for each in found], interval=[low, high])
                at = np.flatnonzero(np.isclose(one.search_coefficient.values, float(one.coefficient)))
                ax.plot(
                    x[at],
                    y[at],
                    marker="o",
                    markersize=7,
                    color="none",
                    markeredgecolor=colour,
                    linestyle="none",
                )
            ax.set_xlabel("coefficient / distance of the class means", labelpad=2)
            ax.set_ylabel(label, labelpad=2)
        axes[0].set_ylim(-0.04, 1.04)
        axes[1].axhline(0, color=theme.GUIDE, linewidth=0.6, zorder=0)
        axes[2].set_ylim(bottom=0)
        theme.heading(figure, f"{group.family}  ·  harmless prompts, own direction added")
        line_legend(figure, [(colours[group.stages[m]], group.stages[m]) for m in np.flatnonzero(finite)])
    return figure
