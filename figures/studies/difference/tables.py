"""Tables of the difference study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from posttrace.figures.measures.intervals import bootstrap_mean
from posttrace.figures.measures.token_mining import Mined, mined, share_of_top
from posttrace.figures.studies.difference.data import EXACT, Difference, Pair, mean_js, strings, visible
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

TOP_SHARES = (0.01, 0.05, 0.10)
SHOWN, LISTED = 12, 100
"""Tokens of an ordering in the table as read, and in the CSV."""
LENS_SHOWN, TOPIC_SHOWN = 4, 6
NOT_READABLE = "not readable here"
CONTEXT = 8
"""Tokens that are shown before a sample."""
FEWEST = 5
"""Occurrences of a token below which nothing is said of its loss."""


def divergence(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of divergences by pair and role."""
    blocks, tidy = [], []
    for one in groups:
        kl, entropy, loss = (one.values(name) for name in ("kl", "entropy", "loss"))
        for pair in one.pairs:
            rows = []
            s, t = (one.stages.index(stage) for stage in (pair.source, pair.target))
            js = one.js[pair.number]
            change = {"KL": kl[pair.number], "entropy": entropy[t] - entropy[s], "loss": loss[t] - loss[s]}
            for role in (None, *one.roles):
                here = np.isfinite(js) & (True if role is None else one.role == role)
                if not here.any():
                    continue
                found = {"JS": mean_js(one, pair, role)} | {
                    name: bootstrap_mean(one.by_document(v, role)) for name, v in change.items()
                }
                tops = [share_of_top(js[here], share) for share in TOP_SHARES]
                cells = [cell(e.value, e.low, e.high, 4) for e in found.values()]
                rows.append(Row(role or "all", (*cells, *(Cell(number(100 * top, 0)) for top in tops))))
                for name, e in found.items():
                    tidy.append(
                        {"set": one.name, "source": pair.source, "target": pair.target, "role": role or "all",
                         "measure": name, "value": e.value, "low": e.low, "high": e.high, "n": e.n}
                    )  # fmt: skip
            if pair in one.forward and rows:
                blocks.append(Block(f"{one.name}: {pair.label}", tuple(rows)))
    if not blocks:
        return
    yield Table(
        name="difference_divergence",
        heading="Divergence of the next-token distributions",
        caption=(
            f"{'; '.join(one.n for one in groups)}. JS: Jensen-Shannon divergence, nats, at most 0.693; KL of the "
            "target from the source; change of entropy and of loss (-log P of the next token of the text), target "
            "minus source, nats. Means over documents of each one's mean over tokens of a role, with 95 % bootstrap "
            "intervals over documents. Last columns: share of the sum of JS, in %, that the 1, 5 and 10 % of tokens "
            f"with the largest JS hold. {EXACT} {groups[0].control_note}"
        ),
        columns=("JS", "KL", "entropy", "loss", "top 1 %", "top 5 %", "top 10 %"),
        blocks=tuple(blocks),
        records=tidy,
    )


