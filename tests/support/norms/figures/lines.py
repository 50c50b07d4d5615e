"""Lines of the stream's length by layer."""

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing


def lines(groups):
    """Yield a figure for each set."""
    for one in groups:
        with theme.look():
            figure = theme.new_figure(3.6, 2.3)
            ax = figure.subplots()
            for i, stage in enumerate(one.stages):
                ax.plot(one.norm[i].mean(axis=0), color=theme.STAGE_COLOURS[i], label=stage)
            ax.set(xlabel="layer", ylabel="length, model units")
            ax.legend()
        yield Drawing(
            name=f"norms/{one.name}/lines",
            heading="Length of the stream",
            caption=f"Mean length over n = {one.norm.shape[1]} statements of {one.name}, not normalised.",
            alt="Lines of the length of the residual stream by layer.",
            figure=figure,
            complete=bool(np.isfinite(one.norm).all()),
        )
