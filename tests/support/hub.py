"""A model hub on this machine: repositories are folders, and what is asked for is noted."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path, gated=()):
    """Serve `root/OWNER/NAME` as the hub id OWNER/NAME, of one commit; gives the address, and a list of (method, path).

    gated: hub ids that are refused without a licence.
    """
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_body):
            path = unquote(urlsplit(self.path).path).strip("/")
            asked.append((self.command, path))
            status, headers, body = self.found(path.split("/"))
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def found(self, parts):
            api = parts[:2] == ["api", "models"]
            parts = parts[2:] if api else parts
            name, folder = "/".join(parts[:2]), root / "/".join(parts[:2])
            if not folder.is_dir():
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            if name in gated and not (api and parts[2:3] != ["tree"]):
                return 403, {"X-Error-Code": "GatedRepo"}, b""
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if api and parts[2:3] == ["tree"]:
                entries = [
                    {
                        "type": "file",
                        "path": str(p.relative_to(folder)),
                        "size": p.stat().st_size,
                        "oid": digest(p),
                    }
                    for p in files
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
            if api:
                siblings = [
                    {"rfilename": str(p.relative_to(folder)), "size": p.stat().st_size} for p in files
                ]
                about = {
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
            file = folder / "/".join(parts[4:])
            headers = {"X-Repo-Commit": COMMIT}
            if parts[2:3] != ["resolve"] or not file.is_file():
                return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
            return 200, {**headers, "ETag": f'"{digest(file)}"', "Accept-Ranges": "bytes"}, file.read_bytes()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
