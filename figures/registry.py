"""The figures and tables of every study; a new study adds one line to STUDIES."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pkgutil import resolve_name

from posttrace.figures.errors import FigureError
from posttrace.figures.study import Figure, Study

STUDIES: dict[str, str] = {
    "knowledge": "posttrace.figures.studies.knowledge",
    "confidence": "posttrace.figures.studies.confidence",
    "refusal": "posttrace.figures.studies.refusal",
    "difference": "posttrace.figures.studies.difference",
    "trace": "posttrace.figures.studies.trace",
    "stages": "posttrace.figures.studies.stages",
    "truthfulness": "posttrace.figures.studies.truthfulness",
}
"""Study -> the package with its `STUDY`, in the order of a report; imported on use."""


@cache
def _declared(package: str) -> Study:
    return resolve_name(f"{package}:STUDY")


def study(name: str) -> Study:
    """Return what a study declares.

    Examples
    --------
    >>> study("trace").reader
    'posttrace.figures.studies.trace.data:TraceGroup.from_dataset'
    """
    return _declared(STUDIES[name])


def figures() -> list[Figure]:
    """Return every figure and table, in the order of a report.

    Examples
    --------
    >>> figures()[0].name
    'knowledge/judgement'
    """
    return [figure for name in STUDIES for figure in study(name).figures]


def chosen(only: str | Sequence[str] | None = None) -> list[Figure]:
    """Return the figures selected by names: `study/kind`, a study, or a kind that only one study has.

    Raises
    ------
    FigureError
        A name selects nothing; the message lists the valid ones.

    Examples
    --------
    >>> [figure.name for figure in chosen("recovery")]
    ['knowledge/recovery']
    """
    everything = figures()
    if only is None:
        return everything
    wanted: list[Figure] = []
    for name in [only] if isinstance(only, str) else only:
        found = [f for f in everything if name in (f.name, f.name.split("/")[0])]
        kinds = [f for f in everything if name == f.name.split("/")[1]]
        found = found or (kinds if len(kinds) == 1 else [])
        if not found:
            valid = [*STUDIES, *(figure.name for figure in everything)]
            from posttrace.stores.errors import did_you_mean  # with NumPy, which `--help` does without

            near = did_you_mean(name, [*valid, *(figure.name.split("/")[1] for figure in everything)])
            raise FigureError(f"--only {name}: no such figure{near}; valid are {', '.join(valid)}")
        wanted += found
    return [figure for figure in everything if figure in wanted]
