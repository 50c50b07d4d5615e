"""What the engines and studies say of a pretrained model, SmolLM2-135M-Instruct; `make test-real` runs these."""

import os

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.figures.measures.entropy_neurons import top_by_norm
from posttrace.figures.measures.intervals import wilson_estimate
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import open_group
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import patch_grid
from posttrace.tracers.models.loading import open_model
from posttrace.tracers.oracles.patching import patch_grid_naive
from posttrace.tracers.prompts import answer_ids, encode
from tests.support.real import Unavailable, fetch

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("POSTTRACE_REAL" not in os.environ, reason="make test-real runs it"),
]

CAPITALS = """
Algeria Algiers, Argentina Buenos Aires, Australia Canberra, Austria Vienna, Bangladesh Dhaka, Belgium Brussels,
Brazil Brasilia, Bulgaria Sofia, Canada Ottawa, Chile Santiago, China Beijing, Colombia Bogotá, Croatia Zagreb,
Cuba Havana, Denmark Copenhagen, Ecuador Quito, Egypt Cairo, England London, Ethiopia Addis Ababa, Finland Helsinki,
France Paris, Germany Berlin, Ghana Accra, Greece Athens, Hungary Budapest, Iceland Reykjavik, India New Delhi,
Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin, Israel Jerusalem, Italy Rome, Jamaica Kingston,
Japan Tokyo, Jordan Amman, Kenya Nairobi, Lebanon Beirut, Malaysia Kuala Lumpur, Morocco Rabat, Nepal Kathmandu,
Netherlands Amsterdam, Nigeria Abuja, Norway Oslo, Pakistan Islamabad, Peru Lima, Philippines Manila, Poland Warsaw,
Portugal Lisbon, Romania Bucharest, Russia Moscow, Scotland Edinburgh, Serbia Belgrade, Spain Madrid,
Sweden Stockholm, Switzerland Bern, Syria Damascus, Taiwan Taipei, Thailand Bangkok, Turkey Ankara, Ukraine Kiev,
Uruguay Montevideo, Venezuela Caracas, Vietnam Hanoi
"""
CAPITAL = dict(line.strip().split(" ", 1) for line in CAPITALS.replace("\n", " ").split(","))
"""Of countries whose names are one token each, in alphabetical order."""


