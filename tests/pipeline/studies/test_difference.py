"""The study `difference` against plain float64 computations, one document at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from sklearn.decomposition import NMF
from transformers import AutoModelForCausalLM

from posttrace.figures.measures.token_mining import mined
from posttrace.figures.studies.difference.data import Difference
from posttrace.figures.studies.difference.tables import patchscope
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.studies.difference import inputs
from posttrace.pipeline.studies.difference.analysis import mean_difference
from posttrace.pipeline.studies.difference.inputs import SLOTS
from posttrace.pipeline.studies.difference.measures import (
    RIDGES,
    SHUFFLES,
    cka,
    components,
    divergences,
    js,
    largest,
    predicted,
    rounding_variance,
)
from posttrace.stores import Store, open_group
from posttrace.tracers.engines.edits import Edit, apply_edits
from posttrace.tracers.engines.text_streams import projection, steered_finals
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.models.unembedding import read_unembedding
from tests.support.jobs import WORDS
from tests.support.models import varied_module, word_tokenizer
from tests.tracers.architectures.table import tiny_config, tiny_module

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STAGES = ("base", "instruct")
RANDOM = 3


@pytest.fixture(scope="module")
def folder(shared):
    """Two random stages, the second one a small change of the first; text, conversations, and a job over them."""
    return shared("difference", write_inputs)


def write_inputs(folder):
    module = varied_module("llama")
    tokenizer = word_tokenizer([*WORDS, "<", ">", "user", "assistant", "\n"])
    tokenizer.chat_template = TEMPLATE
    for i, stage in enumerate(STAGES):
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for parameter in module.parameters() if i else ():
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
        module.save_pretrained(folder / stage)
        tokenizer.save_pretrained(folder / stage)
    rng = np.random.default_rng(0)

    def words(n):
        return " ".join(f"w{k}" for k in rng.integers(0, 90, n))

    (folder / "plain.txt").write_text("\n".join(words(n) for n in rng.integers(5, 14, 12)))
    chats = [
        {"messages": [{"role": "user", "content": words(4)}, {"role": "assistant", "content": words(n)}]}
        for n in rng.integers(2, 9, 8)
    ]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    job = {
        "study": "difference",
        "family": {"name": "random", "stages": {s: str(folder / s) for s in STAGES}},
        "texts": [
            {"name": "plain", "file": "plain.txt", "documents": 12, "tokens": 11},
            {"name": "chat", "messages": "chat.jsonl", "tokens": 40},
        ],
        "samples": 60,
        "stream_dtype": "float32",
        "steering": {"documents": 2, "layers": [1], "random": RANDOM, "prompts": 1, "new_tokens": 3},
        "patchscope": {"prompt": "w1 w1 w2 w2 w3", "slot": "w3", "known": 6},
        "execution": {"device": "cpu"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


@pytest.fixture(scope="module")
def study(folder):
    return prepare(load_job(str(folder / "job.yaml")))


@pytest.fixture(scope="module")
def store(folder, shared):
    def make(there):
        run_job(load_job(str(folder / "job.yaml")), str(there / "store"), say=lambda line: None)

    return Store.open(shared("difference-run", make) / "store")


@pytest.fixture(scope="module")
def plain(folder):
    """The stages in float64, by plain transformers."""
    return {
        s: AutoModelForCausalLM.from_pretrained(folder / s, dtype=torch.float64, local_files_only=True).eval()
        for s in STAGES
    }


def naive(module, ids):
    """Streams (layer x token x hidden; the last one before the final norm) and log probabilities, float64."""
    streams = []
    hooks = [
        block.register_forward_hook(lambda *args: streams.append(args[-1])) for block in module.model.layers
    ]
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.cat(streams), logits.log_softmax(-1)


@pytest.fixture(scope="module")
def runs(study, plain):
    """Set -> per document, per stage: streams and log probabilities."""
    return {
        name: [{s: naive(plain[s], d.ids[s]) for s in STAGES} for d in one.documents]
        for name, one in study.inputs.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "chat"])
def test_distributions_and_streams_are_those_of_single_documents(name, study, store, runs):
    path, one = f"difference/{name}", study.inputs[name]
    stored = {
        array: store.read(path, array)
        for array in ("entropy", "loss", "norm", "kl", "js", "norm_difference", "cosine", "stream")
    }
    largest = dict.fromkeys(stored, 0.0)

    def compare(array, place, wanted):
        value = stored[array][place].astype(np.float64)
        wanted = wanted.numpy()
        assert value[..., len(wanted.T) :].size == 0 or np.isnan(value[..., wanted.shape[-1] :]).all()
        error = np.abs(value[..., : wanted.shape[-1]] - wanted).max()
        largest[array] = max(largest[array], float(error))

    for d, (document, found) in enumerate(zip(one.documents, runs[name], strict=True)):
        for m, stage in enumerate(STAGES):
            streams, log_p = found[stage]
            compare("entropy", (m, d), -(log_p.exp() * log_p).sum(-1))
            compare("norm", (m, d), streams.norm(dim=-1))
            following = torch.tensor(document.ids[stage][1:])
            compare("loss", (m, d), -log_p[:-1].gather(1, following[:, None])[:, 0])
            np.testing.assert_allclose(
                stored["stream"][m, d, :, : len(document)], streams.numpy(), rtol=1e-4, atol=1e-4
            )
        for i, (s, t) in enumerate(study.job.pairs):
            p, q = found[s][1], found[t][1]
            mixed = torch.logaddexp(p, q) - np.log(2)
            compare("kl", (i, d), (q.exp() * (q - p)).sum(-1))
            compare("js", (i, d), ((p.exp() * (p - mixed)).sum(-1) + (q.exp() * (q - mixed)).sum(-1)) / 2)
            compare("norm_difference", (i, d), (found[t][0] - found[s][0]).norm(dim=-1))
            compare("cosine", (i, d), torch.cosine_similarity(found[t][0], found[s][0], dim=-1))
    half = 2.0**-10
    allowed = dict(entropy=1e-4, loss=1e-3, kl=1e-3, js=1e-5, cosine=half)
    allowed |= {a: half * np.nanmax(stored[a].astype(float)) for a in ("norm", "norm_difference")}
    for array, limit in allowed.items():
        assert 0 < largest[array] < limit, (array, largest[array])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "chat"])
def test_sums_over_tokens_and_slots(name, study, store, runs):
    path, one = f"difference/{name}", study.inputs[name]
    token_sum, kl = store.read(path, "token_sum"), store.read(path, "kl")
    np.testing.assert_allclose(
        token_sum[:, :, 1].sum(axis=(1, 2)), np.nansum(kl.astype(float), axis=(1, 2)), rtol=1e-5
    )
    for i, (s, t) in enumerate(study.job.pairs):
        counts = torch.zeros(300)
        for found in runs[name]:
            best = (found[t][1] - found[s][1]).topk(20, dim=-1).indices
            counts += torch.bincount(best.flatten(), minlength=300)
        assert np.abs(token_sum[i, :, 0].sum(0) - counts.numpy()).sum() <= 4, "more than ties of rounding"
    hidden = store.read(path, "hidden_sum")
    squared, count = store.read(path, "squared_difference_sum"), store.read(path, "slot_count")
    for u, (begin, end) in enumerate(one.units):
        for s, slot in enumerate(SLOTS):
            places = [(d, p) for d in range(begin, end) for p in wanted_places(slot, one.documents[d])]
            assert count[u, s] == len(places), (slot, u)
            for m, stage in enumerate(STAGES):
                total = (
                    sum(runs[name][d][stage][0][:, p] for d, p in places) if places else torch.zeros(3, 32)
                )
                np.testing.assert_allclose(hidden[m, u, :, s], np.asarray(total), rtol=1e-4, atol=1e-3)
            for i, (a, b) in enumerate(study.job.pairs):
                total = sum(
                    (runs[name][d][b][0][:, p] - runs[name][d][a][0][:, p]).square().sum(-1)
                    for d, p in places
                )
                np.testing.assert_allclose(squared[i, u, :, s], np.asarray(total), rtol=1e-4)


def wanted_places(slot, document):
    """Places of a slot, by its name."""
    n, answer = len(document), document.answer
    if slot == "all":
        return range(1, n)
    if slot.isdigit():
        return [int(slot)] if int(slot) < n else []
    if slot.endswith("+"):
        return range(6, n)
    if answer is None:
        return []
    k = int(slot.rsplit("-", 1)[1])
    place = answer + k if slot.startswith("answer") else answer - k
    role = "answer" if slot.startswith("answer") else "template"
    return [place] if place < n and document.roles[place] == role else []


@pytest.mark.slow
def test_units_hold_no_more_than_so_many_values(study, monkeypatch):
    one, job = study.inputs["plain"], study.job

    def longest():
        return max(end - begin for begin, end in inputs.read_set(job, one.spec, study.stages).units)

    monkeypatch.setattr(inputs, "UNITS", 2)
    assert longest() == 6
    of_document = one.width * study.stages.n_layers * study.stages.hidden_size
    monkeypatch.setattr(inputs, "UNIT_VALUES", 3 * of_document)
    assert longest() == 3


@pytest.mark.slow
def test_roles_of_a_conversation(study):
    document = study.inputs["chat"].documents[0]
    # <s> < user > w w w w \n < assistant > w ...
    assert document.roles[:9] == ("begin", *["template"] * 3, *["user"] * 4, "template")
    assert document.roles[9:12] == ("template",) * 3
    assert document.answer == 12
    assert set(document.roles[12:-1]) == {"answer"} and document.roles[-1] == "template"


@pytest.mark.slow
def test_linear_maps_components_and_lenses(study, store, folder):
    path = "difference/plain"
    sampled = store.read(path, "sampled_activation").astype(np.float64)
    held = np.array([d >= study.inputs["plain"].held_out[0] for d, _ in study.inputs["plain"].samples])
    for i, (s, t) in enumerate(study.pairs):
        for k in range(sampled.shape[2]):
            x, y = sampled[s, :, k], sampled[t, :, k]
            x0, y0 = x - x.mean(0), y - y.mean(0)
            gram, other = x0 @ x0.T, y0 @ y0.T
            wanted = np.trace(gram @ other) / np.sqrt(np.trace(gram @ gram) * np.trace(other @ other))
            assert store.read(path, "cka")[i, k] == pytest.approx(wanted, rel=1e-5)
            spread = np.square(y[held] - y[~held].mean(0)).sum()
            shift = (y - x)[~held].mean(0)
            identity, shifted = (1 - np.square(y[held] - x[held] - v).sum() / spread for v in (0, shift))
            assert store.read(path, "r2")[i, :2, k] == pytest.approx([identity, shifted], rel=1e-4)
            d = y - x
            values, vectors = np.linalg.eigh(np.cov(d.T))
            share = store.read(path, "variance_share")[i, k]
            assert share == pytest.approx(values[::-1][: len(share)] / values.sum(), abs=1e-5)
            wanted = values.sum() ** 2 / np.square(values).sum()
            assert store.read(path, "participation")[i, k] == pytest.approx(wanted, rel=1e-4)
            mean = np.square(d.mean(0)).sum() / np.square(d).sum(1).mean()
            assert store.read(path, "mean_share")[i, k] == pytest.approx(mean, rel=1e-4)
            scores = (d - d.mean(0)) @ vectors[:, -1]
            ends = set(store.read(path, "extreme_sample")[i, k, 0, :, 0])
            assert ends == {scores.argmin(), scores.argmax()}

    module = AutoModelForCausalLM.from_pretrained(folder / "instruct", dtype=torch.float64)
    rows = (module.lm_head.weight * module.model.norm.weight).detach()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    sums, count = store.read(path, "hidden_sum").astype(np.float64), store.read(path, "slot_count")
    i = study.job.pairs.index(("base", "instruct"))
    mean = torch.tensor((sums[1] - sums[0])[:, 2, 0].sum(0) / count[:, 0].sum())
    z = rows @ mean / mean.norm() * 32**0.5
    best = z.topk(10)
    assert store.read(path, "lens_token")[i, 2, 0].tolist() == best.indices.tolist()
    assert store.read(path, "lens_z")[i, 2, 0] == pytest.approx(best.values.numpy(), rel=1e-4)
    drawn = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)).double()
    highest = (torch.nn.functional.normalize(drawn, dim=1) @ rows.T * 32**0.5).amax(1)
    assert store.read(path, "lens_bound")[i] == pytest.approx(float(highest.quantile(0.95)), rel=1e-4)


@pytest.mark.slow
def test_the_mean_difference_is_shared_by_halves(study, store):
    path = "difference/plain"
    sums, count = store.read(path, "hidden_sum").astype(float), store.read(path, "slot_count")
    squared = store.read(path, "squared_difference_sum").astype(float)
    even, odd = ((sums[1] - sums[0])[h::2, 1, 0].sum(0) / count[h::2, 0].sum() for h in (0, 1))
    i = study.job.pairs.index(("base", "instruct"))
    wanted = even @ odd / (squared[i, :, 1, 0].sum() / count[:, 0].sum())
    assert store.read(path, "shared")[i, 1, 0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_steering_gives_what_hooks_give(study, store, plain):
    path, one = "difference/plain", study.inputs["plain"]
    i = study.job.pairs.index(("base", "instruct"))
    sums, count = store.read(path, "hidden_sum").astype(float), store.read(path, "slot_count")
    train = slice(0, one.n_train)
    mean = torch.tensor((sums[1] - sums[0])[train, 1, 0].sum(0) / count[train, 0].sum())

    def add(module, args, output):
        return torch.cat([output[:, :1], output[:, 1:] + mean], dim=1)

    for k, d in enumerate(range(*one.held_out)[:2]):
        ids = one.documents[d].ids["base"]
        (_, p), (_, q) = naive(plain["base"], ids), naive(plain["instruct"], ids)
        hook = plain["base"].model.layers[1].register_forward_hook(add)
        _, steered = naive(plain["base"], ids)
        hook.remove()
        found, wanted = (js(other[1:], q[1:]).mean().item() for other in (p, steered))
        assert store.read(path, "js_unsteered")[i, k] == pytest.approx(found, rel=1e-3)
        assert store.read(path, "js_steered")[i, 0, 0, 0, k] == pytest.approx(wanted, rel=1e-3)
        assert store.read(path, "recovered")[i, 0, 0, 0, k] == pytest.approx(1 - wanted / found, abs=1e-3)
    recovered = store.read(path, "recovered")[i, :, 0, 0]
    assert np.isnan(recovered[1:3]).all(), "there is no other pair and no control"
    assert np.isfinite(recovered[[0, *range(3, 3 + RANDOM)]]).all()
    assert all(store.read(path, "completion")[i, :, 0, 0, 0])


@pytest.mark.slow
def test_a_patchscope_reads_what_hooks_read_and_nothing_where_known_tokens_are_not_read(
    folder, store, tmp_path
):
    """Stages that predict the token that they see, and the random ones, which predict anything."""
    rank, token = (store.read("difference/plain", name) for name in ("known_rank", "patchscope_token"))
    failed = (rank > 0).mean(axis=2) < 0.5
    assert failed.any() and (rank >= 0).all()
    assert (token.transpose(0, 2, 1, 3, 4)[failed] == -1).all()

    config = tiny_config("llama")
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config)
    for stage in STAGES:
        with torch.no_grad():
            module.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(7))
            for block in module.model.layers:
                for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                    weight.mul_(0.1)
                    weight += 0.01 * (stage == "instruct") * torch.randn(weight.shape)
        module.save_pretrained(tmp_path / stage)
        word_tokenizer(WORDS).save_pretrained(tmp_path / stage)
    family = {"name": "x", "stages": {s: str(tmp_path / s) for s in STAGES}}
    raw = yaml.safe_load((folder / "job.yaml").read_text()) | {"family": family, "steering": None}
    raw["texts"] = [raw["texts"][0] | {"file": str(folder / "plain.txt")}]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    job = load_job(str(tmp_path / "job.yaml"))
    found = run_job(job, str(tmp_path / "store"), say=lambda line: None)
    path, layer = "difference/plain", 1
    assert (found.read(path, "known_rank") > 0).mean() > 0.5
    study = prepare(job)
    assert set(study.known["plain"]) <= set(range(len(study.inputs["plain"].samples)))
    samples = found.read(path, "sampled_activation")[1, study.known["plain"], layer]
    mean = mean_difference(found, path, 0, 1, (0, len(study.inputs["plain"].units)), layer)[0]
    vector = mean / mean.norm() * np.linalg.norm(samples, axis=1).mean()
    prompt, column = study.prompts["instruct"]

    def put(module, args, output):
        return torch.cat([output[:, :column], vector.double()[None, None], output[:, column + 1 :]], dim=1)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "instruct", dtype=torch.float64).eval()
    hook = plain.model.layers[layer].register_forward_hook(put)
    _, log_p = naive(plain, prompt)
    hook.remove()
    best = log_p[-1].topk(10)
    assert found.read(path, "patchscope_token")[1, 0, layer, 0].tolist() == best.indices.tolist()
    assert found.read(path, "patchscope_logprob")[1, 0, layer, 0] == pytest.approx(
        best.values.numpy(), abs=1e-3
    )
    random = found.read(path, "random_token")[1, layer]
    (table,) = patchscope([Difference.from_dataset(open_group(found.url, path))])
    shown = table.records.query("source == 'base' and target == 'instruct' and layer == 1 and slot == 'all'")
    texts = [
        study.stages.tokenizers["instruct"].decode([t]) for t in best.indices.tolist() if t not in random
    ]
    assert list(shown.token.dropna()) == texts


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gemma3n_text", "lfm2"])
def test_skipping_blocks_gives_what_a_whole_steered_run_gives(name):
    """Also where a block returns a tuple, and where blocks hand each other more than the stream."""
    model = wrap(varied_module(name) if name == "gpt2" else tiny_module(name), word_tokenizer(), name=name)
    rows = [[1, 20, 30, 40], [1, 25, 35]]
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    fast = steered_finals(model, rows, vectors, layer=1, max_tokens=8)
    for r, row in enumerate(rows):
        for v, vector in enumerate(vectors):
            columns = list(range(1, len(row)))
            edit = Edit(site="resid_post", layers=(1,), mode="add", values=vector, columns=columns)
            with torch.no_grad(), model.nn.trace(input_ids=torch.tensor([row])):
                apply_edits(model.nn, [edit])
                final = model.nn.unembed.input.save()
            torch.testing.assert_close(fast[v, r, : len(row)], final[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2", "qwen2"])
def test_the_files_unembedding_gives_the_models_distributions(name, tmp_path):
    module = varied_module(name)
    module.save_pretrained(tmp_path)
    unembedding = read_unembedding(str(tmp_path), module)
    found = []
    hook = module.get_output_embeddings().register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        wanted = module(torch.tensor([[1, 20, 30, 40]])).logits[0].log_softmax(-1)
    hook.remove()
    torch.testing.assert_close(unembedding.log_probabilities(found[0][0], 300), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_unembedding_that_is_not_the_models_stops_the_run(folder, store):
    study = prepare(load_job(str(folder / "job.yaml")))
    work = next(one for one in study.work if one.kind == "compare")
    assert study.run(work, None, store)[1]["checked_cells"] > 0
    wrong = replace(study.unembeddings[1], weight=1.01 * study.unembeddings[1].weight)
    study.unembeddings = [study.unembeddings[0], wrong]
    with pytest.raises(TracerError, match="stage instruct: entropy of a distribution: the fast run gives"):
        study.run(work, None, store)


def test_equal_distributions_differ_exactly_nowhere():
    log_p = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).mul(20).log_softmax(-1)
    found = divergences(log_p - log_p, log_p.exp())
    assert not js(log_p, log_p).any() and not found.kl.any() and not found.kl_by_token.any()
    apart = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    assert js(apart[:1], apart[1:]).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(("width", "k"), [(300, 20), (2048, 20), (1003, 7), (40, 20), (9, 1)])
def test_largest_values_are_those_of_a_whole_sort(width, k):
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    values, places = largest(x, k)
    wanted = x.topk(k, dim=1)
    assert torch.equal(values, wanted.values) and torch.equal(places, wanted.indices)


def test_rounding_is_as_large_as_foreseen():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(30)
    for dtype in (torch.float16, torch.bfloat16):
        error = (values.to(dtype).float() - values).square().mean()
        foreseen = rounding_variance(values.to(dtype), dtype).mean()
        assert float(foreseen) == pytest.approx(float(error), rel=0.05)


@pytest.mark.slow
def test_16_bit_streams_differ_by_their_rounding(folder, store, tmp_path):
    job = load_job(str(folder / "job.yaml"), ["stream_dtype=bfloat16", "steering=null"])
    rounded = run_job(job, str(tmp_path / "rounded"), say=lambda line: None)
    path = "difference/plain"
    exact, found = (open_group(one.url, path).stream.values[:, :, :, 1:] for one in (store, rounded))
    error = np.nansum(np.square(exact.astype(float) - found), axis=(1, 3, 4))
    foreseen = rounded.read(path, "rounding_sum")[:, :, :, 0].sum(axis=1)
    assert foreseen == pytest.approx(error, rel=0.1)
    assert (store.read(path, "rounding_sum") < 1e-6 * rounded.read(path, "rounding_sum").max()).all()
    np.testing.assert_array_equal(rounded.read(path, "js"), store.read(path, "js"))


@pytest.mark.slow
def test_projected_streams_keep_lengths(folder, store, tmp_path):
    job = load_job(str(folder / "job.yaml"), ["projection=16", "steering=null"])
    found = run_job(job, str(tmp_path / "projected"), say=lambda line: None)
    path = "difference/plain"
    exact, about = (one.read(path, "squared_difference_sum")[0, :, :, 0].sum() for one in (store, found))
    assert about == pytest.approx(exact, rel=0.3)
    whole, part = (one.read(path, "stream")[0, 0, 0, 1] for one in (store, found))
    assert part == pytest.approx(whole @ projection(32, 16, 0).numpy(), rel=1e-3, abs=1e-3)
    np.testing.assert_array_equal(found.read(path, "hidden_sum"), store.read(path, "hidden_sum"))


@pytest.mark.slow
def test_own_templates_are_compared_at_the_messages(folder, tmp_path):
    """A stage whose template has other tokens around the messages, and one that has none."""
    other = word_tokenizer([*WORDS, "<", ">", "user", "assistant", "\n", "User", "Assistant"])
    other.save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(folder / "base").save_pretrained(tmp_path / "plain")
    family = {"name": "x", "stages": {"plain": str(tmp_path / "plain"), "instruct": str(folder / "instruct")}}
    raw = yaml.safe_load((folder / "job.yaml").read_text())
    raw |= {"family": family, "render": "own", "steering": None}
    raw["texts"] = [{"name": "chat", "messages": str(folder / "chat.jsonl"), "tokens": 60}]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    study = prepare(load_job(str(tmp_path / "job.yaml")))
    tokenizers = study.stages.tokenizers
    for document in study.inputs["chat"].documents:
        texts = [
            [tokenizers[s].decode([document.ids[s][p]]).strip() for p in document.places[s]]
            for s in ("plain", "instruct")
        ]
        assert texts[0] == texts[1] and len(texts[0]) >= 6
        assert set(document.roles) == {"user", "answer"}
        assert document.places["plain"] != document.places["instruct"]
    store = run_job(load_job(str(tmp_path / "job.yaml")), str(tmp_path / "store"), say=lambda line: None)
    data = open_group(store.url, "difference/chat")
    assert float(data.js.max()) > 0


def test_a_linear_map_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 60, 5))
    train = np.arange(60) < 40
    turned = x @ rng.standard_normal((5, 5)) + 3
    assert predicted(x, turned, train)[2] > 0.999
    assert predicted(x, turned, train)[0] < 0.5
    assert abs(predicted(x, x + 0.1 * noise, train)[2] - predicted(x, x + 0.1 * noise, train)[1]) < 0.01
    assert np.isnan(cka(np.ones((5, 2)), x[:5]))


@pytest.mark.parametrize("shape", [(60, 90), (90, 24)])
def test_maps_and_components_are_those_of_whole_decompositions(shape):
    """Of a source with a few directions that are far longer than the others, as streams have."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape) * np.geomspace(300, 0.1, shape[1]) + 5
    y = x + 0.1 * x @ rng.standard_normal((shape[1], shape[1])) + rng.standard_normal(shape)
    train, d = np.arange(len(x)) < 45, y - x
    source, change = (v[train] - v[train].mean(0) for v in (x, d))
    u, s, vt = np.linalg.svd(source, full_matrices=False)
    scores = {}
    for penalty in np.asarray(RIDGES) * np.square(s).mean():
        hat = (u * np.square(s) / (np.square(s) + penalty)) @ u.T
        freedom = len(source) - 1 - np.trace(hat)
        scores[np.square(change - hat @ change).sum() / freedom**2] = penalty
    weights = vt.T @ ((s / (np.square(s) + scores[min(scores)]))[:, None] * (u.T @ change))
    left = d[~train] - d[train].mean(0) - (x[~train] - x[train].mean(0)) @ weights
    wanted = 1 - np.square(left).sum() / np.square(y[~train] - y[train].mean(0)).sum()
    assert predicted(x, y, train)[2] == pytest.approx(wanted, abs=1e-8)

    found = components(d, 5, np.random.default_rng(0))
    _, s, vt = np.linalg.svd(d - d.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.share, np.square(s[:5]) / np.square(s).sum(), rtol=1e-8)
    np.testing.assert_allclose(np.abs((found.axes * vt[:5]).sum(1)), 1, rtol=1e-8)
    np.testing.assert_allclose(found.scores, (d - d.mean(0)) @ found.axes.T)
    draws = np.random.default_rng(0)
    null = [
        np.square(np.linalg.svd(draws.permuted(d - d.mean(0), axis=0), compute_uv=False))[:5]
        for _ in range(SHUFFLES)
    ]
    np.testing.assert_allclose(found.null, np.quantile(null, 0.95, axis=0) / np.square(s).sum(), rtol=1e-4)


