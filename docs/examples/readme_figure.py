"""Draw the figure of the README from the store of `make demo`.

python docs/examples/readme_figure.py runs/demo/store docs/images/knowledge.png
"""

import sys

import matplotlib.pyplot as plt

import posttrace as pt


def draw(store: str, file: str) -> None:
    """Draw base's own map, base into instruct, and instruct's own, in one colour scale."""
    cities = pt.open_store(store)["knowledge/cities"]
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained", sharey=True)
    panels = {
        "base": ("base", "base"),
        "base into instruct": ("base", "instruct"),
        "instruct": ("instruct", "instruct"),
    }
    for ax, (title, (source, target)) in zip(axes, panels.items(), strict=True):
        values = cities.logit_diff.sel(source=source, target=target).mean("pair")
        pt.plot.heatmap(values, ax=ax, limit=7, colour_bar=ax is axes[-1])
        ax.set_title(title)
    for ax in axes[1:]:
        ax.set_ylabel("")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    draw(*sys.argv[1:])
