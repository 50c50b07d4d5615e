"""Verify the architectures of the table and write down what they offer: `python -m tests.tracers.architectures.record`.

With names of rows, only those are verified again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for more

from posttrace.tracers.models.loading import quiet_libraries, wrap
from posttrace.tracers.models.verified import FILE, verified
from tests.support.models import word_tokenizer
from tests.tracers.architectures.table import ROWS, tiny_module
from tests.tracers.architectures.verify import verify


def main(names: list[str]) -> None:
    quiet_libraries()
    known = {name: row for name, row in verified().items() if name in ROWS}
    for name in names or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            known[name] = verify(wrap(tiny_module(name), word_tokenizer(), name=name), folder)
        print(name, known[name]["level"], *known[name]["sites"], flush=True)
        rows = [f"{json.dumps(one)}: {json.dumps(known[one])}" for one in sorted(known)]
        FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
