"""Every architecture of the table offers what the list of verified ones says, and what it offers is right."""

import pytest
import torch

from posttrace.tracers.models.architecture import recognise
from posttrace.tracers.models.loading import wrap
from posttrace.tracers.models.verified import verified
from tests.support.models import word_tokenizer
from tests.tracers.architectures.table import ROWS, tiny_module
from tests.tracers.architectures.verify import verify

pytestmark = pytest.mark.slow

UNSEEN = {"llama4_text": {"mlp_out"}, "minimax": {"attn_out", "resid_mid", "mlp_out"}}
"""Sites that only running the model shows not to be there."""


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are so small that a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ROWS)
def test_what_an_architecture_offers(name, tmp_path):
    module = tiny_module(name)
    model = wrap(module, word_tokenizer(), name=name)
    assert verify(model, tmp_path) == verified()[name]
    planned = recognise(module)
    assert set(planned.patchable) - set(model.architecture.patchable) == UNSEEN.get(name, set())
    assert planned.whole == model.architecture.whole


def test_the_list_has_no_other_architectures():
    assert verified().keys() == ROWS.keys()
