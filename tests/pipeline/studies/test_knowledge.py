"""The study from the command line: its numbers, its resuming, its independence of the models afterwards."""

import os
import random
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrace.stores import Store, open_group
from tests.support.commands import Command, posttrace, wait_for_units
from tests.support.jobs import UNITS


@pytest.mark.slow
def test_values_equal_plain_transformers_with_a_forward_hook(finished, family):
    """Three pairs, both directions, every cell: no code of ours but the reader of the store."""
    data = open_group(str(finished), "knowledge/cities").load()
    true, false = (
        AutoTokenizer.from_pretrained(family / "base").convert_tokens_to_ids(t) for t in (" TRUE", " FALSE")
    )
    compared = 0
    for source_name, target_name in [("base", "base"), ("base", "instruct"), ("instruct", "base")]:
        source, target = (
            AutoModelForCausalLM.from_pretrained(family / s, dtype=torch.float32).eval()
            for s in (source_name, target_name)
        )
        tokenizer = AutoTokenizer.from_pretrained(family / target_name)
        for pair in range(3):
            clean = tokenizer(str(data.clean_prompt.values[pair]), return_tensors="pt").input_ids
            corrupt = tokenizer(str(data.corrupt_prompt.values[pair]), return_tensors="pt").input_ids
            n = int(data.n_tokens[pair])
            with torch.no_grad():
                streams = source(clean, output_hidden_states=True).hidden_states
            # hidden_states ends with the normed stream: take the last block's output from a hook instead
            streams = [*streams[1:-1], hooked(source.model.layers[-1], source, clean)]
            values = data.logit_diff.sel(source=source_name, target=target_name).isel(pair=pair).values
            for layer in range(len(target.model.layers)):
                for token in range(n):
                    position = corrupt.shape[1] - n + token
                    logits = patched(
                        target.model.layers[layer], target, corrupt, position, streams[layer][0, position]
                    )
                    expected = float(logits[true] - logits[false])
                    assert values[layer, token] == pytest.approx(expected, abs=2e-5)
                    compared += 1
            moved = abs(values - float(data.logit_diff_corrupt.sel(target=target_name)[pair])) > 2e-3
            assert moved.mean() > 0.2, "hardly a cell has an effect: nothing is tested"
    assert compared == 9 * 3 * int(data.sizes["token"])


def hooked(module, model, ids):
    kept = []
    handle = module.register_forward_hook(lambda m, i, output: kept.append(output))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return kept[0]


def patched(module, model, ids, position, value):
    def replace(m, i, output):
        output = output.clone()
        output[0, position] = value
        return output

    handle = module.register_forward_hook(replace)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.slow
def test_the_names_that_readers_rely_on(finished):
    data = open_group(str(finished), "knowledge/cities").load()
    assert data.logit_diff.dims == ("source", "target", "pair", "layer", "token")
    assert data.logit_diff_clean.dims == ("source", "pair")
    assert data.logit_diff_corrupt.dims == ("target", "pair")
    assert list(data.source.values) == list(data.target.values) == ["base", "instruct"]
    assert list(data.layer.values) == [0, 1, 2]
    assert list(data.token_label.values) == [
        *("The", "city", "of", "[s1]", "[s2]", "is", "in", "[o1]", "."),
        *("This", "statement", "is", ":"),
    ]
    roles = ["other"] * 3 + ["subject"] * 2 + ["other"] * 2 + ["object"] + ["other"] * 4 + ["last"]
    assert list(data.token_role.values) == roles
    for clean, corrupt in zip(data.clean_prompt.values, data.corrupt_prompt.values, strict=True):
        *examples, statement = clean.split("\n")
        assert examples == corrupt.split("\n")[:-1]
        assert sorted(line.rsplit(" ", 1)[1] for line in examples) == ["FALSE", "FALSE", "TRUE", "TRUE"]
        assert statement.endswith("This statement is:") and statement.split("This")[0] not in "".join(
            examples
        )
    assert not data.logit_diff.isnull().any()
    assert data.logit_diff.attrs["units"].startswith("logit difference, nats")


@pytest.mark.slow
def test_patching_by_the_last_token_gives_the_source_answer(finished):
    """After the last block nothing but the last token counts: patched there, the target unembeds the source."""
    data = open_group(str(finished), "knowledge/cities").load()
    for stage in ("base", "instruct"):
        own = data.logit_diff.sel(source=stage, target=stage).isel(layer=-1)
        np.testing.assert_allclose(
            own.isel(token=-1), data.logit_diff_clean.sel(source=stage), rtol=1e-4, atol=1e-3
        )
        before = own.isel(token=slice(0, -1)) - data.logit_diff_corrupt.sel(target=stage)
        np.testing.assert_allclose(before, 0, atol=2e-3)