def worse_than_chance(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of tokens that a stage predicts worse than a uniform guess; none where there are none."""
    blocks, tidy = [], []
    for one in groups:
        following = one.data["token_id"].values[:, 1:]
        loss = one.values("loss")[:, :, :-1]
        chance = np.log(len(one.vocabulary))
        for s, stage in enumerate(one.stages):
            here = np.isfinite(loss[s]) & (following >= 0)
            ids, place, count = np.unique(following[here], return_inverse=True, return_counts=True)
            means = np.bincount(place, weights=loss[s][here]) / count
            bad = [
                (mean, i, n)
                for mean, i, n in zip(means, ids, count, strict=True)
                if n >= FEWEST and mean > chance
            ]
            for mean, i, n in bad:
                tidy.append(
                    {"set": one.name, "stage": stage, "token": one.vocabulary[i], "loss": mean, "n": int(n)}
                )
            rows = [
                Row(visible(one.vocabulary[i]), (Cell(number(mean, 2)), Cell(str(n))))
                for mean, i, n in sorted(bad, reverse=True)[:SHOWN]
            ]
            if rows:
                blocks.append(Block(f"{one.name}: {stage} (chance: {chance:.2f} nats)", tuple(rows)))
    if blocks:
        yield Table(
            name="difference_worse_than_chance",
            heading="Tokens predicted worse than chance",
            caption=(
                f"Tokens that a stage never learned to predict: mean -log P, nats, above that of a uniform guess, of "
                f"tokens that occur at least {FEWEST} times; at most {SHOWN} of each stage. What differs around them "
                "tells of the format more than of anything else."
            ),
            columns=("mean loss", "n"),
            blocks=tuple(blocks),
            records=tidy,
        )


def tokens(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of tokens that became more probable, in both orderings."""
    blocks, tidy = [], []
    for one in groups:
        sums = one.array("token_sum")
        measures = [str(m) for m in one.data["measure"].values]
        for pair in one.pairs:
            control = one.control(pair)
            found = {name: _mined(one, sums[:, :, m], pair, control) for m, name in enumerate(measures)}
            for name, some in found.items():
                for rank, token in enumerate(some.token):
                    tidy.append(
                        {"set": one.name, "source": pair.source, "target": pair.target, "ordering": name,
                         "rank": rank + 1, "token": one.vocabulary[token], "token_id": int(token),
                         "value": some.value[rank], "low": some.low[rank], "high": some.high[rank],
                         "control_rank": int(some.control_rank[rank])}
                    )  # fmt: skip
            if pair in one.forward:
                rows = [
                    Row(
                        str(rank + 1),
                        tuple(c for name, some in found.items() for c in _cells(one, name, some, rank)),
                    )
                    for rank in range(min(SHOWN, len(one.vocabulary)))
                ]
                blocks.append(Block(f"{one.name}: {pair.label}", tuple(rows)))
    if not blocks:
        return
    yield Table(
        name="difference_tokens",
        heading="Tokens that became more probable",
        caption=(
            f"{'; '.join(one.n for one in groups)}. occurring: share of positions at which the token is among the 20 "
            "whose log probability rises most, in %; KL by token: mean of q log(q/p), millinats, whose sum over the "
            "vocabulary is KL. 95 % bootstrap intervals over blocks of documents; control: the token's rank in the "
            f"same ordering of the control pair, –: none. {EXACT} {groups[0].control_note}"
        ),
        columns=("occurring", "%", "control", "KL by token", "millinats", "control"),
        blocks=tuple(blocks),
        records=tidy,
    )


def _mined(one: Difference, sums: np.ndarray, pair: Pair, control: Pair | None) -> Mined:
    done = one.finished_units
    other = None if control is None else sums[control.number][done]
    return mined(sums[pair.number][done], one.unit_tokens[done], other, LISTED)


UNITS = {"occurring": (100, 1), "kl_by_token": (1000, 2)}
"""Ordering -> factor (%, millinats) and digits of its values."""


def _cells(one: Difference, ordering: str, some: Mined, rank: int) -> tuple[Cell, Cell, Cell]:
    scale, digits = UNITS[ordering]
    control = int(some.control_rank[rank])
    value = cell(scale * some.value[rank], scale * some.low[rank], scale * some.high[rank], digits)
    return Cell(visible(one.vocabulary[some.token[rank]])), value, Cell(str(control) if control else "–")


def topics(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of tokens that rise together."""
    blocks, tidy = [], []
    for one in groups:
        share, weight = one.values("topic_share"), one.values("topic_weight")
        token, sample = one.data["topic_token"].values, one.data["topic_sample"].values
        for pair in one.pairs:
            rows = []
            for k in np.flatnonzero(share[pair.number] > 0):
                words = [
                    (one.vocabulary[t], w)
                    for t, w in zip(token[pair.number, k], weight[pair.number, k], strict=True)
                    if w > 0
                ]
                context = _context(one, sample[pair.number, k, 0])
                percent = number(100 * share[pair.number, k], 0)
                listed = " ".join(visible(text) for text, _ in words[:TOPIC_SHOWN])
                rows.append(Row(f"{k + 1}", (Cell(percent), Cell(listed), Cell(visible(context)))))
                tidy += [
                    {"set": one.name, "source": pair.source, "target": pair.target, "topic": int(k) + 1,
                     "share": share[pair.number, k], "token": text, "weight": w, "context": context}
                    for text, w in words
                ]  # fmt: skip
            if pair in one.forward and rows:
                blocks.append(Block(f"{one.name}: {pair.label}", tuple(rows)))
    if blocks:
        yield Table(
            name="difference_topics",
            heading="Tokens that rise together",
            caption=(
                f"{'; '.join(one.n for one in groups)}. Topics: non-negative factors of how far (nats) the 20 tokens "
                "that rise most do at the sampled tokens; %: share of what all topics add. Tokens with the largest "
                f"weights; the sample in which the topic weighs most, with what comes before it. "
                f"{groups[0].control_note}"
            ),
            columns=("%", "tokens", "where most"),
            blocks=tuple(blocks),
            records=tidy,
            prose=True,
        )


def lens(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield a table for each set: what mean differences point to, by layer and slot."""
    for one in groups:
        token, z = one.data["lens_token"].values, one.values("lens_z")
        bound, shared = one.values("lens_bound"), one.values("shared")
        if not np.isfinite(bound).all():
            continue
        slots = [str(slot) for slot in one.data["slot"].values]
        used = [s for s in range(len(slots)) if np.isfinite(z[:, :, s, 0]).any()]
        if not used:
            continue
        blocks, tidy = [], []
        for pair in one.pairs:
            i, control = pair.number, one.control(pair)
            rows = []
            for k, layer in enumerate(one.data["layer"].values):
                cells = []
                for s in used:
                    above = [
                        (one.vocabulary[t], v)
                        for t, v in zip(token[i, k, s], z[i, k, s], strict=True)
                        if v > bound[i]
                    ]
                    least = (
                        -np.inf if control is None else np.nan_to_num(z[control.number, k, s, 0], nan=-np.inf)
                    )
                    shown = [text for text, v in above if v > least]
                    cells.append(Cell(" ".join(visible(text) for text in shown[:LENS_SHOWN])))
                    tidy += [
                        {"set": one.name, "source": pair.source, "target": pair.target, "layer": int(layer),
                         "slot": slots[s], "token": text, "z": v, "bound": bound[i], "shared": shared[i, k, s],
                         "control_z": np.nan if control is None else z[control.number, k, s, 0]}
                        for text, v in above
                    ]  # fmt: skip
                rows.append(Row(f"layer {layer}", tuple(cells)))
            if pair in one.forward:
                blocks.append(Block(f"{pair.label} (bound: z = {bound[i]:.1f})", tuple(rows)))
        yield Table(
            name=f"difference_lens_{one.name}",
            heading=f"What the mean difference points to, {one.name}",
            caption=(
                f"{one.n}. Up to {LENS_SHOWN} tokens with the largest z = cos(unembedding row, mean difference) times "
                "the square root of the hidden size, by layer and slot (all: every token but the first; 1 to 5: those "
                "tokens; then those beyond, before and of the first answer). Blank: none above the bound, below which "
                "95 % of 200 random directions stay, or above the largest of the control pair's mean difference there. "
                "The CSV has all above the bound, the control pair's largest z, and the share of the squared "
                f"difference that halves of the documents share.{one.projection_note} {one.control_note}"
            ),
            columns=tuple(slots[s] for s in used),
            blocks=tuple(blocks),
            records=pd.DataFrame(
                tidy, columns="set source target layer slot token z bound shared control_z".split()
            ),
            prose=True,
        )


def components(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of principal components above the null: what they point to, and their extreme contexts."""
    blocks, tidy = [], []
    for one in groups:
        share, null, bound = (one.values(name) for name in ("variance_share", "variance_null", "lens_bound"))
        above, mean = one.data["n_above_null"].values, one.values("mean_share")
        token, z = one.data["component_token"].values, one.values("component_z")
        sample = one.data["extreme_sample"].values
        for pair in one.pairs:
            i, rows = pair.number, []
            for k, layer in enumerate(one.data["sampled_layer"].values):
                for c in range(min(above[i, k], token.shape[2])):
                    cells = [Cell(number(100 * share[i, k, c], 0)), Cell(number(100 * mean[i, k], 0))]
                    for e, end in enumerate(map(str, one.data["end"].values)):
                        read = zip(token[i, k, c, e], z[i, k, c, e], strict=True)
                        words = [one.vocabulary[t] for t, v in read if v > bound[i]]
                        contexts = [_context(one, s) for s in sample[i, k, c, e] if s >= 0]
                        cells += [
                            Cell(" ".join(map(visible, words[:LENS_SHOWN]))),
                            Cell(visible(contexts[0])),
                        ]
                        tidy += [
                            {"set": one.name, "source": pair.source, "target": pair.target, "layer": int(layer),
                             "component": c + 1, "share": share[i, k, c], "null": null[i, k, c],
                             "mean_share": mean[i, k], "end": end, "tokens": " ".join(words), "context": context}
                            for context in contexts
                        ]  # fmt: skip
                    rows.append(Row(f"layer {layer}, {c + 1}", tuple(cells)))
            if pair in one.forward and rows:
                blocks.append(Block(f"{one.name}: {pair.label}", tuple(rows)))
    if blocks:
        yield Table(
            name="difference_components",
            heading="Principal components of the difference",
            caption=(
                "The first components, up to three, of target - source at the sampled tokens that explain more than "
                "shuffled columns do. %: of the variance about the mean; mean, %: share of the mean difference in the "
                "mean squared difference. For both ends: tokens with the largest z above the bound of random "
                "directions, and the sample with the most extreme score, with what comes before it. "
                f"{groups[0].control_note}"
            ),
            columns=("%", "mean, %", "low end", "lowest at", "high end", "highest at"),
            blocks=tuple(blocks),
            records=tidy,
            prose=True,
        )


def _context(one: Difference, sample: int) -> str:
    """Text of a sample, with what comes before it."""
    d, t = (int(one.data[name].values[sample]) for name in ("sample_document", "sample_token"))
    return "".join(one.texts[d, max(0, t - CONTEXT) : t + 1])


def patchscope(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of what a prompt that repeats tokens reads in mean differences, and whether it can."""
    blocks, tidy = [], []
    for one in groups:
        if "known_rank" not in one.data:
            continue
        rank, token = one.data["known_rank"].values, one.data["patchscope_token"].values
        logprob, drawn = one.values("patchscope_logprob"), one.data["random_token"].values
        slots, layers = [str(slot) for slot in one.data["slot"].values], one.data["sampled_layer"].values
        n = rank.shape[-1]
        finished = rank.min(axis=(1, 2)) >= 0
        rows = [
            Row(stage, tuple(Cell(f"{back} of {n}") for back in (rank[m] > 0).sum(axis=-1)))
            for m, stage in enumerate(one.stages)
            if finished[m]
        ]
        if rows:
            blocks.append(Block(f"{one.name}: known tokens read back", tuple(rows)))
        for pair in one.pairs:
            s, m = (one.stages.index(stage) for stage in (pair.source, pair.target))
            if not finished[m]:
                continue
            rows = []
            for i, slot in enumerate(slots):
                cells = []
                for k, layer in enumerate(layers):
                    readable = bool(drawn[m, k, 0, 0] >= 0)
                    new = [
                        (one.vocabulary[t], v)
                        for t, v in zip(token[m, s, k, i], logprob[m, s, k, i], strict=True)
                        if t >= 0 and t not in drawn[m, k]
                    ]
                    words = " ".join(visible(text) for text, _ in new[:LENS_SHOWN]) or "–"
                    cells.append(Cell(words if readable else NOT_READABLE))
                    about = {"set": one.name, "source": pair.source, "target": pair.target, "layer": int(layer),
                             "slot": slot, "read_back": int((rank[m, k] > 0).sum()), "n": n}  # fmt: skip
                    tidy += [about | {"token": text, "logprob": v} for text, v in new] or [about]
                rows.append(Row(slot, tuple(cells)))
            if pair in one.forward:
                if (drawn[m] < 0).all():
                    rows = [Row("every slot", rows[0].cells)]
                blocks.append(Block(f"{one.name}: {pair.label}", tuple(rows)))
    if blocks:
        yield Table(
            name="difference_patchscope",
            heading="What a prompt that repeats tokens reads in the mean difference",
            caption=(
                "The stream of one token of a prompt that repeats tokens is replaced after a block of the target. "
                "Known tokens read back: of so many tokens of the text, how many are among the ten most probable ones "
                f"when their own streams are put there. Where these are fewer than half: {NOT_READABLE}. Elsewhere, by "
                f"slot, up to {LENS_SHOWN} of the ten tokens that the mean difference, as long as those streams, makes "
                f"most probable, less those that any of 20 random directions does. –: none. {groups[0].control_note}"
            ),
            columns=tuple(f"layer {layer}" for layer in groups[0].data["sampled_layer"].values),
            blocks=tuple(blocks),
            records=pd.DataFrame(
                tidy, columns="set source target layer slot read_back n token logprob".split()
            ),
            prose=True,
        )


def completions(groups: Sequence[Difference]) -> Iterator[Table]:
    """Yield the table of what steered sources say."""
    blocks, tidy = [], []
    for one in groups:
        if "completion" not in one.data:
            continue
        told = strings(one.data["completion"].values)
        kinds = [str(kind) for kind in one.data["completed"].values]
        layers, amounts = one.data["steered_layer"].values, one.data["coefficient"].values
        for pair in one.pairs:
            for p, document in enumerate(one.data["prompt_document"].values):
                rows = []
                for a, amount in enumerate(amounts):
                    for c, kind in enumerate(kinds):
                        texts = [told[pair.number, c, a, k, p] for k in range(len(layers))]
                        tidy += [
                            {"set": one.name, "source": pair.source, "target": pair.target, "direction": kind,
                             "coefficient": amount, "layer": int(layer), "document": int(document), "completion": text}
                            for layer, text in zip(layers, texts, strict=True)
                        ]  # fmt: skip
                        label = kind if kind == "none" else f"{amount:g} x {kind}"
                        rows.append(Row(label, tuple(Cell(" ".join(text.split()) or "–") for text in texts)))
                if pair in one.forward and p == 0 and any(told[pair.number].ravel()):
                    blocks.append(Block(f"{one.name}: {pair.label}, document {document}", tuple(rows)))
    if blocks:
        yield Table(
            name="difference_completions",
            heading="What a steered source says",
            caption=(
                "Greedy continuations, by the source, of held-out documents up to their first answer (half of a text "
                "without one), with a multiple of the mean difference, of the control pair's or of a random direction "
                "of its length added to every token's stream after one block; none: unsteered. –: nothing, or not "
                f"finished. {groups[0].control_note}"
            ),
            columns=tuple(f"layer {layer}" for layer in groups[0].data["steered_layer"].values),
            blocks=tuple(blocks),
            records=tidy,
            prose=True,
        )