def test_components_rise_above_shuffled_columns_only_where_there_are_some():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((80, 12))
    assert components(noise, 5, rng).above <= 1
    planted = noise + 3 * np.outer(rng.standard_normal(80), np.ones(12))
    assert components(planted, 5, rng).above == 1


@pytest.mark.slow
def test_topics_are_the_factors_of_the_samples_rises(study, store):
    path = "difference/chat"
    risen, rise = store.read(path, "rise_token"), store.read(path, "rise_logprob")
    share, weight = store.read(path, "topic_share"), store.read(path, "topic_weight")
    token, sample = store.read(path, "topic_token"), store.read(path, "topic_sample")
    for i in range(len(study.pairs)):
        dense = np.zeros((rise.shape[1], study.vocabulary))
        np.put_along_axis(dense, risen[i], rise[i].clip(0), axis=1)
        factors = NMF(share.shape[1], init="nndsvda", max_iter=1000, random_state=0)
        by_sample = factors.fit_transform(dense)
        added = [by_sample[:, k, None] * factors.components_[k] for k in range(share.shape[1])]
        order = np.argsort([-part.sum() for part in added], kind="stable")
        wanted = np.array([added[k].sum() for k in order]) / sum(part.sum() for part in added)
        np.testing.assert_allclose(share[i], wanted, rtol=1e-3)
        for topic, k in enumerate(order):
            of_token = added[k].sum(0) / added[k].sum()
            np.testing.assert_allclose(weight[i, topic], of_token[token[i, topic]], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(weight[i, topic, 0], of_token.max(), rtol=1e-3)
            assert sample[i, topic, 0] == added[k].sum(1).argmax()


def test_mined_tokens_have_intervals_and_the_rank_in_the_control():
    sums = np.tile([1.0, 5.0, 0.0, 3.0], (6, 1))
    sums[0, 1] = 11.0
    found = mined(sums, np.full(6, 10), sums[:, ::-1], top=2)
    assert found.token.tolist() == [1, 3]
    assert found.value.tolist() == pytest.approx([0.6, 0.3])
    assert found.low[0] < 0.6 < found.high[0] and found.low[1] == found.high[1] == pytest.approx(0.3)
    assert found.control_rank.tolist() == [4, 2] or found.control_rank.tolist() == [4, 3]


MISTAKES = [
    (["texts=[novel]"], "texts novel: no file given; name one of plain, chat"),
    (["texts=[{name: plain}, {name: plain}]"], "named twice"),
    (["texts=[{name: a, file: a.txt, csv: a.csv}]"], "texts a: file and csv given"),
    (["control=[base, sft]"], r"control, template: \['sft'\] not among the stages"),
    (["control=[base, base]"], "control: base twice"),
    (["sampled_layers=[3]"], "sampled_layers: 3 is not in 0-2"),
    (["steering.layers=[7]"], "steering.layers: 7 is not in 0-2"),
    (["patchscope.slot=w9"], "patchscope.slot: 'w9' is not in the prompt"),
    (
        ["patchscope.prompt=Xyzzy w3"],
        "patchscope.prompt: .* has words that the tokenizer of stage base does not know",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_mistakes_in_a_job(overrides, message, folder):
    with pytest.raises(JobError, match=message):
        prepare(load_job(str(folder / "job.yaml"), overrides))


@pytest.mark.slow
def test_mistakes_in_conversations(folder, tmp_path):
    def problem(text, *more):
        (tmp_path / "bad.jsonl").write_text(text)
        texts = f"texts=[{{name: chats, messages: {tmp_path / 'bad.jsonl'}}}]"
        with pytest.raises(JobError) as error:
            prepare(load_job(str(folder / "job.yaml"), [texts, *more]))
        return str(error.value)

    good = json.dumps({"messages": [{"role": "user", "content": "w1 w2"}]})
    assert 'line 2: is no {"messages"' in problem(f"{good}\n[1]\n")
    assert "line 1: is no" in problem('{"messages": [{"role": "narrator", "content": "w1"}]}\n')
    assert "1 documents" in problem(good)
    assert "words that the tokenizer does not know" in problem(f"{good}\n{good.replace('w1', 'Xyzzy')}")
