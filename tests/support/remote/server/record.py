"""What the server saw and did, one JSON object per line: the evidence that tests read."""

import json
import sys
import threading
import time


class Record:
    def __init__(self, path: str, absent: list[str]):
        self._stream = open(path, "a", buffering=1)
        self._lock = threading.Lock()
        self._absent = set(absent)

    def write(self, event: str, **fields) -> None:
        with self._lock:
            self._stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def foreign(self) -> list[str]:
        """Modules that were imported although they must not exist here."""
        return sorted(name for name in sys.modules if name.split(".")[0] in self._absent)