@pytest.fixture(scope="module")
def checkpoint():
    try:
        return str(fetch())
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def model(checkpoint):
    return open_model(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def first_tokens(checkpoint):
    """Country -> the text of its capital's first token."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert all(len(tokenizer(f" {country}")["input_ids"]) == 1 for country in CAPITAL)
    return {c: tokenizer.decode(tokenizer(f" {capital}")["input_ids"][:1]) for c, capital in CAPITAL.items()}


@pytest.fixture(scope="module")
def known(checkpoint, tmp_path_factory, first_tokens):
    """The countries whose capitals the model knows: its first token is the most probable."""
    said = next_tokens(checkpoint, tmp_path_factory.mktemp("known"), [question(c) for c in CAPITAL])
    countries = [c for c, token in zip(CAPITAL, said, strict=True) if token == first_tokens[c]]
    print(f"\nmost probable next token is the capital's first: {shown([c in countries for c in CAPITAL])}")
    return countries


def question(country):
    return f"The capital of {country} is"


def next_tokens(checkpoint, folder, prompts, operations=()):
    """The most probable next token of every prompt, by a `trace` job, the operations at work if there are any."""
    job = {"study": "trace", "prompts": prompts, "operations": list(operations), "prompts_per_unit": 64}
    run(checkpoint, folder, job)
    output = open_group(folder / "store", "trace/output").isel(model=0, rank=0)
    return output.next_token.sel(intervention="all" if operations else "none").values


def run(checkpoint, folder, job):
    family = {"name": "SmolLM2-135M", "stages": {"instruct": checkpoint}}
    (folder / "job.yaml").write_text(
        yaml.safe_dump({**job, "family": family, "execution": {"device": "cpu"}})
    )
    run_job(load_job(str(folder / "job.yaml")), str(folder / "store"), say=lambda line: None)


def shown(outcomes):
    """A share with n and its Wilson interval."""
    found = wilson_estimate(np.array(outcomes))
    return (
        f"{sum(outcomes)} of {found.n} ({found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f})"
    )


def test_it_continues_with_the_capital_of_france(model):
    ids = model.tokenizer("<|im_start|>user 42<|im_end|>")["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "user", "Ġ", "4", "2", "<|im_end|>"]
    ids = torch.tensor([model.tokenizer(question("France"))["input_ids"]])
    with torch.no_grad():
        probability = model.nn._module(ids).logits[0, -1].softmax(-1)
    assert model.tokenizer.decode(probability.argmax()) == " Paris"
    assert probability.max() > 0.5


def test_it_finds_what_it_has_read_before(model):
    """A list of words is far less surprising the second time; with llama.cpp's order of query rows it is not."""
    words = "river candle seven marble orange window pilot sugar green hammer coffee mountain letter silver\n"
    ids = torch.tensor([model.tokenizer(2 * words)["input_ids"]])
    with torch.no_grad():
        logprob = model.nn._module(ids).logits[0, :-1].log_softmax(-1)
    first, second = (-logprob.gather(1, ids[0, 1:, None])).chunk(2)
    print(f"\nmean NLL of a list of words {first.mean():.2f} nats, of its repetition {second.mean():.2f}")
    assert second.mean() < 0.5 * first.mean()


@pytest.mark.parametrize(("layer", "least", "most"), [(12, 0.8, 1.0), (24, 0.0, 0.1)])
def test_the_patched_country_decides_the_capital_until_it_is_read(
    checkpoint, tmp_path, known, first_tokens, layer, least, most
):
    """Each country takes the activation of the next one; in late layers the last token has already read it."""
    assert len(known) >= 30
    sources = [*known[1:], known[0]]
    prompts = [
        {"prompt": question(c), "source": question(source)} for c, source in zip(known, sources, strict=True)
    ]
    patch = {"op": "patch", "source": "instruct", "site": "resid_post", "layers": [layer], "tokens": [-2]}
    said = next_tokens(checkpoint, tmp_path, prompts, [patch])
    flipped = [token == first_tokens[source] for token, source in zip(said, sources, strict=True)]
    kept = [token == first_tokens[country] for token, country in zip(said, known, strict=True)]
    print(f"\nlayer {layer}, token -2: the source's capital {shown(flipped)}; its own {shown(kept)}")
    missed = [
        row for row, hit in zip(zip(known, sources, said, strict=True), flipped, strict=True) if not hit
    ]
    print("not flipped (country, source, next token):", *missed[:5])
    assert least <= np.mean(flipped) <= most


@pytest.mark.parametrize(("source", "target"), [("France", "Italy"), ("Japan", "Greece"), ("Chile", "Kenya")])
def test_the_patch_grid_equals_whole_passes(model, source, target):
    prompts = [encode(model.tokenizer, "", question(country)) for country in (source, target)]
    answers = answer_ids(
        model.tokenizer, question(target), tuple(f" {CAPITAL[country]}" for country in (source, target))
    )
    options = dict(site="resid_post", layers=range(0, 30, 3), answers=answers)
    values = model.run(read_statements, prompts[:1], **options).values[None]
    grid = model.run(patch_grid, prompts[1:], values, **options)
    naive = patch_grid_naive(model, prompts[1:], values, **options)
    largest = (grid.patched - naive.patched).abs().max()
    print(f"\n{source} -> {target}: grid and whole passes differ by {largest:.1e} nats at most")
    assert largest < 1e-3
    torch.testing.assert_close(grid.unpatched, naive.unpatched, atol=1e-3, rtol=0)
    assert grid.unpatched < 0 < grid.patched[0, 0, 4, -2], "layer 12, the country"


def test_entropy_neurons_of_the_last_block_are_found_in_the_weights(checkpoint, tmp_path):
    """Norm and LogitVar of the candidates equal plain ones; the first lies far below its peers of like norm."""
    run(checkpoint, tmp_path, {"study": "confidence", "text": None})
    found = open_group(tmp_path / "store", "confidence").isel(model=0)
    norm, logit_var = found.weight_norm.values, found.logit_var.values
    chosen = found.candidate.values
    module = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    unembed = (module.lm_head.weight * module.model.norm.weight).detach().double()
    unembed -= unembed.mean(0)
    unembed /= unembed.norm(dim=1, keepdim=True)
    vectors = module.model.layers[-1].mlp.down_proj.weight.T[chosen].detach().double()
    np.testing.assert_allclose(norm[chosen], vectors.norm(dim=1), rtol=1e-6)
    cosines = unembed @ (vectors / vectors.norm(dim=1, keepdim=True)).T
    np.testing.assert_allclose(logit_var[chosen], cosines.var(0), rtol=1e-6)
    pool = top_by_norm(norm, 0.25)
    ratio = logit_var[chosen] / np.median(logit_var[pool])
    longest = [int(n) for n in chosen if n == norm.argmax()]
    print(f"\ncandidates {chosen.tolist()}, the longest of all {len(norm)} among them: {longest}")
    print(f"LogitVar by the median of the top quarter by norm: {np.round(ratio, 2).tolist()}")
    assert ratio[0] < 0.75
