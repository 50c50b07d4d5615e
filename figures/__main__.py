"""`python -m posttrace.figures STORE --out DIR [--only NAME]`: draw a store from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from posttrace.figures.errors import FigureError
from posttrace.figures.registry import figures

EXAMPLES = """\
examples:
  python -m posttrace.figures runs/knowledge --out runs/figures
      every figure and table, and runs/figures/report.html with all of them
  python -m posttrace.figures runs/knowledge --out runs/figures --only heatmaps --only statistics
      two kinds only, no page
  python -m posttrace.figures s3://bucket/runs/knowledge --out runs/figures
      a store in a bucket; keys come from the usual AWS_* environment variables

names for --only (a study's name means all of its figures):
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 after an error, which is printed on one line.

    Examples
    --------
    >>> main(["runs/knowledge", "--out", "runs/figures", "--only", "judgement", "--quiet"])
    0
    """
    known = figures()
    width = max(len(figure.name) for figure in known) + 2
    names = "\n".join(f"  {figure.name:<{width}}{figure.description}" for figure in known)
    parser = argparse.ArgumentParser(
        prog="python -m posttrace.figures",
        description="Rebuild every figure and table from a store alone. The same store always gives the same bytes.",
        epilog=EXAMPLES + names,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", help="a folder, file:// or s3://bucket/prefix")
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder; created if missing")
    parser.add_argument("--only", metavar="NAME", action="append", help="draw only this; repeatable")
    parser.add_argument("--quiet", action="store_true", help="do not list the files")
    given = parser.parse_args(arguments)

    from posttrace.figures.rendering import render
    from posttrace.stores import StoreError

    try:
        render(given.store, given.out, given.only, None if given.quiet else print, page=given.only is None)
    except (FigureError, StoreError) as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
