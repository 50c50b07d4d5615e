"""Stream results into chunked Zarr arrays, know which units are done, and read everything back with labels.

>>> from posttrace.stores import Array, Coord, Group, Store, Unit, open_group

schema       what a store holds: Array, Coord, Group, Unit
plan         which unit writes which chunks, checked as a whole
hierarchy    the schema as zarr metadata and coordinate files
location     a folder or an S3 prefix, as keys and bytes
create       create, complete or recognise a store
store        Store: write, read, resume, finalise
progress     markers of finished units
lease        one writer at a time
reading      open_group, group_paths, summary
lazy         arrays that are read when used, and checked then
checking     what is told before data are trusted
verify       re-read everything and name what is wrong
repair       put it right
record       what a store says about itself, and the spares
writing      notes of units that are being written
values       values as they are stored, or refused
bounded      codecs that unpack no more than a chunk can hold
retrying     requests that are tried again (steady: for zarr)
credentials  refuse to store a secret
canonical    JSON and hashes
errors       StoreError and its kinds
"""

from posttrace.stores.checking import Problem
from posttrace.stores.errors import Damaged, FingerprintMismatch, StoreBusy, StoreError
from posttrace.stores.lease import Lease
from posttrace.stores.reading import group_paths, open_group, summary
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
    "repair",
    "summary",
    "verify",
]
