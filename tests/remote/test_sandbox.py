"""NDIF's own server code (PyPI `ndif`): every study gives the local store, whether or not the key is trusted.

Without the tag `trusted` a block runs in another process, whose modules have no weights and where everything that
goes to the model or comes from it is a copy.
"""

import random

import pytest
import torch

from posttrace.pipeline.embedded import CHECKPOINTS
from posttrace.pipeline.errors import JobError
from posttrace.tracers.checked import checked_grid, scored_completions
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.answer_probabilities import read_answers
from posttrace.tracers.engines.edits import Edit, edit_of
from posttrace.tracers.engines.generation import Openings
from posttrace.tracers.engines.neuron_ablation import ablate_neurons
from posttrace.tracers.engines.steered_answers import steered_answers
from posttrace.tracers.engines.steering import ablation
from posttrace.tracers.models.loading import empty_model, open_model
from posttrace.tracers.models.mlp_neurons import find_neurons
from posttrace.tracers.operations import Steer
from posttrace.tracers.prompts import Prompt
from posttrace.tracers.remote.errors import Unavailable
from posttrace.tracers.remote.model import open_remote
from posttrace.tracers.remote.policy import ConcurrencyLimit, Policy
from posttrace.tracers.remote.runner import Runner
from posttrace.tracers.remote.server import Server
from tests.support.remote.isolation import NotInstalled, server_package
from tests.support.remote.loopback import KEY, UNTRUSTED, Loopback
from tests.support.remote.studies import SMALL, assert_equal, run

NDIF = "0.1.2"
KEYS = {"trusted": KEY, "untrusted": UNTRUSTED}
ANSWERS = (5, 6)
FEWER = {"knowledge": ["sets=[cities]", "max_pairs=2"]}
"""Every value goes over a socket."""


@pytest.fixture(scope="session")
def package():
    try:
        return server_package("ndif", NDIF)
    except NotInstalled as reason:
        pytest.skip(str(reason))


def sandboxed(folder, package, models, **options):
    """A server that runs requests with NDIF's own code."""
    how = {"autocast": False, "meta": True, **options.pop("sandbox", {})}
    return Loopback(folder, models, {"ndif": package}, sandbox=how, **options)


@pytest.fixture(scope="session")
def ndif(package, tmp_path_factory):
    models = {f"posttrace/embedded-{stage}": CHECKPOINTS / stage for stage in ("base", "instruct")}
    with sandboxed(tmp_path_factory.mktemp("ndif"), package, models) as server:
        yield server


