"""Line figure of the share recovered by patching, by layer and token role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.hover import note
from posttrace.figures.measures.intervals import RESAMPLES, SEED
from posttrace.figures.measures.patching import recovered_share_interval
from posttrace.figures.studies.knowledge.captions import heading_line, pairs_in_words, titled
from posttrace.figures.studies.knowledge.data import ROLES, PatchGrid, by_token, usable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


Cell = tuple[str, str]


def recovery(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/recovery`: the share of the clean-corrupt gap that patching recovers.

    Parameters
    ----------
    sets
        As read from the store, nats. The share has no unit: 0 is the corrupt run, 1 the clean run.
    """
    for grid in by_token(sets):
        roles = [role for role in ROLES if role in grid.roles]
        rows = [("storage", [(stage, stage) for stage in grid.stages])]
        rows += [(f"into {target}", [(source, target) for source in grid.sources]) for target in grid.targets]
        rows = [(name, cells) for name, cells in rows if any(usable(grid, cell).any() for cell in cells)]
        # With one stage there is only storage.
        rows = rows if len(grid.sources) > 1 else rows[:1]
        if not rows:
            continue
        yield Drawing(
            name=f"knowledge/{grid.name}/recovery",
            heading=titled(grid, "Recovery by token role"),
            caption=(
                f"{grid.family + ', ' if grid.family else ''}{titled(grid, grid.name)}: share of the gap between "
                "the corrupt and the clean answer that patching one token at one layer recovers, (patched - corrupt) "
                f"/ (clean - corrupt) of the mean logit differences (clean in the source, corrupt in the target "
                f"stage; not binned): 0 like the corrupt run, 1 like the clean run. Mean over the tokens of a role, "
                f"so a role with several tokens can stay low although one of them carries much. First row: "
                f"storage (source = target); further rows: patched into one target from each source, own "
                f"activations solid and others dashed. Bands: 95 % percentile interval, {RESAMPLES} resamples "
                f"of pairs, seed {SEED}. {pairs_in_words(grid)}"
            ),
            alt=(
                f"Lines of the recovered share over layers for {titled(grid, grid.name)}, one panel for each token "
                "role."
            ),
            figure=_draw(grid, roles, rows),
            complete=grid.complete,
        )


def _draw(grid: PatchGrid, roles: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> Figure:
    colours = theme.stage_colours(list(dict.fromkeys([*grid.sources, *grid.targets])))
    with theme.look():
        figure = theme.new_figure(
            0.75 + 1.6 * len(roles), 0.9 + 1.15 * len(rows), w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02
        )
        axes = figure.subplots(len(rows), len(roles), sharex=True, sharey=True, squeeze=False)
        for (name, cells), row in zip(rows, axes, strict=True):
            for cell in cells:
                pairs = usable(grid, cell)
                if pairs.any():
                    curves = _curves(grid, cell, roles, pairs)
                    own = cell[0] == cell[1]
                    stroke = strokes(grid.sources.index(cell[0]), own)
                    for ax, curve in zip(row, curves, strict=True):
                        line = _band(ax, grid.layers, curve, colours[cell[0]], stroke)
                        note(line, name=" → ".join(cell), n=int(pairs.sum()), interval=curve[1:])
            row[0].set_ylabel(name, fontweight="bold" if name == "storage" else "normal")
        for ax, role in zip(axes[0], roles, strict=True):
            ax.set_title(f"{role} token" + ("s" if role != "last" else ""), pad=4)
        for ax in axes.flat:
            note(ax, y="recovered share")
            for level in (0, 1):
                ax.axhline(level, color=theme.GUIDE, linewidth=0.6, zorder=0)
            ax.set_yticks([0, 0.5, 1])
            ax.set_xlim(grid.layers[0] - 0.2, grid.layers[-1] + 0.2)
            theme.whole_numbers(ax.xaxis, nbins=6)
        for ax in axes[-1]:
            ax.set_xlabel("layer", labelpad=2)
        theme.heading(figure, heading_line(grid, "recovered share"))
        _legend(figure, colours, [cell for _, cells in rows for cell in cells])
    return figure


def _curves(grid: PatchGrid, cell: Cell, roles: Sequence[str], pairs: np.ndarray) -> list[np.ndarray]:
    """Return share, low and high for each role, dims 3 x layer."""
    values = grid.patched(*cell, pairs).astype(np.float64)
    by_role = np.stack(
        [values[..., [r == role for r in grid.roles]].mean(axis=-1) for role in roles], axis=-1
    )
    clean, corrupt = grid.unpatched(*cell, pairs)
    together = np.stack(recovered_share_interval(by_role, clean, corrupt, np.random.default_rng(SEED)))
    return [together[..., i] for i in range(len(roles))]


def strokes(position: int, own: bool) -> dict[str, Any]:
    """Return the line style of the source at a position among the stages; coinciding lines all stay visible."""
    if own:
        # Later stages are drawn on top of earlier ones, and thinner.
        return {"linestyle": "-", "linewidth": max(2.6 - 0.8 * position, 0.8)}
    # On top of the own line; the dashes of one source fall into the gaps of the next.
    return {"linestyle": (3.0 * position, (3.0, 3.0)), "linewidth": 1.0, "zorder": 3}


def _band(ax: Axes, layers: Sequence[int], curve: np.ndarray, colour: str, stroke: dict[str, Any]) -> Line2D:
    share, low, high = curve
    ax.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    return ax.plot(layers, share, color=colour, **stroke)[0]


def _legend(figure: Figure, colours: dict[str, str], cells: Sequence[Cell]) -> None:
    sources = list(dict.fromkeys(source for source, _ in cells))
    handles = [theme.key(color=colours[source], label=f"from {source}") for source in sources]
    if len(sources) > 1:
        handles.append(theme.key(color=theme.MUTED, label="own", linestyle="-"))
        handles.append(theme.key(color=theme.MUTED, label="transfer", **strokes(0, own=False)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), handlelength=2.4)
