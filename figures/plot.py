"""Single plots of labelled arrays into axes of one's own, with the look of the figures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.errors import FigureError
from posttrace.figures.heatmaps import draw_matrix, label_layers, label_tokens
from posttrace.figures.measures.intervals import SEED
from posttrace.figures.measures.patching import normalise, recovered_share_interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

KEY_ROLES = ("subject", "object", "knowledge")
ROLES = (*KEY_ROLES, "last", "other")


def heatmap(
    values: xr.DataArray,
    *,
    ax: Axes | None = None,
    normalised: bool = False,
    limit: float | None = None,
    colour_bar: bool = True,
) -> Axes:
    """Draw a patching heat map, layer 0 at the top, and return its axes.

    Columns are labelled with `token_label` where the array has it, subject and object in colour; columns without any
    value (beyond the longest statement) are left out.

    Parameters
    ----------
    values
        Dims layer and one other (token, head ...): select source and target and average over pairs first.
    ax
        Where to draw; the current axes of pyplot by default.
    normalised
        Draw the paper's normalised map, 0 to 1 in eleven steps, instead of the values.
    limit
        Largest absolute value of the colours, in the values' unit, to compare several maps; by default this map's.
    colour_bar
        Draw a colour bar next to the map, with the array's unit.

    Raises
    ------
    FigureError
        Other dims than these two are left, or with `normalised` a cell has no value.

    Examples
    --------
    >>> cities = open_store("runs/knowledge")["knowledge/cities"]
    >>> ax = heatmap(cities.logit_diff.sel(source="base", target="instruct").mean("pair"), normalised=True)
    """
    column = _other_dims(values, ["layer"])
    if len(column) != 1:
        raise FigureError(
            f"heatmap: {_name(values)} has the dims {', '.join(map(str, values.dims))}; layer and one other are drawn: "
            'select one of the others, values.sel(source="base"), or average, values.mean("pair")'
        )
    values = values.transpose("layer", column[0])
    values = values.isel({column[0]: values.notnull().any("layer").values})
    matrix = np.asarray(values.values, dtype=np.float64)
    if normalised:
        if not np.isfinite(matrix).all():
            raise FigureError(
                f"heatmap: {_name(values)} has cells without a value, which cannot be normalised; "
                'leave unfinished pairs out, values.dropna("pair", how="all")'
            )
        matrix, scale = normalise(matrix), theme.normalised_scale()
    else:
        scale = theme.centred_scale([np.array([[limit]]) if limit else np.nan_to_num(matrix)], _unit(values))
    ax = ax or _current_axes()
    with theme.look():
        draw_matrix(ax, matrix, scale)
        label_tokens(ax, _labels(values, column[0]), _key_columns(values, column[0]))
        label_layers(ax, [int(layer) for layer in values["layer"].values])
        ax.set_xlabel("" if column[0] == "token" else str(column[0]), labelpad=2)
        if colour_bar:
            _colour_bar(ax, scale)
    return ax


def recovery(
    patched: xr.DataArray,
    clean: xr.DataArray,
    corrupt: xr.DataArray,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    roles: Sequence[str] | None = None,
) -> Axes:
    """Draw the share of the clean-corrupt gap that patching recovers by layer, and return the axes.

    A line for each token role, the mean over the tokens of the role, with a band: the 95 % percentile bootstrap
    interval over pairs. 0 is the corrupt run, 1 the clean run. Pairs with a value missing are left out.

    Parameters
    ----------
    patched
        Logit difference after patching, nats, dims pair and layer, and token with its roles.
    clean, corrupt
        Logit difference of the unpatched runs, nats, dims pair: clean in the source, corrupt in the target.
    ax
        Where to draw; the current axes of pyplot by default.
    label
        Begins the labels of the legend, for lines of several stages in one plot.
    roles
        Roles to draw; all that the set has by default.

    Raises
    ------
    FigureError
        Other dims are left, the set has no such role, or no pair is finished.

    Examples
    --------
    >>> cities = open_store("runs/knowledge")["knowledge/cities"]
    >>> own = cities.logit_diff.sel(source="base", target="base")
    >>> clean, corrupt = cities.logit_diff_clean.sel(source="base"), cities.logit_diff_corrupt.sel(target="base")
    >>> len(recovery(own, clean, corrupt, roles=["object"]).lines)
    1
    """
    for array, dims in ((patched, ("pair", "layer")), (clean, ("pair",)), (corrupt, ("pair",))):
        extra = [dim for dim in _other_dims(array, dims) if not (array is patched and dim == "token")]
        if extra:
            raise FigureError(
                f"recovery: {_name(array)} has the dims {', '.join(map(str, array.dims))}; select one of "
                f"{', '.join(map(str, extra))}, e.g. values.sel({extra[0]}=...)"
            )
    curves = _by_role(patched, roles)
    whole = np.isfinite(clean.values) & np.isfinite(corrupt.values)
    for values in curves.values():
        whole &= np.isfinite(values).all(axis=1)
    if not whole.any():
        raise FigureError(
            f"recovery: no pair of {_name(patched)} is finished; run the job again to resume it"
        )
    # The roles together, as the figure of the report does: the same resamples for every line.
    stacked = np.stack([values[whole] for values in curves.values()], axis=-1)
    share, low, high = recovered_share_interval(
        stacked, clean.values[whole], corrupt.values[whole], np.random.default_rng(SEED)
    )
    ax = ax or _current_axes()
    layers = patched["layer"].values
    with theme.look():
        for i, role in enumerate(curves):
            name = " ".join(part for part in (label, f"{role} token" if role else "") if part)
            (line,) = ax.plot(layers, share[:, i], label=name or None)
            ax.fill_between(layers, low[:, i], high[:, i], color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set_xlabel("layer", labelpad=2)
        ax.set_ylabel("recovered share", labelpad=2)
        if label or list(curves) != [""]:
            ax.legend()
    return ax


def _by_role(patched: xr.DataArray, roles: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return the mean over the tokens of each role, dims pair x layer; one curve, without a name, without tokens."""
    if "token" not in patched.dims:
        return {"": patched.transpose("pair", "layer").values.astype(np.float64)}
    names = [name for name in ("token_role", "token_role_of_pair") if name in patched.coords]
    if not names:
        raise FigureError(
            f"recovery: {_name(patched)} has tokens without roles; select one, values.isel(token=-1)"
        )
    own = patched.coords[names[-1]]
    known = [role for role in ROLES if (own == role).any()]
    wanted = known if roles is None else list(roles)
    if unknown := [role for role in wanted if role not in known]:
        raise FigureError(f"recovery: {unknown} is no token role of this set; it has {', '.join(known)}")
    # Only tokens of other roles are masked, so an unfinished token of the role leaves its pair without a value.
    means = {
        role: patched.where(own == role, 0).sum("token", skipna=False) / (own == role).sum("token")
        for role in wanted
    }
    return {role: mean.transpose("pair", "layer").values.astype(np.float64) for role, mean in means.items()}


