"""Every figure and table, rebuilt from a store alone, and one HTML page with all of them.

>>> from posttrace.figures import render, report
>>> files = render("runs/knowledge", "runs/figures")    # every figure and table, as files
>>> page = report("runs/knowledge", "runs/figures")     # runs/figures/report.html, self-contained

This package imports `stores` and never a model library. Importing it is cheap: matplotlib, seaborn and pandas
are imported when something is drawn.
"""

from posttrace.figures.errors import FigureError
from posttrace.figures.registry import figures
from posttrace.figures.rendering import render, report
from posttrace.figures.viewer import view

__all__ = ["FigureError", "figures", "render", "report", "view"]
