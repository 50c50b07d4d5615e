"""What a chunk claims to unpack to is not believed: memory is given for what the array declares."""

import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
import zstandard

from posttrace.stores import Array, Coord, Damaged, Group, Store, StoreError, Unit, open_group, verify
from posttrace.stores.hashing import hash_bytes, seal
from posttrace.stores.markers import CLAIM, RECORD


def store(url):
    arrays = (
        Array("text", ("item",), "string", "text", "d", {"item": 2}),
        Array("x", ("item",), "float32", "nats", "d", {"item": 2}),
    )
    coord = Coord("name", ("item",), ["a", "b"])
    made = Store.create(
        url, [Group("g", {"item": 2}, arrays, (coord,))], [Unit("g/0", "g", {}, ("text", "x"))], {}, "1", {}
    )
    made.write(made.units["g/0"], {"text": np.array(["a", "b"]), "x": np.ones(2, "f4")})
    return made


def packed(data: bytes) -> bytes:
    """As zarr keeps it: zstd, then a checksum."""
    frame = zstandard.compress(data)
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


BOMBS = {
    "a count of texts": ("text", packed((2**31 - 1).to_bytes(4, "little") + b"\1\0\0\0a" * 2)),
    "zeros for texts": ("text", packed(bytes(2**28 + 1))),
    "zeros for numbers": ("x", packed(bytes(2**26))),
}

LIMITED = (
    "import re, resource, sys; from posttrace.stores import StoreError, open_group, verify\n"
    "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
    "print([p.kind for p in verify(sys.argv[1])])\n"
    "try: open_group(sys.argv[1], 'g').load()\n"
    "except StoreError as fault: print(fault)\n"
    # Not ru_maxrss, which begins at what the parent had.
    "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_chunk_that_claims_too_much_takes_no_memory(tmp_path, bomb):
    made = store(tmp_path)
    name, data = BOMBS[bomb]
    made.location.put(f"g/{name}/c/0", data)
    # of the size that was noted: only its content is amiss
    marker = made.progress.find("g/0")
    marker["sizes"][name] = [len(data)]
    made.location.put(".posttrace/units/g/0.json", seal(marker))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kinds, message, megabytes = done.stdout.splitlines()
    assert kinds == "['damaged']"
    assert f"g/{name}: a chunk does not decode" in message and "expected" in message
    assert int(megabytes) < 500
    with pytest.raises(Damaged, match="expected"):
        Store.open(tmp_path).read("g", name)


def test_a_coordinate_that_claims_too_much_takes_no_memory(tmp_path):
    """Its hash agrees with the record: the whole store is hostile."""
    made = store(tmp_path)
    bad = BOMBS["a count of texts"][1]
    made.location.put("g/name/c/0", bad)
    record = {**made.record, "files": {**made.record["files"], "g/name/c/0": hash_bytes(bad)}}
    for key in (RECORD, CLAIM):
        made.location.put(key, seal(record))
    with pytest.raises(StoreError, match="2147483647 texts, 2 are expected"):
        open_group(tmp_path, "g").name.load()


def test_chunks_too_large_to_unpack_are_refused_where_they_are_declared():
    with pytest.raises(StoreError, match=r"a chunk of 'x' holds 4294967296 bytes, at most 1073741824"):
        Group("g", {"item": 2**30}, (Array("x", ("item",), "float32", "nats", "d"),))
    with pytest.raises(StoreError, match=r"a chunk of 'x' holds 1073741824 texts, at most"):
        Group("g", {"item": 2**30}, (Array("x", ("item",), "string", "text", "d"),))
    Group("g", {"item": 2**30}, (Array("x", ("item",), "float32", "nats", "d", {"item": 2**20}),))


def test_a_unit_of_countless_chunks_is_refused(tmp_path):
    """Their keys alone would fill the memory."""
    group = Group("g", {"item": 2**40}, (Array("x", ("item",), "bool", "1", "d", {"item": 2**10}),))
    with pytest.raises(StoreError, match=r"consists of 1073741824 chunks, at most 1048576 are possible"):
        Store.create(tmp_path, [group], [Unit("g/0", "g", {}, ("x",))], {}, "1", {})


@pytest.mark.parametrize(
    "change",
    [
        {"groups": None},
        {"groups": [{}]},
        {"units": [{"id": "../../x"}]},
        {"files": {"../../x": "0"}},
        {"files": {".posttrace/leases/x": "0"}},
        {"files": []},
    ],
)
def test_a_record_that_posttrace_did_not_write_is_one_message(tmp_path, change):
    made = store(tmp_path)
    for key in (RECORD, CLAIM):
        made.location.put(key, seal({**made.record, **change}))
    for look in (Store.open, verify, lambda url: open_group(url, "g")):
        with pytest.raises(StoreError):
            look(tmp_path)
