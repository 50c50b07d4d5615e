"""What a study's tables say in one sentence, and what speaks against it; the report begins with these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrace.figures.tables import Cell, cell

if TYPE_CHECKING:
    from posttrace.figures.measures.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a study, computed by the `verdict.py` in its folder from the groups that its tables show."""

    sentence: str
    """Plain text with every number's n, interval and unit."""
    caveat: str = ""
    """What the result does not rest on, or where it is weak; the page prints it in a banner."""
    doubtful: Mapping[str, str] = field(default_factory=dict)
    """Set or stage -> why its numbers mean little, a full sentence; the page fades them."""
    weak: bool = False
    """Whether the sentence itself rests on doubtful numbers or has no control; it and the hero figure fade too."""

    def doubts(self, label: str) -> bool:
        """Tell whether a column, row or block of a table is about a doubtful set or stage.

        Examples
        --------
        >>> verdict = Verdict(sentence="", doubtful={"cities": "base does not know them."})
        >>> verdict.doubts("cities (n = 12)"), verdict.doubts("neg_cities")
        (True, False)
        """
        return any(label == name or label.startswith(f"{name} (") for name in self.doubtful)


def in_words(estimate: Estimate, digits: int) -> Cell:
    """Format an estimate with its interval, as the tables do.

    Examples
    --------
    >>> from posttrace.figures.measures.intervals import Estimate
    >>> print(in_words(Estimate(0.93, 0.86, 0.97, n=100), digits=2))
    0.93 [0.86, 0.97]
    """
    return cell(estimate.value, estimate.low, estimate.high, digits)


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence.

    Examples
    --------
    >>> listed(["base", "sft", "instruct"])
    'base, sft and instruct'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
