"""The HTTP side: what a client may ask, what a test may order (/_fault, /_clear, /_release, /_restart, /_state)."""

import hashlib
import json
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from .faults import Faults
from .jobs import Jobs
from .record import Record
from .wire import CLOSING, accept_header, break_off, form, frame


class Front:
    """Listens on the loopback interface; can go away for a while, as a server that is restarted does."""

    def __init__(self, jobs: Jobs, faults: Faults, record: Record, *, keys: dict[str, list[str]], port: int):
        self.jobs, self.faults, self.record, self.keys = jobs, faults, record, keys
        self._connections: set[socket.socket] = set()
        self._gone = threading.Event()
        self._listen(port)
        self.port = self._server.server_address[1]
        jobs.address = f"http://127.0.0.1:{self.port}"

    def join(self) -> None:
        self._gone.wait()

    def restart(self, seconds: float, forget: bool) -> None:
        """Refuse connections for `seconds` and break the open ones; what was accepted is kept or forgotten."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            break_off(connection)
        if forget:
            self.jobs.forget()
        self.record.write("down")
        time.sleep(seconds)
        self._listen(self.port)
        self.record.write("up")

    def _listen(self, port: int) -> None:
        handler = type("Handler", (Handler,), {"front": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def opened(self, connection: socket.socket) -> None:
        self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        self._connections.discard(connection)


class Refused(Exception):
    def __init__(self, code: int, detail: str):
        super().__init__(detail)
        self.code = code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.front.opened(self.connection)

    def finish(self):
        self.front.closed(self.connection)
        try:
            super().finish()
        except OSError:
            pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:  # the client went away, or a fault broke the connection
            self.close_connection = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        if path == "/request":
            self._request(body)
        elif path.startswith("/_"):
            self._order(path[2:], json.loads(body or b"{}"))
        else:
            self._json(404, {"detail": "Not Found"})

    def do_GET(self):
        path = urlsplit(self.path).path
        first, _, rest = path[1:].partition("/")
        if first == "response" and rest:
            self._response(rest)
        elif first == "results" and rest:
            self._result(rest)
        elif first == "subscribe":
            self._subscribe()
        elif first in ("ping", "status", "env", "whoami", "_state"):
            self._json(200, getattr(self, "_about_" + first.strip("_"))())
        else:
            self._json(404, {"detail": "Not Found"})

    def _request(self, body: bytes) -> None:
        fault, options = self.front.faults.take("post_") or (None, {})
        note = {
            "event": "post",
            "bytes": len(body),
            "has_key": bool(self.headers.get("ndif-api-key")),
            "fault": fault,
        }
        try:
            envelope, blob = self._read_request(body)
            note |= {
                "model_key": envelope["model_key"],
                "env": envelope.get("env", {}),
                "blob_bytes": len(blob),
                "blob_sha256": hashlib.sha256(blob).hexdigest(),
            }
            if fault == "post_status":
                raise Refused(
                    options["code"], options.get("detail", f"refused with {options['code']} by a test")
                )
        except Refused as refusal:
            self.front.record.write(**note, code=refusal.code, job=None)
            self._json(refusal.code, {"detail": str(refusal)}, retry_after=options.get("retry_after"))
            return
        if fault in ("post_error", "post_garbage") or (fault == "post_drop" and not options.get("accepted")):
            self.front.record.write(**note, code=None, job=None)
            if fault == "post_drop":
                return self._break_off()
            if fault == "post_garbage":
                return self._send(200, b"<html>busy</html>", {"Content-Type": "text/html"})
            described = options.get("description", "Error starting model. Please try again later.")
            return self._json(200, {"id": uuid.uuid4().hex, "status": "ERROR", "description": described})
        job = self.front.jobs.accept(envelope, blob, trusted="trusted" in self._tags())
        self.front.record.write(**note, code=200, job=job.id)
        if fault == "post_drop":
            return self._break_off()
        if fault == "post_slow":
            time.sleep(options["seconds"])
        waiting = "Your job has been received and is waiting to be queued."
        self._json(
            200, {"id": job.id, "status": "RECEIVED", "description": waiting, "data": None, "meta": None}
        )

    def _read_request(self, body: bytes) -> tuple[dict, bytes]:
        key = self.headers.get("ndif-api-key")
        if self.front.keys:
            if not key:
                raise Refused(
                    401, "Missing or invalid API key. Please visit https://login.ndif.us/ to create one."
                )
            try:
                uuid.UUID(key)
            except ValueError:
                raise Refused(400, f"Invalid API key format: '{key}'.") from None
            if key not in self.front.keys:
                raise Refused(403, "Invalid API key.")
        if not self.headers.get("nnsight-version") or not self.headers.get("python-version"):
            raise Refused(400, "Client nnsight version or python version was not provided.")
        try:
            fields = form(self.headers.get("content-type", ""), body)
            return json.loads(fields["data"]), fields["blob"]
        except (ValueError, KeyError) as error:
            raise Refused(422, f"malformed request: {error}") from error

    def _response(self, job_id: str) -> None:
        fault, options = self.front.faults.take("poll_") or (None, {})
        job = self.front.jobs.find(job_id)
        said = job.status if job else None
        code = {"poll_status": options.get("code"), "poll_drop": None}.get(fault, 200 if said else 404)
        self.front.record.write(
            "poll", job=job_id, code=code, fault=fault, status=said["status"] if said else None
        )
        if fault == "poll_drop":
            return self._break_off()
        if fault == "poll_slow":
            time.sleep(options["seconds"])
        if fault == "poll_status":
            said = {"detail": "refused by a test"}
            return self._json(code, said, retry_after=options.get("retry_after"))
        if fault == "poll_garbage":
            return self._send(200, b'{"id": "', {"Content-Type": "application/json"})
        if said is None:
            return self._json(404, {"detail": f"No response for request {job_id}."})
        if fault == "poll_unknown":
            said = {**said, "status": "PAUSED", "data": None}
        if said["status"] == "COMPLETED":
            said = {**said, "data": None if fault == "poll_null" else self.front.jobs.url(job)}
        self._json(200, said)

    def _result(self, job_id: str) -> None:
        fault, options = self.front.faults.take("download_") or (None, {})
        job = self.front.jobs.find(job_id)
        data = job.result if job else None
        expired = (job.faults if job else {}).get("expired")
        if fault == "download_status" or expired:
            code = (expired or options)["code"]
        else:
            code = 200 if data is not None else 404
        self.front.record.write(
            "download", job=job_id, code=code, fault=fault, bytes=len(data or b"") if code == 200 else 0
        )
        if code != 200:
            return self._json(code, {"detail": "no such result"})
        if fault == "download_slow":
            time.sleep(options["seconds"])
        half = data[: len(data) // 2]
        kind = {"Content-Type": "application/octet-stream"}
        if fault in ("download_truncated", "download_reset"):
            self._send(200, half, {**kind, "Content-Length": str(len(data))})
            self._break_off(reset=fault == "download_reset")
        else:
            self._send(200, half if fault == "download_short" else data, kind)

    def _subscribe(self) -> None:
        """Hand out a session, then send its frames until the client goes away."""
        session, lock = uuid.uuid4().hex, threading.Lock()

        def send(message) -> None:
            with lock:
                self.wfile.write(frame(message))

        self.close_connection = True
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept_header(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        self.front.jobs.sessions[session] = send
        send({"session_id": session})
        while (first := self.rfile.read(1)) and first[0] & 0x0F != CLOSING:
            self.rfile.read(5)  # a small masked frame; what clients send is a ping at most
        with lock:
            self.wfile.write(bytes([0x80 | CLOSING, 0]))
        del self.front.jobs.sessions[session]

    def _order(self, name: str, options: dict) -> None:
        answer = {}
        if name == "fault":
            try:
                self.front.faults.arm(**options)
            except (ValueError, TypeError) as error:
                return self._json(400, {"detail": str(error)})
        elif name == "clear":
            self.front.faults.clear()
        elif name == "release":
            answer = {"released": self.front.jobs.release()}
        elif name == "restart":
            again = threading.Thread(
                target=self.front.restart, args=[options.get("seconds", 0.5), options.get("forget", False)]
            )
            self._json(200, {})
            return again.start()
        else:
            return self._json(404, {"detail": f"no order {name!r}"})
        self._json(200, answer)

    def _about_ping(self):
        return "pong"

    def _about_whoami(self):
        known = self.headers.get("ndif-api-key") in self.front.keys
        return {"email": "someone@example.org" if known else None, "tags": self._tags()}

    def _tags(self) -> list[str]:
        return self.front.keys.get(self.headers.get("ndif-api-key"), [])

    def _about_status(self):
        described = self.front.jobs.models.describe()
        return {"deployments": {f"ModelActor:{model['model_key']}": model for model in described}}

    def _about_env(self):
        from nnsight.ndif import get_local_env

        return get_local_env()

    def _about_state(self):
        return {"faults": self.front.faults.state(), "unfinished": self.front.jobs.unfinished()}

    def _json(self, code: int, value, retry_after: float | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, code: int, data: bytes, headers: dict) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _break_off(self, reset: bool = False) -> None:
        self.close_connection = True
        self.wfile.flush()
        break_off(self.connection, reset)
