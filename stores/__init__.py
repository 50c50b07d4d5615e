"""Stream results into chunked Zarr arrays, know which units are done, and read everything back with labels.

>>> from posttrace.stores import Array, Coord, Group, Store, Unit, open_group

schema       what a store holds: Array, Coord, Group, Unit
plan         which unit writes which chunks, checked as a whole
zarr_layout  the schema as zarr metadata and coordinate files
location     a folder or an S3 prefix, as keys and bytes
create       create a store, complete its creation, or find it again
store        Store: write, read, resume, finalise
markers      which units are finished
lease        one writer at a time
reading      open_group, open_store, group_paths, summary
lazy         arrays that are read, and checked, on use
checking     checks made before data are trusted
verify       re-read everything and report what is wrong
repair       repair it
record       the record of a store, and its spares
writing      which units are being written
requests     jobs submitted to a server for unfinished units
values       convert values to their stored form, or refuse them
bounded      codecs that decompress no more than a chunk can hold
retrying     retry requests (steady: the same for zarr)
credentials  refuse to store a secret
hashing      canonical JSON and hashes
errors       StoreError and its subclasses
"""

from posttrace.stores.checking import Problem
from posttrace.stores.errors import Damaged, FingerprintMismatch, StoreBusy, StoreError
from posttrace.stores.lease import Lease
from posttrace.stores.reading import group_paths, open_group, open_store, summary
from posttrace.stores.repair import Repaired, repair
from posttrace.stores.schema import Array, Coord, Group, Unit
from posttrace.stores.store import Store, forget
from posttrace.stores.verify import verify

__all__ = [
    "Array",
    "Coord",
    "Damaged",
    "FingerprintMismatch",
    "Group",
    "Lease",
    "Problem",
    "Repaired",
    "Store",
    "StoreBusy",
    "StoreError",
    "Unit",
    "forget",
    "group_paths",
    "open_group",
    "open_store",
    "repair",
    "summary",
    "verify",
]
