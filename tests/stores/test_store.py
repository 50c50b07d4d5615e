"""Create, write, read, resume, finalise."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import xarray as xr

from posttrace import stores
from posttrace.stores import (
    Array,
    Coord,
    FingerprintMismatch,
    Group,
    Store,
    StoreError,
    Unit,
    open_group,
    verify,
)
from posttrace.stores.location import Location
from tests.support.stores import example


def test_what_is_written_is_read_back_bit_for_bit(url):
    store = example.make(url)
    example.run(store)
    again = Store.open(url)
    assert again.done() == {unit.id for unit in example.units()}
    for unit in example.units():
        for name, expected in example.values(store, unit).items():
            got = again.read(unit, name)
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes()
    part = again.read(example.PATH, "activation", {"pair": (4, 7), "layer": (1, 2)})
    assert part.shape == (2, 3, 1, example.TOKENS, example.HIDDEN)
    assert verify(url, unfinished=True) == []


def test_plain_xarray_opens_the_store_without_warnings_before_and_after_finalise(tmp_path):
    url = str(tmp_path / "store")
    store = example.make(url)
    for finish in (lambda: example.run(store, 5), lambda: (example.run(store), store.finalise())):
        finish()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = xr.open_zarr(url, group="knowledge/cities", chunks=None)
            tree = xr.open_datatree(url, engine="zarr")
            roots = xr.open_zarr(url, chunks=None).attrs
        for data in (plain, tree["knowledge/cities"].to_dataset()):
            assert data.logit_diff.dims == ("source", "target", "pair", "layer", "token")
            assert set(data.coords) == {c.name for c in example.group().coords}
            assert data.logit_diff.attrs["units"] == "logit difference, nats"
            picked = data.logit_diff.sel(source="base", target="instruct", layer=1).isel(pair=0)
            assert np.isfinite(picked.values[:-1]).all()
            assert data.token_label.values.tolist() == ["The", "city", "of", "[s1]"]
            assert data.token_role_of_pair.values[2].tolist() == ["last", "", "", "other"]
            assert data.clean_prompt.values[3] == "Łódź is in Poland, 3"
            assert data.attrs["answer_tokens"] == [" TRUE", " FALSE"]
        assert roots["job"] == example.JOB
        assert roots["fingerprint"] == "f00d"


def test_open_group_decodes_bfloat16_lazily_and_keeps_labels(url):
    store = example.make(url)
    example.run(store, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_group(url, example.PATH)
    unit = store.units[f"{example.PATH}/clean/base/0000"]
    bits = example.values(store, unit)["activation"]
    expected = (bits.astype("uint32") << 16).view("float32")
    assert data.activation.dtype == np.float32
    one = data.activation.sel(source="base", layer=2).isel(pair=slice(0, 4), hidden=[4, 0])
    np.testing.assert_array_equal(one.values, expected[0, :, 2][..., [4, 0]])
    assert np.isnan(data.activation.sel(source="instruct").isel(pair=6)).all(), "not computed is NaN"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data.activation)), data.activation)
    assert data.activation.attrs["units"] == "residual stream, model units"
    assert stores.group_paths(url) == [example.PATH]
    with pytest.raises(StoreError, match="no group 'x'; it has knowledge/cities"):
        open_group(url, "x")


@pytest.mark.parametrize(("dtype", "missing"), [("int64", -1), ("bool", False), ("float16", None)])
def test_what_is_not_computed_has_a_documented_value(tmp_path, dtype, missing):
    spec = Group("g", {"pair": 3}, (Array("x", ("pair",), dtype, "count", "d", {"pair": 1}),))
    Store.create(tmp_path, [spec], [Unit("g/0", "g", {"pair": (0, 1)}, ("x",))], {}, "1", {})
    got = open_group(tmp_path, "g").x
    assert got.dtype == dtype
    assert np.isnan(got).all() if missing is None else (got == missing).all()


def test_texts_are_kept_verified_and_refused_when_they_are_none(url):
    array = Array("completion", ("prompt", "layer"), "string", "text", "what came out", {"prompt": 2})
    spec = Group("g", {"prompt": 3, "layer": 2}, (array,))
    units = [Unit(f"g/{i}", "g", {"prompt": (i, min(i + 2, 3))}, ("completion",)) for i in (0, 2)]
    store = Store.create(url, [spec], units, {}, "1", {})
    given = np.array([["Sorry, I can't.\n", ""], ["Łódź \x00", "line\u2028" * 500]])
    store.write(units[0], {"completion": given})
    assert store.read("g", "completion", {"prompt": (0, 2)}).tolist() == given.tolist()
    data = open_group(url, "g").completion
    assert data.values.tolist() == [*given.tolist(), ["", ""]], "not computed is empty"
    store.write(units[0], {"completion": given})
    with pytest.raises(StoreError, match=r"other content in completion"):
        store.write(units[0], {"completion": given[::-1]})
    with pytest.raises(StoreError, match=r"'g/2', array 'completion': 7 is not text; give str"):
        store.write(units[1], {"completion": np.array([["a", 7]], dtype=object)})
    with pytest.raises(StoreError, match=r"not valid Unicode"):
        store.write(units[1], {"completion": np.array([["a", "\ud800"]], dtype=object)})
    store.write(units[1], {"completion": np.array([["", ""]], dtype=object)})
    store.finalise()
    assert verify(url) == []
    key = "g/completion/c/1/0"
    assert store.location.size(key), "texts that are all empty are written too"
    store.location.delete([key])
    assert [p.kind for p in verify(url)] == ["missing"]


def test_layout_is_one_chunk_per_unit_with_checksums(tmp_path):
    store = example.make(str(tmp_path))
    unit = store.units[f"{example.PATH}/clean/base/0000"]
    store.write(unit, example.values(store, unit))
    chunks = [p for p in (tmp_path / example.PATH).rglob("c/0/*") if p.is_file() or p.is_dir()]
    assert chunks
    meta = json.loads((tmp_path / example.PATH / "logit_diff/zarr.json").read_text())
    assert [c["name"] for c in meta["codecs"]] == ["bytes", "zstd", "crc32c"]
    meta = json.loads((tmp_path / example.PATH / "activation/zarr.json").read_text())
    (sharding,) = meta["codecs"]
    assert sharding["configuration"]["chunk_shape"] == [1, example.BLOCK, 1, example.TOKENS, example.HIDDEN]
    assert [c["name"] for c in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert meta["chunk_grid"]["configuration"]["chunk_shape"][2] == example.LAYERS
    assert (tmp_path / example.PATH / "activation/c/0/0/0/0/0").stat().st_size > 0


def test_resume_goes_on_where_it_stopped(url):
    first = example.make(url)
    assert example.run(first, 4) == 4
    second = example.make(url, provenance={"commit": "def"})
    assert len(second.done()) == 4
    assert second.record["provenance"]["commit"] == "abc", "the provenance of the creation is kept"
    assert example.run(second) == len(example.units()) - 4
    assert example.run(example.make(url)) == 0
    assert set(second.records().values().__iter__().__next__()) == {"seconds"}


def test_another_job_is_refused_with_the_keys_that_differ(url):
    example.make(url)
    job = {**example.JOB, "patch": {"site": "resid_mid"}, "extra": [1]}
    with pytest.raises(FingerprintMismatch) as caught:
        example.make(url, job=job, fingerprint="beef")
    text = str(caught.value)
    assert "patch.site: 'resid_post' in the store, 'resid_mid' now" in text
    assert "patch.layers: 'all' in the store, '(absent)' now" in text
    assert "extra: '(absent)' in the store, [1] now" in text
    assert "seed" not in text
    assert "use another --store, or restore the job" in text


def test_lists_of_named_things_are_told_apart_by_their_names(url):
    def make(name, sets):
        job = {**example.JOB, "sets": [{"name": n, "csv": "a/long/path/of/statements"} for n in sets]}
        return example.make(url, job=job, fingerprint=name)

    make("one", ["cities"])
    with pytest.raises(
        FingerprintMismatch, match=r"sets: \['cities'\] in the store, \['cities', 'facts'\] now"
    ):
        make("two", ["cities", "facts"])


def test_same_fingerprint_with_another_plan_is_refused(tmp_path):
    example.make(tmp_path)
    with pytest.raises(StoreError, match=r"the plan differs in 1 places.*\nunits\.knowledge/cities/clean"):
        example.make(tmp_path, units=example.units()[1:])
    coords = (Coord("source", ("source",), ("base", "sft")), *example.group().coords[1:])
    changed = replace(example.group(), coords=coords)
    with pytest.raises(StoreError, match="the plan differs"):
        example.make(tmp_path, groups=[changed])


def test_finished_unit_may_be_written_again_only_with_the_same_content(url):
    store = example.make(url)
    unit = example.units()[0]
    data = example.values(store, unit)
    store.write(unit, data)
    Store.open(url).write(unit, data)
    other = {**data, "logit_diff_clean": data["logit_diff_clean"] + 1}
    with pytest.raises(StoreError, match="is done already, with other content in logit_diff_clean"):
        store.write(unit, other)
    assert store.read(unit, "logit_diff_clean").tobytes() == data["logit_diff_clean"].tobytes()
    assert verify(url) == []


def test_two_processes_that_write_one_unit_differently_leave_it_undone(tmp_path, monkeypatch):
    store, rival = example.make(tmp_path), example.make(tmp_path)
    unit = example.units()[0]
    data = example.values(store, unit)
    flush = store.location.flush

    def rival_comes_between_data_and_marker(keys):
        monkeypatch.setattr(store.location, "flush", flush)
        rival.write(unit, {**data, "logit_diff_clean": data["logit_diff_clean"] + 1})

    monkeypatch.setattr(store.location, "flush", rival_comes_between_data_and_marker)
    with pytest.raises(StoreError, match=rf"unit '{unit.id}' was written by two processes at once"):
        store.write(unit, data)
    assert unit.id not in Store.open(tmp_path).done()
    store.write(unit, data)
    assert verify(tmp_path) == []


def test_write_refuses_what_does_not_fit(tmp_path):
    store = example.make(tmp_path)
    unit = store.units[f"{example.PATH}/clean/base/0000"]
    data = example.values(store, unit)
    clean = data["logit_diff_clean"]

    def refused(match, change, unit=unit):
        with pytest.raises(StoreError, match=match):
            store.write(unit, change)

    def other(name, value):
        return {**data, name: value}

    refused(r"'logit_diff_clean': shape \(1, 2\), must be \(1, 4\)", other("logit_diff_clean", clean[:, :2]))
    refused("dtype float64, must be float32.*astype", other("logit_diff_clean", clean.astype("f8")))
    refused("dtype int64, must be float32", other("logit_diff_clean", clean.astype("i8")))
    refused("dtype float32, must be bfloat16.*bits", other("activation", data["activation"].astype("f4")))
    refused("dtype uint8, must be bfloat16", other("activation", data["activation"].astype("u1")))
    refused("was given logit_diff_clean", {"logit_diff_clean": clean})
    refused("not in the plan", data, Unit(f"{example.PATH}/9999", unit.group, unit.region, unit.arrays))
    refused("not in the plan", data, Unit(unit.id, unit.group, {"pair": (0, 4)}, unit.arrays))
    assert store.done() == frozenset()
    store.write(unit, {**data, "logit_diff_clean": np.asfortranarray(clean.astype(">f4"))})
    assert store.read(unit, "logit_diff_clean").tobytes() == clean.tobytes()


def test_lossless_widening_is_accepted(tmp_path):
    store = example.make(tmp_path)
    unit = store.units[f"{example.PATH}/clean/base/0000"]
    data = example.values(store, unit)
    half = data["logit_diff_clean"].astype("float16")
    store.write(unit, {**data, "logit_diff_clean": half})
    np.testing.assert_array_equal(store.read(unit, "logit_diff_clean"), half.astype("float32"))


def test_finalise_compacts_marks_complete_and_can_be_repeated(url):
    store = example.make(url)
    example.run(store, 3)
    with pytest.raises(StoreError, match=r"9 of 12 units are not done \(first: knowledge/cities/"):
        store.finalise()
    assert stores.summary(url)["complete"] is False
    example.run(store)
    before = example.contents(store)
    for _ in range(2):
        store.finalise()
        fresh = Store.open(url)
        assert len(fresh.done()) == 12
        assert fresh.pending() == []
        assert [key for key, *_ in fresh.location.list(".posttrace/units/")] == []
    assert example.contents(Store.open(url)) == before
    assert verify(url, unfinished=True) == []
    assert stores.summary(url)["complete"] is True
    assert example.run(example.make(url)) == 0


def test_summary_is_json_and_counts_units_per_kind_and_group(url):
    store = example.make(url)
    example.run(store, 4)
    told = json.loads(json.dumps(stores.summary(url)))
    assert told["job"] == example.JOB
    assert told["units"]["total"] == 12
    assert told["units"]["done"] == 4
    assert told["units"]["kinds"] == {"clean": {"total": 4, "done": 2}, "grid": {"total": 8, "done": 2}}
    cities = told["groups"][example.PATH]
    assert cities["sizes"]["pair"] == example.PAIRS
    assert cities["units"] == {"total": 12, "done": 4}
    assert cities["arrays"]["activation"]["dtype"] == "bfloat16"
    assert cities["arrays"]["logit_diff"]["shape"] == [2, 2, 7, 3, 4]
    assert told["complete"] is False


def test_store_pickles_as_its_url(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = example.make(url if "://" in url else "store")
    unit = example.units()[0]
    handed = pickle.dumps(store)
    monkeypatch.chdir("/")
    pickle.loads(handed).write(unit, example.values(store, unit))
    monkeypatch.chdir(tmp_path)
    assert store.done() == {unit.id}


def test_file_url_and_odd_folder_names(tmp_path):
    folder = tmp_path / "a b é 100%"
    store = example.make(folder)
    example.run(store, 1)
    assert len(Store.open(folder.as_uri()).done()) == 1


def test_foreign_folder_is_refused_and_left_as_it_was(url):
    place = Location(url, create=True)
    place.put("thesis.txt", b"mine")
    with pytest.raises(StoreError, match=r"holds thesis\.txt, which posttrace did not write"):
        example.make(url)
    assert [key for key, *_ in place.list("")] == ["thesis.txt"]
    assert place.get("thesis.txt") == b"mine"


@pytest.mark.parametrize("field", ["job", "provenance", "record"])
def test_secrets_are_refused_and_not_repeated(tmp_path, monkeypatch, field):
    monkeypatch.setenv("NDIF_API_KEY", "ndif-0123456789")
    for bad in (
        {"remote": {"note": "key ndif-0123456789"}},
        {"remote": [{"api_key": "unknown-to-the-environment"}]},
        {"hub": "hf_abcdefghijklmnopqrstuvwxyz"},
        {"mirror": "https://me:pass@host/x"},
        {"AWS_SECRET_ACCESS_KEY": "abc"},
    ):
        if field == "record":
            store, unit = example.make(tmp_path), example.units()[0]
            attempt = partial(store.write, unit, example.values(store, unit), bad)
        else:
            attempt = partial(example.make, tmp_path, **{field: bad})
        with pytest.raises(StoreError, match=r"credential|NDIF_API_KEY") as caught:
            attempt()
        for secret in ("ndif-0123456789", "unknown-to-the", "hf_abc", "me:pass"):
            assert secret not in str(caught.value)
    example.make(tmp_path, job={**example.JOB, "answer_tokens": [" TRUE"], "tokens": "all", "token": "last"})


def test_messages_for_places_that_cannot_hold_a_store(tmp_path, s3):
    (tmp_path / "file").write_text("x")
    for url, match in {
        tmp_path / "file": "is a file, not a folder",
        tmp_path / "file" / "below": "cannot open the folder.*there is a file where a folder is needed",
        "gs://bucket/x": "gs:// is not supported; give a folder, file:// or s3://bucket/prefix",
        "s3://bucket": "must be s3://bucket/prefix; add the name of the prefix",
        "s3://no-such-bucket-here/x": "the bucket does not exist; create the bucket",
        "s3://AKIA:hunter2@bucket/x": r"s3://\.\.\.@bucket/x: the URL holds credentials",
    }.items():
        with pytest.raises(StoreError, match=match) as caught:
            example.make(url)
        assert "hunter2" not in str(caught.value)
    for missing in (str(tmp_path / "nowhere"), s3):
        with pytest.raises(StoreError, match="there is no store here"):
            Store.open(missing)
    assert not (tmp_path / "nowhere").exists()


def test_unreachable_endpoint_is_named_within_a_minute(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot be reached; check the network and AWS_ENDPOINT_URL"):
        Store.open(s3)


def test_missing_credentials_are_named(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(StoreError, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
            Store.open(s3)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)


def test_import_is_light():
    heavy = "zarr", "xarray", "dask", "pandas", "torch", "obstore"
    code = f"import sys, posttrace.stores; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_shard_larger_than_one_part_of_an_upload(url):
    """Object stores take large objects in parts; so must reading one layer of it work by ranges."""
    array = Array(
        "x", ("pair", "layer", "hidden"), "float32", "model units", "stream", {"pair": 1}, "activation"
    )
    group = Group("g", {"pair": 1, "layer": 4, "hidden": 1_000_000}, (array,))
    unit = Unit("g/0", "g", {"pair": (0, 1)}, ("x",))
    store = Store.create(url, [group], [unit], {}, "1", {})
    values = np.random.default_rng(0).normal(size=(1, 4, 1_000_000)).astype("float32")
    store.write(unit, {"x": values})
    np.testing.assert_array_equal(store.read(unit, "x", {"layer": (2, 3)}), values[:, 2:3])
    np.testing.assert_array_equal(open_group(url, "g").x.isel(layer=3, hidden=slice(7)), values[:, 3, :7])
    assert verify(url) == []


@pytest.mark.parametrize(
    ("dtype", "value"), [("string", np.array("", dtype=object)), ("float32", np.array(1.5, "f4"))]
)
def test_an_array_without_dimensions_is_read_as_it_was_written(tmp_path, dtype, value):
    group = Group("a/b", {}, (Array("x", (), dtype, "nats", "a number"),))
    unit = Unit("a/b/0", "a/b", {}, ("x",))
    store = Store.create(tmp_path / "s", [group], [unit], {}, "1", {})
    store.write(unit, {"x": value})
    assert store.read("a/b", "x") == value and not list(stores.verify(store.url))
    store.finalise()
    assert stores.open_group(store.url, "a/b").x.values == value


def test_writing_after_forgetting_reads_the_list_of_the_others_once(url, monkeypatch):
    store = example.make(url)
    example.run(store)
    store.finalise()
    again, read = Store.open(url), []
    again.forget(list(again.units)[:4])
    listed = type(again.progress).listed
    monkeypatch.setattr(
        type(again.progress), "listed", lambda self, data: read.append(data) or listed(self, data)
    )
    assert example.run(again) == 4
    assert len(read) <= 1, "once for all writes"


def test_a_list_that_another_process_changed_is_read_again(url):
    store = example.make(url)
    example.run(store)
    store.finalise()
    first, second = list(store.units)[:2]
    assert first in store.done() and store.progress.find(second)
    Store.open(url).forget([first, second])
    assert store.progress.find(second) is None and first not in store.done()
    example.run(Store.open(url))
    Store.open(url).finalise()
    assert store.progress.find(second) and first in store.done()
