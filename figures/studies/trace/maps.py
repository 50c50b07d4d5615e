"""What reads and lenses of a free-form job keep, by layer: lines at one token, maps of layer x token otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.hover import Items, note
from posttrace.figures.measures.intervals import bootstrap_mean
from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.figures.studies.trace.text import visible

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

DRAWN = 8
"""Prompts whose lens is drawn; the store has all."""
BLOCK = 2**24
"""Numbers of an activation array that are in memory at once, unless one prompt has more."""
RUN = ("model", "intervention")


def lens(groups: Sequence[TraceGroup]) -> Iterator[Drawing]:
    """Yield `trace/prompt-P/lens-N`: the most probable token by layer and token, and its probability.

    Parameters
    ----------
    groups
        `trace/lens-N`, dims model x intervention x prompt x layer x token x rank.
    """
    for number, group in enumerate(g for g in groups if g.name == "lens"):
        for p in range(min(DRAWN, group.data.sizes["prompt"])):
            data = group.data[["lens_logprob", "lens_token"]].isel(prompt=p, rank=0).load()
            here = data.lens_logprob.notnull().any([*RUN, "layer"]).values
            data = data.isel(token=here)
            panels = [
                [
                    Panel(
                        f"{stage}, {run}",
                        np.exp(one.lens_logprob.values),
                        texts=_texts(one.lens_token.values),
                    )
                ]
                for stage, run, one in _runs(data)
            ]
            if not panels or not here.any():
                continue
            prompt = visible(str(data.prompt_text.values))
            labels = [visible(str(text)) for text in data.token_text.values]
            site = group.data.attrs.get("site", "")
            scale = theme.normalised_scale("probability of the token")
            yield Drawing(
                name=f"trace/prompt-{p}/lens-{number}",
                heading="Logit lens",
                caption=(
                    f"{_family(group)}prompt {p}, {prompt!r}: the most probable next token if the blocks after {site} "
                    "of a layer were skipped (final norm and unembedding on the stream), and its probability (colour). "
                    "One run, so there is no interval. Columns: tokens of the prompt; rows of panels: stages, without "
                    "(none) and with the job's patches and steers (all)."
                ),
                alt=f"Logit lens of prompt {p}: the most probable token for every layer and token of the prompt.",
                figure=heatmap_grid(
                    panels, labels, [], data.layer.values.tolist(), scale, f"logit lens · {prompt[:60]}"
                ),
                complete=len(panels) == group.data.sizes["model"] * group.data.sizes["intervention"],
            )


def norms(groups: Sequence[TraceGroup]) -> Iterator[Drawing]:
    """Yield `trace/reads/norm-N`: the length of the activations of every read, by layer and token."""
    for number, group in enumerate(_reads(groups)):
        values = _lengths(group.data.activation)
        yield from _drawings(group, values, f"norm-{number}", "Length of activations", "length, model units")


def projections(groups: Sequence[TraceGroup]) -> Iterator[Drawing]:
    """Yield `trace/reads/projection-N-DIRECTION`: the component of what a read keeps along each declared direction."""
    for number, group in enumerate(_reads(groups)):
        for i, direction in enumerate(map(str, group.data.coords.get("direction", np.array([])).data)):
            values = group.data.projection.isel(direction=i)
            name, label = f"projection-{number}-{i}", f"component along {direction}, model units"
            yield from _drawings(group, values, name, f"Projection onto {direction}", label)


def _reads(groups: Sequence[TraceGroup]) -> list[TraceGroup]:
    return [
        g for g in groups if g.name == "activation" and g.data.attrs.get("operation", {}).get("op") == "read"
    ]


def _drawings(
    group: TraceGroup, values: xr.DataArray, name: str, heading: str, label: str
) -> Iterator[Drawing]:
    values = values.load()
    runs = list(_runs(values))
    if not runs:
        return
    single, n = values.sizes["token"] == 1, values.sizes["prompt"]
    site = group.data.attrs.get("site", "")
    how = (
        "Lines: mean over prompts, with the 95 % percentile bootstrap interval over prompts."
        if single
        else "Maps: mean over the prompts that have a token at the position."
    )
    yield Drawing(
        name=f"trace/reads/{name}",
        heading=heading,
        caption=(
            f"{_family(group)}{heading[0].lower()}{heading[1:]} at {site}, by layer. {how} Without (none) and with the "
            f"job's patches and steers (all). n = {n} prompts."
        ),
        alt=f"{heading} at {site} for every layer, stage and run.",
        figure=_lines(runs, label, f"{site} · n = {n} prompts")
        if single
        else _maps(group, runs, label, site),
        items=None if single else _prompts(group, runs, label),
        complete=len(runs) == values.sizes["model"] * values.sizes["intervention"],
    )


def _runs(data):
    """Yield stage, intervention and values of every run that has any."""
    first = data if not hasattr(data, "data_vars") else data[next(iter(data.data_vars))]
    for m, stage in enumerate(map(str, data.model.values)):
        for i, run in enumerate(map(str, data.intervention.values)):
            if bool(first.isel(model=m, intervention=i).notnull().any()):
                yield stage, run, data.isel(model=m, intervention=i)


def _lines(runs, label: str, title: str) -> Figure:
    colours = theme.stage_colours(list(dict.fromkeys(stage for stage, _, _ in runs)))
    with theme.look():
        figure = theme.new_figure(4.2, 2.6)
        ax = figure.subplots()
        for stage, run, one in runs:
            by_layer = one.isel(token=0).transpose("layer", "prompt")
            found = [bootstrap_mean(row[np.isfinite(row)].astype(float)) for row in by_layer.values]
            layers = by_layer.layer.values
            style = "-" if run == "none" else "--"
            (line,) = ax.plot(
                layers, [e.value for e in found], style, color=colours[stage], label=f"{stage}, {run}"
            )
            ends = [e.low for e in found], [e.high for e in found]
            note(line, n=[e.n for e in found], interval=ends)
            if found[0].n > 1:
                ax.fill_between(layers, *ends, color=colours[stage], alpha=0.15, linewidth=0)
        ax.set_xlabel("layer", labelpad=2)
        ax.set_ylabel(label, labelpad=2)
        theme.whole_numbers(ax.xaxis)
        theme.heading(figure, title)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _maps(group: TraceGroup, runs, label: str, site: str) -> Figure:
    means = [(stage, run, one.mean("prompt").transpose("layer", "token")) for stage, run, one in runs]
    data = group.data
    labels, columns_are = [str(token) for token in data.token.values], "position"
    if data.sizes["prompt"] == 1:
        columns_are = ""
        labels = [visible(str(text)) for text in data.token_text.values[0]]
    found = {
        (stage, run): Panel(f"{stage}, {run}", one.values, of=(f"{stage}, {run}",))
        for stage, run, one in means
    }
    missing = Panel("", None, note="not finished")
    panels = [
        [found.get((stage, run), missing) for run in map(str, data.intervention.values)]
        for stage in map(str, data.model.values)
    ]
    scale = theme.centred_scale([np.nan_to_num(one.values) for _, _, one in means], label)
    return heatmap_grid(panels, labels, [], data.layer.values.tolist(), scale, site, columns_are)


def _prompts(group: TraceGroup, runs, label: str) -> Items:
    """Return the map of every single prompt, in every run."""
    values = {f"{stage}, {run}": one.transpose("prompt", "layer", "token").values for stage, run, one in runs}
    return Items("prompt", ("text",), [(str(t),) for t in group.data.prompt_text.values], values, label)


def _lengths(activation: xr.DataArray) -> xr.DataArray:
    """Return the length of every vector; activations are read some prompts at a time."""
    at_once = max(1, BLOCK // max(1, activation.isel(prompt=0).size))
    found = []
    for start in range(0, activation.sizes["prompt"], at_once):
        block = activation.isel(prompt=slice(start, start + at_once)).transpose("prompt", ..., "hidden")
        found.append(np.linalg.norm(block.values.astype("float32"), axis=-1))
    like = activation.isel(hidden=0, drop=True).transpose("prompt", ...)
    return like.copy(data=np.concatenate(found))


def _texts(tokens: np.ndarray) -> list[list[str]]:
    return [[visible(str(token)) for token in row] for row in tokens]


def _family(group: TraceGroup) -> str:
    return f"{group.family}, " if group.family else ""
