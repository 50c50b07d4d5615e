"""The benchmark of reading measures what it says: everything is stored, and is what the plain model gives."""

import pytest

from benchmarks.read import Case, compare, make_prompts, make_store, read_all
from posttrace.pipeline.spec import families
from posttrace.stores import verify
from posttrace.tracers.models.loading import open_model
from tests.support.benchmarks import COLUMNS


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_is_timed_is_stored_whole_and_right(tmp_path):
    model = open_model(families()["embedded"]["base"], device="cpu", check=False)
    case = Case("few", few_shot=0, tokens="last", batch=4)
    prompts = make_prompts(model, case, batches=2)
    assert [len(some) for some in prompts] == [4, 4] and len(
        {len(p.ids) for some in prompts for p in some}
    ) == 1
    store = make_store(tmp_path / "store", model, case, prompts)
    read_all(model, case, prompts, store)
    assert store.done() == set(store.units) and not list(verify(store.url))
    row = compare(model, case, batches=2, rounds=2, device="cpu")
    assert set(row) >= COLUMNS - {"method"} and row["max_abs_diff"] < 1e-4
    assert row["bytes_stored"] > 8 * model.n_layers * model.hidden_size * 4
    assert len(row["seconds_each"]) == len(row["seconds_bare_each"]) == 2 and row["throughput"] > 0
