"""The loopback server against nnsight's own client: what it says is what the client understands."""

import nnsight
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError

from posttrace.pipeline.embedded import CHECKPOINTS
from tests.support.remote.loopback import BASE, Loopback


def backend(server, model, **options):
    made = RemoteBackend(
        Loopback.model_key(BASE),
        host=server.url,
        api_key=server.key,
        env=model._remoteable_get_env(),
        **options,
    )
    made.display.enabled = False
    return made


def doubled_mean(model, layer):
    with model.trace("The city of Paris is in France."):
        mean = nnsight.save(2 * model.model.layers[layer].output.mean(1))
    return mean


def test_the_server_cannot_import_this_project(running_server):
    start = running_server.log("start")[0]
    assert start["importable"] == []
    assert not [path for path in start["path"] if (CHECKPOINTS.parents[1] / "cli.py").is_relative_to(path)]
    assert start["versions"]["torch"] == torch.__version__


def test_a_blocking_trace_gives_what_it_gives_locally(server, model):
    with model.trace("The city of Paris is in France."):
        local = model.lm_head.output.save()
    with model.trace("The city of Paris is in France.", backend=backend(server, model)):
        remote = model.lm_head.output.save()
    torch.testing.assert_close(remote, local, rtol=0, atol=1e-5)


def test_a_session_runs_functions_that_hold_traces(server, model):
    local = torch.stack([doubled_mean(model, layer) for layer in (0, 3)])
    made = backend(server, model)
    with model.session(backend=made):
        remote = nnsight.save(torch.stack([doubled_mean(model, layer) for layer in (0, 3)]))
    torch.testing.assert_close(remote, local, rtol=0, atol=1e-5)
    assert server.since("run")[0]["foreign"] == []


def test_a_job_that_is_polled_gives_its_result(server, model):
    made = backend(server, model, blocking=False)
    with model.trace("The city of Paris is in France.", backend=made):
        logits = model.lm_head.output.save()  # noqa: F841 - a job that is polled fills no variables
    while (result := made.poll()) is None:
        pass
    assert result["logits"].shape[-1] == model._module.config.vocab_size
    [posted] = server.since("post")
    assert posted["job"] == made.job_id and posted["code"] == 200


def test_an_error_of_a_block_comes_back_with_its_line(server, model):
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        remote_logits_over(0, server, model)
    assert "1 // divisor" in str(caught.value)


def remote_logits_over(divisor, server, model):
    with model.trace("The city of Paris is in France.", backend=backend(server, model)):
        nnsight.save(model.lm_head.output * (1 // divisor))


def test_a_wrong_key_is_refused(server, model):
    made = backend(server, model, blocking=False)
    made.api_key = "11111111-0000-4000-8000-000000000000"
    with pytest.raises(RemoteError, match="Invalid API key"), model.trace("w", backend=made):
        model.lm_head.output.save()
