"""The study on the checkpoints that ship: real weights give what the model card says."""

import numpy as np
import pytest

from posttrace.stores import open_group
from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.patching import patch_grid
from posttrace.tracers.models.loading import open_model
from posttrace.tracers.oracles.patching import patch_grid_naive
from posttrace.tracers.prompts import encode
from tests.support.commands import posttrace


@pytest.fixture(scope="session")
def store(shared):
    def make(folder):
        changes = (
            "max_pairs=8",
            "sets=[cities, neg_cities]",
            "stages=[base, instruct]",
            "execution.device=cpu",
        )
        options = [word for change in changes for word in ("--set", change)]
        done = posttrace("run", "knowledge", "--store", folder / "store", *options)
        assert done.returncode == 0, done.stderr

    return shared("embedded", make) / "store"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cities", "neg_cities"])
def test_base_and_instruct_know_the_facts_in_the_same_place(store, name):
    data = open_group(str(store), f"knowledge/{name}").load()
    known = (data.logit_diff_clean.rename(source="stage") > 0).values & (data.logit_diff_corrupt.values < 0)
    assert known.mean() > 0.9, "clean is judged TRUE and corrupt FALSE"
    maps = [data.logit_diff.sel(source=s, target=s).mean("pair").values for s in ("base", "instruct")]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.95
    roles, labels = list(data.token_role.values), list(data.token_label.values)
    assert roles.count("subject") >= 2, "subjects have several tokens"
    corrupt, clean = data.logit_diff_corrupt.mean("pair").values, data.logit_diff_clean.mean("pair").values
    for i, grid in enumerate(maps):
        recovered = (grid - corrupt[i]) / (clean[i] - corrupt[i])
        *before, end = np.flatnonzero(np.array(roles) == "subject")
        assert recovered[:, end].max() > 0.25, "the fact lies at the end of the name"
        assert recovered[:, before].max() < recovered[:, end].max() / 2, "and not before it"
        path = [end, roles.index("object"), labels.index("."), roles.index("last")]
        peaks = recovered[:, path].argmax(axis=0)
        assert (np.diff(peaks) > 0).all(), "then at the object, the end of the statement, and the last token"


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_the_grid_equals_the_oracle_on_trained_weights(dtype, tolerance):
    """In bfloat16 logits around 10 are rounded to 1/16, and other batches add up in another order: two such steps."""
    from posttrace.pipeline.embedded import CHECKPOINTS

    model = open_model(str(CHECKPOINTS / "base"), device="cpu", dtype=dtype)
    prefix = "The city of Bern is in Spain. This statement is: FALSE\n"
    clean, corrupt = (
        [encode(model.tokenizer, prefix, f"The city of {c} is in France. This statement is:") for c in cities]
        for cities in (["Lyon", "Marseille"], ["Munich", "Hamburg"])
    )
    if any(len(a.statement) != len(b.statement) for a, b in zip(clean, corrupt, strict=True)):
        corrupt = [
            encode(model.tokenizer, prefix, clean[i].text[len(prefix) :].replace("France", "Japan"))
            for i in (0, 1)
        ]
    options = dict(
        site="resid_post",
        layers=[0, 3, 7],
        answers=tuple(model.tokenizer.convert_tokens_to_ids(["ĠTRUE", "ĠFALSE"])),
    )
    source = read_statements(model, clean, **options).values[None]
    fast, slow = (grid(model, corrupt, source, **options) for grid in (patch_grid, patch_grid_naive))
    assert slow.patched.nan_to_num().abs().max() > 1
    np.testing.assert_allclose(fast.patched, slow.patched, atol=tolerance, rtol=0)