def _other_dims(values: xr.DataArray, needed: Sequence[str]) -> list[Hashable]:
    if missing := [dim for dim in needed if dim not in values.dims]:
        raise FigureError(
            f"{_name(values)} has the dims {', '.join(map(str, values.dims)) or 'none'}; it needs {', '.join(missing)}"
        )
    return [dim for dim in values.dims if dim not in needed]


def _name(values: xr.DataArray) -> str:
    return str(values.name or "the array")


def _unit(values: xr.DataArray) -> str:
    return str(values.attrs.get("units", values.name or "")).partition(":")[0]


def _labels(values: xr.DataArray, column: Hashable) -> list[str]:
    own = f"{column}_label"
    if own in values.coords and values[own].dims == (column,):
        return [str(label or "") for label in values[own].values]
    return [str(label) for label in values[column].values]


def _key_columns(values: xr.DataArray, column: Hashable) -> list[int]:
    own = f"{column}_role"
    if own not in values.coords or values[own].dims != (column,):
        return []
    return [i for i, role in enumerate(values[own].values) if role in KEY_ROLES]


def _current_axes() -> Axes:
    import matplotlib.pyplot as plt

    return plt.gca()


def _colour_bar(ax: Axes, scale: theme.Scale) -> None:
    from matplotlib.cm import ScalarMappable

    figure = ax.get_figure(root=True)
    assert figure is not None, "axes without a figure"
    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colours), ax=ax, ticks=scale.ticks)
    bar.set_label(scale.label, labelpad=4)
    bar.outline.set_visible(False)