@pytest.mark.slow
def test_free_form_pairs_are_padded_and_carry_their_own_roles(finished):
    data = open_group(str(finished), "knowledge/free").load()
    assert data.attrs["alignment"] == "free" and len(set(data.n_tokens.values)) > 1
    for pair, n in enumerate(data.n_tokens.values):
        values = data.logit_diff.isel(pair=pair)
        assert (
            values.isel(token=slice(0, n)).notnull().all()
            and values.isel(token=slice(n, None)).isnull().all()
        )
        roles = list(data.token_role_of_pair.values[pair])
        assert roles[n - 1] == "last" and set(roles[n:]) <= {""} and "knowledge" in roles


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_bit_for_bit_the_same(finished, job_file, tmp_path):
    rng = random.Random(0)
    seen = []
    for _ in range(20):
        process = Command("run", job_file, "--store", tmp_path / "killed")
        wait_for_units(tmp_path / "killed", len(seen[-1]) + 1 if seen else 1, process)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode == 0:
            break
        seen.append(Store.open(str(tmp_path / "killed")).done())
        if len(seen) >= 3 or 2 * len(seen[-1]) >= UNITS:  # a fast machine might finish before the next kill
            break
    assert all(earlier <= later for earlier, later in pairwise(seen)), "finished work was lost"
    assert 0 < len(seen[-1]) < len(Store.open(str(finished)).units), "it was not killed in the middle"
    again = posttrace("run", job_file, "--store", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert f"{len(seen[-1])} of {UNITS} units were done; {UNITS - len(seen[-1])} to go" in again.stderr
    for path in ("knowledge/cities", "knowledge/free"):
        one, other = (open_group(str(s), path).load() for s in (finished, tmp_path / "killed"))
        for name in one.variables:
            same_text = one[name].dtype.kind in "OUT" and one[name].equals(other[name])
            assert same_text or one[name].values.tobytes() == other[name].values.tobytes(), name
    assert posttrace("verify", tmp_path / "killed").returncode == 0


@pytest.mark.slow
def test_a_finished_run_repeats_nothing(finished, job_file):
    before = Store.open(str(finished)).records()
    again = posttrace("run", job_file, "--store", finished, "--set", "execution.max_tokens=50")
    assert f"{UNITS} of {UNITS} units were done; 0 to go" in again.stderr, (
        "how it runs is no part of what it gives"
    )
    assert Store.open(str(finished)).records() == before


@pytest.mark.slow
def test_another_job_is_refused_by_the_store(finished, job_file):
    other = posttrace("run", job_file, "--store", finished, "--set", "seed=1")
    assert other.returncode == 2 and "seed" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_figures_need_no_model(finished, family, tmp_path):
    """With the checkpoints out of reach, everything is drawn again, byte for byte."""
    drawn = []
    for name, moved in [("with", False), ("without", True)]:
        out = tmp_path / name
        if moved:
            family.rename(family.with_name("elsewhere"))
        try:
            done = posttrace("figures", finished, "--out", out)
        finally:
            if moved:
                family.with_name("elsewhere").rename(family)
        assert done.returncode == 0, done.stderr
        drawn.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert drawn[0] == drawn[1]
    assert sum(p.suffix == ".png" for p in drawn[0]) >= 4 and any(p.suffix == ".csv" for p in drawn[0])


@pytest.mark.slow
def test_bfloat16_is_kept_and_close_to_float32(finished, job_file, tmp_path):
    done = posttrace("run", job_file, "--store", tmp_path / "half", "--set", "dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    full, half = (open_group(str(s), "knowledge/cities").load() for s in (finished, tmp_path / "half"))
    assert half.activation.attrs["logical_dtype"] == "bfloat16"
    scale = float(abs(full.activation).max())
    assert float(abs(half.activation - full.activation).max()) < 0.1 * scale
    assert np.corrcoef(half.logit_diff.values.ravel(), full.logit_diff.values.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_dry_run_says_what_it_would_do_and_does_nothing(job_file, tmp_path):
    done = posttrace("run", job_file, "--store", tmp_path / "none", "--dry-run")
    assert done.returncode == 0 and not (tmp_path / "none").exists()
    assert f"{UNITS} units" in done.stdout and "7 of" in done.stdout


@pytest.mark.slow
def test_given_examples_are_used_as_they_are(job_file, tmp_path):
    lines = ["w1 is w2. This statement is: TRUE", "w3 is w4. This statement is: FALSE"]
    job = yaml.safe_load(job_file.read_text())
    job["sets"][0]["few_shot"] = lines
    job_file.write_text(yaml.safe_dump(job))
    assert posttrace("run", job_file, "--store", tmp_path / "store").returncode == 0
    data = open_group(str(tmp_path / "store"), "knowledge/cities")
    for prompt in data.clean_prompt.values:
        assert sorted(prompt.split("\n")[:-1]) == sorted(lines)


@pytest.mark.slow
def test_attribution_is_kept_next_to_exact_values_of_some_pairs(finished, job_file, tmp_path):
    """The estimate has its own name; exact values stand where a pair was drawn for them, and are the exact run's."""
    done = posttrace("run", job_file, "--store", tmp_path / "a", "--set", "method=attribution")
    assert done.returncode == 0, done.stderr
    for path in ("knowledge/cities", "knowledge/free"):
        exact, data = (open_group(str(s), path).load() for s in (finished, tmp_path / "a"))
        assert data.attrs["method"] == "attribution" and exact.attrs["method"] == "exact"
        assert "logit_diff_attribution" not in exact and "exact" not in exact.coords
        chosen = data.exact.values
        assert 2 <= chosen.sum() < chosen.size
        np.testing.assert_allclose(
            data.logit_diff[:, :, chosen], exact.logit_diff[:, :, chosen], atol=2e-3, rtol=1e-4
        )
        assert data.logit_diff[:, :, ~chosen].isnull().all()
        inside = exact.logit_diff.notnull()
        assert (data.logit_diff_attribution.notnull() == inside).all()
        same = data.logit_diff_attribution.values[inside] - exact.logit_diff.values[inside]
        assert np.abs(same).max() > 0.1, "an estimate that never misses was not estimated"
        assert (
            np.corrcoef(data.logit_diff_attribution.values[inside], exact.logit_diff.values[inside])[0, 1]
            > 0.3
        )
    assert posttrace("verify", tmp_path / "a").returncode == 0


@pytest.mark.slow
def test_a_bucket_holds_what_a_folder_holds(finished, job_file, s3):
    """Killed and continued on S3, drawn from there: the same arrays, and no key in what was stored."""
    process = Command("run", job_file, "--store", s3)
    wait_for_units(s3, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = posttrace("run", job_file, "--store", s3)
    assert again.returncode == 0 and f"of {UNITS} units were done" in again.stderr
    one, other = (open_group(str(s), "knowledge/cities").load() for s in (finished, s3))
    for name in one.data_vars:
        assert one[name].values.tobytes() == other[name].values.tobytes(), name
    shown = posttrace("show", s3, "--json").stdout
    assert "complete" in shown and os.environ["AWS_SECRET_ACCESS_KEY"] not in shown
    assert posttrace("verify", s3).returncode == 0


@pytest.mark.slow
def test_single_heads_are_patched_and_stored_by_layer_and_head(family, job_file, tmp_path):
    """Every head at the last token of one pair, base into instruct, by hooks on plain transformers."""
    arguments = ["--set", "site=z", "--set", "sets=[cities.csv]", "--set", "max_pairs=3"]
    done = posttrace("run", job_file, "--store", tmp_path / "heads", *arguments, cwd=job_file.parent)
    assert done.returncode == 0, done.stderr
    data = open_group(str(tmp_path / "heads"), "knowledge/cities").load()
    assert data.logit_diff.dims == ("source", "target", "pair", "layer", "head", "token")
    assert data.activation.dims == ("source", "pair", "layer", "head", "token", "hidden")
    assert dict(data.sizes) | {"layer": 3, "head": 4, "hidden": 8} == dict(data.sizes)
    base, instruct = (
        AutoModelForCausalLM.from_pretrained(family / s, dtype=torch.float32).eval()
        for s in ("base", "instruct")
    )
    tokenizer = AutoTokenizer.from_pretrained(family / "base")
    true, false = (tokenizer.convert_tokens_to_ids(t) for t in (" TRUE", " FALSE"))
    clean, corrupt = (
        tokenizer(str(data[name].values[1]), return_tensors="pt").input_ids
        for name in ("clean_prompt", "corrupt_prompt")
    )
    values = data.logit_diff.sel(source="base", target="instruct").isel(pair=1, token=-1).values
    for layer in range(3):
        kept = []

        def keep(_module, args, kept=kept):
            kept.append(args[0][0, -1])

        handle = base.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(keep)
        with torch.no_grad():
            base(clean)
        handle.remove()
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)

            def put(_module, args, part=part, kept=kept):
                hidden = args[0].clone()
                hidden[0, -1, part] = kept[0][part]
                return (hidden,)

            handle = instruct.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(put)
            with torch.no_grad():
                logits = instruct(corrupt).logits[0, -1]
            handle.remove()
            assert values[layer, head] == pytest.approx(float(logits[true] - logits[false]), abs=2e-5)
    assert np.ptp(values) > 1e-2
    assert posttrace("verify", tmp_path / "heads").returncode == 0
