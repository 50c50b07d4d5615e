"""A proxy before an S3 server that refuses some requests and cuts some bodies off, by fixed seeds."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def flaky(endpoint: str, faults: tuple[str, ...], share: float, seed: int = 0):
    """Yield the URL of the proxy and a count of what it did to requests.

    Arguments:
        endpoint: the server that answers.
        faults: of "429", "503" and "cut" (the head says more bytes than come), chosen evenly.
        share: of all requests.
    """
    upstream, chance, lock, told = urlsplit(endpoint), random.Random(seed), threading.Lock(), Counter()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                fault = chance.choice(faults) if chance.random() < share else ""
            if fault.isdigit():
                told[fault] += 1
                self.reply(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            link = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=30)
            link.request(self.command, self.path, body, dict(self.headers))
            got = link.getresponse()
            data = got.read()
            keep = {
                k: v
                for k, v in got.getheaders()
                if k.lower() not in ("connection", "transfer-encoding", "date")
            }
            if fault == "cut" and data and self.command == "GET":
                told[fault] += 1
                self.reply(got.status, keep, data, sent=len(data) // 2)
                self.close_connection = True
                return
            told["passed"] += 1
            self.reply(got.status, keep, data)

        def reply(self, status, headers, data, sent=None):
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in ("content-length", "server"):
                    self.send_header(key, value)
            length = headers.get("Content-Length", len(data)) if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:sent])

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        server.server_close()
