"""The study `difference`: what changed between stages on any text, with no labels and no hypothesis.

Every stage runs the texts once, and the streams and final states of its tokens go to the store. Everything between two
stages is computed from these and from the unembeddings' files, so that no two models are open at once and no
distribution is stored (docs/decisions/013). Steering runs the source once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.spot_checks import checked
from posttrace.pipeline.studies.difference.analysis import Analysis, mean_difference
from posttrace.pipeline.studies.difference.arrays import (
    GAPS,
    PATCHED,
    blank,
    completed,
    difference_group,
    directions,
)
from posttrace.pipeline.studies.difference.comparison import compare_distributions, compare_streams
from posttrace.pipeline.studies.difference.inputs import SLOTS, TextSet, read_set
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.studies.difference.measures import SHUFFLES
from posttrace.pipeline.studies.difference.patchscope import (
    DRAWN,
    READABLE,
    WITHIN,
    identity_prompt,
    known_samples,
    places_of,
)
from posttrace.pipeline.studies.difference.steering import Steered, recovered, steering_vectors
from posttrace.pipeline.studies.difference.units import planned
from posttrace.pipeline.study import Result, Study, Work
from posttrace.pipeline.tensors import as_stored, from_stored, widened
from posttrace.stores import Group
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import generate
from posttrace.tracers.engines.text_streams import Kept, read_streams, steered_finals
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.mlp_neurons import find_head
from posttrace.tracers.models.unembedding import Unembedding, read_unembedding
from posttrace.tracers.oracles.compare import compared, tolerance

EIGENVALUES = 4
"""Multiply-adds of the eigenvalues of a matrix, over the cube of its size."""
SUMS = ("squared_difference_sum", "rounding_sum")
SAMPLED_LAYERS, STEERED_LAYERS = 8, 3
"""Blocks, evenly spaced, where a job names none."""


class Difference(Study[DifferenceJob, dict[str, TextSet]]):
    """A `difference` job, planned; `inputs` has its sets by name."""

    gaps = GAPS

    def check(self, job: DifferenceJob) -> None:
        super().check(job)
        self.heads = {name: find_head(one) for name, one in self.stages.structures.items()}
        for key in ("sampled_layers", "steering.layers"):
            named = job.steering and job.steering.layers if key == "steering.layers" else job.sampled_layers
            for layer in named or ():
                self.stages.check_layer(layer, key)

    def resolved(self, job: DifferenceJob) -> dict[str, Any]:
        found = super().resolved(job)
        dtype = job.stream_dtype
        if dtype == "auto":
            dtype = "float16" if found["dtype"] == "float32" else found["dtype"]
        return {**found, "stream_dtype": dtype}

    def read_inputs(self) -> dict[str, TextSet]:
        return {spec.name: read_set(self.job, spec, self.stages) for spec in self.job.texts}

    def input_content(self) -> dict[str, Any]:
        return {"texts": {name: _digest(one) for name, one in self.inputs.items()}}

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that all stages have, over which distributions are compared."""
        return min(head.vocabulary for head in self.heads.values())

    @cached_property
    def sampled_layers(self) -> tuple[int, ...]:
        """Blocks at which the samples' streams are kept."""
        return self.job.sampled_layers or _spaced(self.stages.n_layers, SAMPLED_LAYERS)

    @cached_property
    def steered_layers(self) -> tuple[int, ...]:
        """Blocks whose output is steered."""
        named = self.job.steering.layers if self.job.steering else None
        return named or _spaced(self.stages.n_layers, STEERED_LAYERS)

    @cached_property
    def known(self) -> dict[str, list[int]]:
        """Set -> samples whose tokens the patchscope has to read back."""
        tokenizer = self.stages.tokenizers[self.job.stage_names[0]]
        some = self.inputs.items() if self.job.patchscope else ()
        return {name: known_samples(self.job, one, tokenizer) for name, one in some}

    @cached_property
    def prompts(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Stage -> ids of the patchscope's prompt, and the token whose stream is replaced."""
        how, each = self.job.patchscope, self.stages.tokenizers.items()
        return {stage: identity_prompt(how, stage, tokenizer) for stage, tokenizer in each} if how else {}

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of source and target of every pair."""
        number = self.job.stage_names.index
        return [(number(source), number(target)) for source, target in self.job.pairs]

    @cached_property
    def unembeddings(self) -> list[Unembedding]:
        """Of every stage, from its files; in the files' dtype."""
        return [self._read_unembedding(m) for m in range(len(self.job.stage_names))]

    def _read_unembedding(self, m: int) -> Unembedding:
        stage = self.job.stage_names[m]
        one = self.stages.checkpoints[stage]
        return read_unembedding(one.model, self.stages.structures[stage], one.revision)

    def unembedding(self, m: int) -> Unembedding:
        """Return one stage's: of all, where these are held, else read alone."""
        return self.unembeddings[m] if "unembeddings" in vars(self) else self._read_unembedding(m)

    def chats(self) -> Iterator[str]:
        if any(one.is_chat for one in self.job.texts):
            yield from (name for name, one in self.stages.tokenizers.items() if one.chat_template)

    def arrays(self) -> Iterator[Group]:
        self.prompts  # noqa: B018  refuse a prompt that a stage cannot read
        tokenizer = self.stages.tokenizers[self.job.stage_names[0]]
        texts = [tokenizer.decode([token]) for token in range(self.vocabulary)]
        for one in self.inputs.values():
            yield difference_group(
                self.job,
                one,
                n_layers=self.stages.n_layers,
                hidden=self.stages.hidden_size,
                vocabulary=texts,
                sampled=self.sampled_layers,
                steered=self.steered_layers,
                known=self.known.get(one.spec.name, ()),
                stream_dtype=self.job.stream_dtype,
                labels=[_labels(d, self.job.stage_names[0], tokenizer) for d in one.documents],
            )

    def units(self) -> Iterator[Work]:
        return planned(self.job, self.inputs)

    def run_read(self, work: Work, model, store) -> Result:
        """Run a block of documents once, and keep what stages are compared by."""
        one, stage = self.inputs[work.about["set"]], work.open_stage
        begin, end = work.unit.region["document"]
        documents = one.documents[begin:end]
        low, high = work.unit.region["sample"]
        projection = self.job.projection
        kept = Kept(
            places=tuple(d.places[stage] for d in documents),
            slots=tuple(_slots(documents)),
            n_slots=len(SLOTS),
            samples=tuple((d - begin, p) for d, p in one.samples[low:high]),
            sampled_layers=self.sampled_layers,
            stream_dtype=self.job.stream_dtype,
            projection=None if projection is None else (projection, self.job.seed),
        )
        found = model.run(
            read_streams, [d.ids[stage] for d in documents], kept=kept, vocabulary=self.vocabulary
        )
        here = _here(documents, found.norm.shape[-1])
        values = {"entropy": found.entropy[here], "norm": found.norm.transpose(1, 2)[here]}
        check_finite(work.unit.id, self.job.dtype, values)
        if found.stream.isinf().any():
            raise TracerError(
                f"unit {work.unit.id}: the stream has values beyond those of {self.job.stream_dtype}; set "
                "stream_dtype=bfloat16 (or float32, for twice the space)"
            )
        arrays = {
            "stream": widened(found.stream, 2, one.width),
            "final": widened(found.final, 1, one.width),
            "entropy": widened(found.entropy, 1, one.width),
            "loss": widened(found.loss, 1, one.width),
            "norm": widened(found.norm, 2, one.width).half(),
            "sampled_activation": found.sampled,
        }
        stored = {name: as_stored(values)[None] for name, values in arrays.items()}
        return {**stored, "hidden_sum": found.slot_sum.float().numpy()[None, None]}, {}

    def run_compare(self, work: Work, model, store) -> Result:
        """Compare all pairs on a block of documents, from what the stages' runs left."""
        one = self.inputs[work.about["set"]]
        begin, end = span = work.unit.region["document"]
        documents = one.documents[begin:end]
        here = _here(documents, one.width)
        number = torch.full(here.shape, -1)
        number[here] = torch.arange(int(here.sum()))
        low, high = work.unit.region["sample"]
        samples = number[[d - begin for d, _ in one.samples[low:high]], [p for _, p in one.samples[low:high]]]
        finals = [self._stored(store, one, "final", m, span)[here] for m in range(len(self.job.stage_names))]
        found, entropies = compare_distributions(
            finals, self.unembeddings, self.pairs, self.vocabulary, samples
        )
        streams = [self._stored(store, one, "stream", m, span) for m in range(len(self.job.stage_names))]
        slots = compare_streams(streams, self.pairs, _slots(documents))
        spread = {name: _spread(found.pop(name), here.numpy()) for name in ("kl", "js")}
        by_unit = {"token_sum": found.pop("token_sum"), **{k: slots.pop(k) for k in SUMS}}
        sums = {name: values[:, None] for name, values in by_unit.items()}  # the second dimension is the unit
        slots["slot_count"] = slots["slot_count"][None]
        return {**found, **spread, **slots, **sums}, self._spot_check(
            work, store, one, entropies, here.numpy()
        )

    def _stored(self, store, one: TextSet, name: str, model: int, span: tuple[int, int]) -> torch.Tensor:
        """Return an array of one stage over a range of documents."""
        dtype = self.job.stream_dtype if name == "stream" else self.job.dtype
        return from_stored(
            store.read(one.path, name, {"model": (model, model + 1), "document": span})[0], dtype
        )

    def _spot_check(self, work: Work, store, one: TextSet, entropies, here) -> dict[str, Any]:
        """Whether the files' unembedding gives the entropies that the model itself gave, at every token."""
        if not self.job.execution.check_share:
            return {}
        allowed = tolerance(self.stages.dtype) * float(np.log(self.vocabulary))
        largest = 0.0
        for m, stage in enumerate(self.job.stage_names):
            region = {"model": (m, m + 1), "document": work.unit.region["document"]}
            model = store.read(one.path, "entropy", region)[0][here]
            at = int(np.abs(model - entropies[m]).argmax())
            what = f"unit {work.unit.id}: stage {stage}: entropy of a distribution"
            largest = max(largest, compared(float(entropies[m][at]), float(model[at]), allowed, what))
        return checked(len(entropies) * len(entropies[0]), largest)

    def run_analyse(self, work: Work, model, store) -> Result:
        """Compute what is learned from a whole set: linear maps, components, means and what they point to."""
        one = self.inputs[work.about["set"]]
        analysis = Analysis(self.job, one, store, self.unembedding, self.pairs, self.vocabulary)
        return analysis.arrays(self.groups_by_path[one.path]), {}

    @cached_property
    def groups_by_path(self) -> dict[str, Group]:
        """Path of a group -> its declaration."""
        return {group.path: group for group in self.groups}

    def run_steer(self, work: Work, model, store) -> Result:
        """Add the mean difference and others to the source's stream, and see how near it gets to the target."""
        assert self.job.steering is not None, "only a job that steers has such units"
        job, how, one = self.job, self.job.steering, self.inputs[work.about["set"]]
        (i, _), group = work.unit.region["pair"], self.groups_by_path[one.path]
        source, target = self.pairs[i]
        span = one.held_out[0], min(one.held_out[0] + how.documents, one.held_out[1])
        documents, stage = one.documents[slice(*span)], work.open_stage
        here = _here(documents, one.width)
        here[:, 0] &= torch.tensor([d.first > 0 for d in documents])
        log_q, log_p = (
            self.unembeddings[m].log_probabilities(
                self._stored(store, one, "final", m, span)[here], self.vocabulary
            )
            for m in (target, source)
        )
        of_document = here.nonzero()[:, 0]
        steered = Steered(log_q, log_p, of_document, len(documents))
        shape = group.shape("recovered")[1:]
        js_steered = np.full(shape, np.nan, dtype="float32")
        texts = np.full(group.shape("completion")[1:], "", dtype=object)
        texts[0] = np.array(self._continued(one, stage, model, []), dtype=object)
        for k, layer in enumerate(self.steered_layers):
            vectors = steering_vectors(job, one, store, i, layer)
            able = [d for d, vector in enumerate(vectors) if vector.isfinite().all() and vector.any()]
            if not able:
                continue
            amounts = torch.tensor(how.coefficients)
            variants = (amounts[None, :, None] * vectors[able][:, None]).flatten(0, 1)
            finals = model.run(
                steered_finals,
                [d.ids[stage] for d in documents],
                variants,
                layer=layer,
                max_tokens=job.execution.max_tokens,
            )
            rows, places = here.nonzero().T
            tokens = torch.tensor([documents[d].places[stage][p] for d, p in zip(rows, places, strict=True)])
            found = torch.stack(
                [
                    steered.js(
                        self.unembeddings[source].log_probabilities(final[rows, tokens], self.vocabulary)
                    )
                    for final in finals
                ]
            )
            js_steered[able, :, k] = found.unflatten(0, (len(able), len(amounts))).float().numpy()
            for c, name in enumerate(completed(job)[1:], 1):
                d = directions(job).index(name)
                for a, amount in enumerate(how.coefficients if d in able else ()):
                    edit = Edit(
                        site="resid_post", layers=(layer,), mode="add", values=vectors[d], coefficient=amount
                    )
                    texts[c, a, k] = self._continued(one, stage, model, [edit])
        unsteered = steered.js(log_p).float().numpy()
        check_finite(work.unit.id, job.dtype, {"js_unsteered": unsteered})
        return {
            "recovered": recovered(js_steered, unsteered)[None],
            "js_steered": js_steered[None],
            "js_unsteered": unsteered[None],
            "completion": texts[None],
        }, {}

    def run_patchscope(self, work: Work, model, store) -> Result:
        """Put known tokens' streams into the prompt; where these are read back, mean differences and random ones."""
        one, stage = self.inputs[work.about["set"]], work.open_stage
        m = self.job.stage_names.index(stage)
        arrays = blank(self.groups_by_path[one.path], PATCHED)
        found = {name: values[m] for name, values in arrays.items()}
        decode = self.stages.tokenizers[stage].decode
        samples = self.known[one.spec.name]
        at = [(one.documents[d], p) for d, p in (one.samples[number] for number in samples)]
        texts = [decode([document.ids[stage][document.places[stage][p]]]) for document, p in at]
        stored = store.read(one.path, "sampled_activation", {"model": (m, m + 1)})[0, samples]
        generator = torch.Generator().manual_seed(self.job.seed)
        for k, layer in enumerate(self.sampled_layers):
            known = from_stored(stored[:, k], self.job.dtype).float()
            likely = self._read_by_prompt(model, stage, known, layer)[0]
            ranks = places_of(texts, [[decode([token]) for token in row] for row in likely.tolist()])
            found["known_rank"][k] = ranks
            if np.mean(np.array(ranks) > 0) < READABLE:
                continue
            length = known.norm(dim=1).mean()

            def read(vectors, length=length, layer=layer):
                vectors = vectors / vectors.norm(dim=1, keepdim=True) * length
                return [some.numpy() for some in self._read_by_prompt(model, stage, vectors, layer)]

            drawn = torch.randn(DRAWN, known.shape[1], generator=generator)
            found["random_token"][k] = read(drawn)[0]
            for source in range(len(self.job.stage_names)):
                means = mean_difference(store, one.path, source, m, (0, len(one.units)), layer)
                able = means.isfinite().all(1) & means.any(1)
                if able.any():
                    tokens, logprobs = read(means[able])
                    found["patchscope_token"][source, k, able] = tokens
                    found["patchscope_logprob"][source, k, able] = logprobs
        return {name: values[None] for name, values in found.items()}, {}

    def _read_by_prompt(self, model, stage: str, vectors: torch.Tensor, layer: int):
        """Return the most probable tokens after the prompt, each vector in it in turn, and their log probabilities."""
        prompt, column = self.prompts[stage]
        options = dict(layer=layer, column=column, max_tokens=self.job.execution.max_tokens)
        finals = model.run(steered_finals, [prompt], vectors, **options)[:, 0, -1]
        unembedding = self.unembeddings[self.job.stage_names.index(stage)]
        logprobs, tokens = unembedding.log_probabilities(finals, self.vocabulary).topk(WITHIN, dim=1)
        return tokens, logprobs

    def _continued(self, one: TextSet, stage: str, model, edits: list[Edit]) -> list[str]:
        assert self.job.steering is not None, "only a job that steers continues texts"
        tokenizer = self.stages.tokenizers[stage]
        prompts = [one.documents[d].ids[stage][: self._prompt(one, d, n, stage)] for d, n in one.prompts]
        options = dict(max_new_tokens=self.job.steering.new_tokens, stop=self.stages.end_tokens[stage])
        found = model.run(generate, prompts, edits, None, **options)
        return [tokenizer.decode(list(ids)) for ids in found.ids]

    def _prompt(self, one: TextSet, document: int, tokens: int, stage: str) -> int:
        """Tokens of a prompt for a stage that may have another template."""
        answer = one.documents[document].answer
        return one.documents[document].places[stage][answer] if answer else tokens

    def reads(self, work: Work) -> int:
        """Count the unembeddings, what was read of the unit's documents, and what the analysis makes of a set.

        That is the sums of both halves, one target's means, and one layer of the samples, in float64.
        """
        if work.kind == "read":
            return super().reads(work)
        stages, hidden = len(self.job.stage_names), self.stages.hidden_size
        unembeddings = stages * self.vocabulary * hidden * getattr(torch, self.job.dtype).itemsize
        if work.kind == "compare":
            return unembeddings + super().reads(work)
        means = stages * self.stages.n_layers * len(SLOTS) * hidden
        samples = stages * len(self.inputs[work.about["set"]].samples) * hidden
        return unembeddings + 8 * (4 * means + 2 * samples)

    def cost(self, work: Work) -> Cost:
        one, hidden = self.inputs[work.about["set"]], self.stages.hidden_size
        unembed = self.vocabulary * hidden
        if work.kind == "compare":
            begin, end = work.unit.region["document"]
            tokens = sum(map(len, one.documents[begin:end]))
            return Cost(0, len(self.job.stage_names) * tokens * unembed)
        if work.kind == "analyse":
            vectors = len(self.pairs) * self.stages.n_layers * len(SLOTS)
            # Products and eigenvalues: four for a linear map, one for each shuffle; both orders of a pair share these.
            n, small = len(one.samples), min(len(one.samples), hidden)
            product = n * hidden * small + EIGENVALUES * small**3
            maps = len(self.pairs) * len(self.sampled_layers) * (4 + SHUFFLES // 2)
            return Cost(0, vectors * unembed + maps * product)
        stage = work.open_stage
        if work.kind == "read":
            begin, end = work.unit.region["document"]
            lengths = [len(d.ids[stage]) for d in one.documents[begin:end]]
            return run_cost(self.stages.shape, [0], lengths) + Cost(0, sum(lengths) * unembed)
        if work.kind == "patchscope":
            each = run_cost(self.stages.shape, [0], [len(self.prompts[stage][0])]).multiply_adds + unembed
            layers = len(self.sampled_layers)
            return Cost(2 * layers, layers * len(self.known[work.about["set"]]) * each)
        assert self.job.steering is not None, "only a job that steers has such units"
        how, held = self.job.steering, one.held_out
        lengths = [len(d.ids[stage]) for d in one.documents[held[0] : held[0] + how.documents]]
        once = run_cost(self.stages.shape, [0], lengths)
        variants = len(directions(self.job)) * len(how.coefficients)
        blocks = sum(self.stages.n_layers - layer - 1 for layer in self.steered_layers)
        again = variants * (once.multiply_adds * blocks // self.stages.n_layers)
        finals = variants * len(self.steered_layers) * sum(lengths) * unembed
        answers = 1 + (len(completed(self.job)) - 1) * len(how.coefficients) * len(self.steered_layers)
        prompts = [self._prompt(one, d, n, stage) + how.new_tokens for d, n in one.prompts]
        told = run_cost(self.stages.shape, [0], prompts).multiply_adds
        forwards = len(self.steered_layers) * (1 + variants) + answers * how.new_tokens
        return Cost(forwards, len(self.steered_layers) * once.multiply_adds + again + finals + answers * told)

    def facts(self, group: Group) -> dict[str, Any]:
        return {
            "group": group.path,
            "documents": group.sizes["document"],
            "tokens": int(sum(map(len, self.inputs[group.attrs["set"]].documents))),
            "pairs": group.sizes["pair"],
        }


def _spaced(n: int, most: int) -> tuple[int, ...]:
    """At most so many of n blocks, evenly spaced, the last one included.

    >>> _spaced(8, 3)
    (2, 4, 7)
    """
    return tuple(sorted({round((k + 1) * n / min(n, most)) - 1 for k in range(min(n, most))}))


def _slots(documents) -> list[tuple[int, int, int]]:
    """(document, place, slot) of the slots of some documents."""
    return [(d, place, slot) for d, one in enumerate(documents) for place, slot in one.slots()]


def _here(documents, width: int) -> torch.Tensor:
    """Which places documents have; dims document x place."""
    return torch.arange(width) < torch.tensor([len(d) for d in documents])[:, None]


def _spread(values: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Values of tokens (dims pair x token) at their places; dims pair x document x place."""
    spread = np.full((len(values), *here.shape), np.nan, dtype="float32")
    spread[:, here] = values
    return spread


def _labels(document, stage: str, tokenizer) -> list[str]:
    return [tokenizer.decode([document.ids[stage][i]]) for i in document.places[stage]]


def _digest(one: TextSet) -> str:
    """Hash of what is run of a set, and at which tokens stages are compared."""
    content = hashlib.sha256()
    for document in one.documents:
        content.update(repr((document.ids, document.places, document.roles)).encode())
    return content.hexdigest()