@pytest.fixture
def as_key(ndif, monkeypatch):
    """Let jobs go to NDIF's code with a key, on one thread as there: others add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def chosen(name):
        monkeypatch.setenv("NDIF_HOST", ndif.url)
        monkeypatch.setenv("NDIF_API_KEY", KEYS[name])

    yield chosen
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "key"),
    [
        *((study, "untrusted") for study in SMALL),
        *(pytest.param(study, "trusted", marks=pytest.mark.exhaustive) for study in SMALL),
    ],
)
def test_a_study_gives_the_local_store(study, key, ndif, local, as_key, tmp_path):
    as_key(key)
    expected = local(study, *FEWER.get(study, ()))
    ndif.mark()
    assert_equal(run(study, "remote", tmp_path / "store", *FEWER.get(study, ())), expected)
    ran = ndif.since("run")
    assert ran and not any(one["error"] or one["foreign"] for one in ran)


@pytest.mark.slow
def test_estimates_by_gradients_are_for_keys_that_are_trusted(ndif, local, as_key, tmp_path):
    more = ["method=attribution", "exact_share=0.5", "sets=[cities]", "stages=[base]", "max_pairs=3"]
    as_key("trusted")
    expected = local("knowledge", *more)
    assert_equal(run("knowledge", "remote", tmp_path / "trusted", *more), expected)
    as_key("untrusted")
    ndif.mark()
    with pytest.raises((JobError, Unavailable), match=r"attribution needs gradients.* set method=exact"):
        run("knowledge", "remote", tmp_path / "untrusted", *more, "execution.in_flight=1")
    assert len(ndif.since("post")) <= 3, "the run goes on although every estimate is refused"


def prompts():
    ids = ((1, 20, 21, 30, 31, 32), (1, 20, 21, 33, 34), (1, 20, 21, 35, 30))
    return [Prompt(text="", ids=row, start=3, spans=((0, 0),) * (len(row) - 3)) for row in ids]


def everything(model):
    """The engines of all studies on a few prompts: name -> tensor."""
    options = dict(site="resid_post", layers=(0, 3, 7), answers=ANSWERS)
    found = {}
    reading = model.run(read_statements, prompts(), **options)
    found["activations"], found["logit differences"] = reading.values, reading.logit_diff
    for site in ("resid_pre", "resid_mid", "z"):
        chosen = {**options, "site": site}
        source = model.run(read_statements, prompts(), **chosen).values.flip(0)[None].nan_to_num()
        checked = model.run(checked_grid, prompts(), source, share=0.1, rng=random.Random(0), **chosen)
        found[f"grid of {site}"] = checked.grid.patched
    vector = torch.linspace(-1, 1, model.hidden_size)
    steers = [
        [
            None,
            Edit(site="resid_post", layers=(1, 2), mode="add", values=vector, columns=(-2, -1)),
            Edit(site="resid_pre", layers=(3,), mode="ablate", values=vector / vector.norm(), columns=(-1,)),
        ]
    ]
    found["steered"] = model.run(steered_answers, prompts(), steers * 3, answers=ANSWERS)
    found["sureness"] = model.run(read_answers, prompts(), answers=ANSWERS).entropy
    out = ablation(vector, model.architecture.sites, model.n_layers)
    steer = Steer(site="resid_pre", layers=(2,), tokens="all", direction="up")
    added = [edit_of(steer, vector, model.n_layers)]
    ids = [prompt.ids for prompt in prompts()]
    for name, edits in {"plain": [], "ablated": out, "added": added}.items():
        answers = model.run(
            scored_completions,
            ids,
            edits,
            Openings((5,), (6,)),
            max_new_tokens=4,
            share=0.5,
            rng=random.Random(0),
        )
        found[f"{name} log-odds"], found[f"{name} mean_nll"] = answers.log_odds, answers.mean_nll
        found[f"{name} answers"] = torch.tensor(answers.ids)
    for layer in (3, 7):
        neurons = find_neurons(empty_model(str(CHECKPOINTS / "base")), layer)
        effects = model.run(
            ablate_neurons, ids, neurons=neurons, mean=torch.zeros(neurons.n_neurons), ablations=[[1], [2, 3]]
        )
        for name, value in vars(effects).items():
            found[f"{name} of block {layer}"] = value
    return found


def there(server, key, dtype):
    runner = Runner(Server(server.url, KEYS[key]), Policy(poll=0.02), ConcurrencyLimit(1))
    name = "posttrace/embedded-base"
    return open_remote(str(CHECKPOINTS / "base"), revision=None, key=name, dtype=dtype, runner=runner)


@pytest.mark.slow
def test_where_the_server_cannot_build_a_model_without_weights(package, tmp_path):
    """With transformers 5.23 nnsight 0.8.1 cannot, and every module is None: nothing is asked of one."""
    here = everything(open_model(str(CHECKPOINTS / "base"), device="cpu"))
    models = {"posttrace/embedded-base": CHECKPOINTS / "base"}
    with sandboxed(tmp_path, package, models, sandbox={"meta": False}) as server:
        found = everything(there(server, "untrusted", torch.float32))
        assert "no meta model" in (tmp_path / "server.err").read_text()
    for name, value in here.items():
        torch.testing.assert_close(
            *(found[name], value), rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda why, n=name: f"{n}: {why}"
        )


@pytest.mark.slow
def test_half_precision_within_autocast(package, tmp_path):
    """NDIF's default: bfloat16, a region of autocast around the request."""
    here = everything(open_model(str(CHECKPOINTS / "base"), device="cpu", dtype="bfloat16"))
    models = {"posttrace/embedded-base": CHECKPOINTS / "base"}
    with sandboxed(tmp_path, package, models, dtype="bfloat16", sandbox={"autocast": True}) as server:
        found = {key: everything(there(server, key, torch.bfloat16)) for key in KEYS}
    for name, value in here.items():
        if "answers" in name:
            continue  # two tokens that are as likely up to rounding may change places
        scale = value.nan_to_num().abs().max().clamp(min=1)
        for key in KEYS:
            off = (found[key][name] - value).nan_to_num().abs().max()
            assert off <= 0.05 * scale, f"{name}, {key}: off by {off:.3g} of {scale:.3g}"


@pytest.mark.slow
def test_of_stages_an_untrusted_key_gives_effects(ndif, as_key, tmp_path):
    more = ["behaviours=[refusal, loss]", "text={tokens: 16}", "max_prompts=2", "swaps=[]", "controls=0"]
    as_key("untrusted")
    store = run("stages", "remote", tmp_path / "store", *more)
    assert_equal(run("stages", "simulated", tmp_path / "simulated", *more), store)
    assert not any(one["error"] or one["foreign"] for one in ndif.since("run"))
