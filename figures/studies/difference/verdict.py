"""The difference study in a few sentences: how far the last stage's next-token distributions are from the first's."""

from __future__ import annotations

from collections.abc import Sequence

from posttrace.figures.studies.difference.data import LARGEST, Difference, Pair, mean_js
from posttrace.figures.tables import number
from posttrace.figures.verdict import Verdict, in_words

DIGITS = 4


def verdict(groups: Sequence[Difference]) -> Verdict:
    """Give the Jensen-Shannon divergence of the first and last stage on every set, next to the training control's.

    Numbers are those of the table `difference_divergence`, means over documents.
    """
    bare = [one.name for one in groups if not one.data.attrs.get("control")]
    caveats = [one.control_note for one in groups if one.name in bare][:1]
    for one in groups:
        pair = _widest(one)
        control = one.control(pair)
        if control is not None and not mean_js(one, pair, None).low > mean_js(one, control, None).high:
            caveats.append(f"{one.name}: {pair.label} differ no more clearly than the training control.")
    return Verdict(
        sentence=f"Next-token distributions differ in Jensen-Shannon divergence: {'; '.join(map(_said, groups))}.",
        caveat=" ".join(caveats),
        weak=len(bare) == len(groups),
    )


def _widest(one: Difference) -> Pair:
    """Return the pair of the first and the last stage."""
    ends = (one.stages[0], one.stages[-1])
    return next((p for p in one.pairs if (p.source, p.target) == ends), one.pairs[0])


def _said(one: Difference) -> str:
    pair = _widest(one)
    found, control = mean_js(one, pair, None), one.control(pair)
    against = f", training control {in_words(mean_js(one, control, None), DIGITS)}" if control else ""
    return (
        f"{pair.label} {in_words(found, DIGITS)} of at most {number(LARGEST, 3)} nats{against} ({one.name}, "
        f"n = {found.n} documents)"
    )
