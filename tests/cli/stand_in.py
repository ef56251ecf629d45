"""A daemon's stand-in on a real control socket, and what it answers."""

import json
import socketserver
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

SELF_ID = "9f3c000000000012"
B_ID = "4bf9000000000034"
NUC_ID = "77aa000000000056"
SOCKET_BACKLOG = 16


class RefusalError(Exception):
    """A JSON-RPC error that the stand-in answers with."""

    def __init__(self, code, message, **data):
        super().__init__(message)
        self.code, self.message, self.data = int(code), message, data


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers each method with a canned result: a value, a function of params, an error."""

    daemon_threads = True
    request_queue_size = SOCKET_BACKLOG

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.results: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        super().__init__(str(path), _Handler)

    def answer(self, method, params):
        self.calls.append((method, params))
        result = self.results.get(method, RefusalError(-32601, f"no method {method!r}"))
        result = result(params) if callable(result) else result
        if isinstance(result, Exception):
            raise result
        return result

    def params(self, method):
        """What the last call of `method` asked for."""
        return [params for called, params in self.calls if called == method][-1]

    def vanish(self):
        """Go away as a stopped daemon does: the socket's file too."""
        self.path.unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            reply["result"] = self.server.answer(request["method"], request.get("params"))
        except RefusalError as error:
            reply["error"] = {"code": error.code, "message": error.message, "data": error.data}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "local"

    def log_message(self, *args):
        pass


def load(cpu, mem, in_flight, **more):
    return {
        "cpu": cpu, "mem": mem, "in_flight": in_flight, "queue": 0, "slots": 8, "service_s": 0.01,
        "error": 0.0, "lag_s": 0.0, "ready": True, "full": False, "draining": False, **more,
    }  # fmt: skip


def row(name, node, state, address, **more):
    return {
        "id": node, "name": name, "state": state, "self": False, "address": address, "port": 6374,
        "url": f"http://{address}:6374", "epoch": 1, "incarnation": 3, "version": "0.1.0",
        "load": None, "rtt_ms": None, "age_s": None, "stale": False, "reachable": True,
        "doubt": None, "capabilities": [], **more,
    }  # fmt: skip


def offers(*names):
    return [{"name": n, "version": "1.0.0", "description": "", "tags": []} for n in names]


PEERS = {
    "schema": "meshd.peers/1",
    "mesh": "default",
    "self": SELF_ID,
    "view_hash": "7c1e99aa",
    "version": 12,
    "nodes": [
        row("lab-a", SELF_ID, "alive", "192.168.1.17", self=True, age_s=0.0,
            load=load(0.12, 0.41, 0), capabilities=offers("translate", "ocr")),
        row("lab-b", B_ID, "alive", "192.168.1.18", rtt_ms=0.8, age_s=0.3,
            load=load(0.63, 0.58, 5), capabilities=offers("sum", "translate")),
        row("nuc", NUC_ID, "suspect", "fd00::40", age_s=4.1, reachable=False,
            doubt={"confirmations": 2, "needed": 3, "since_s": 2.1, "dead_in_s": 3.2},
            load=load(0.09, 0.22, 0, slots=4), capabilities=offers("render")),
    ],
}  # fmt: skip

CAPABILITIES = [
    {
        "name": "translate", "version": "1.2.0", "description": "Turn text into another language.",
        "agent": "nlp", "tags": ["nlp"], "examples": ["translate this"], "idempotent": True,
        "input_schema": {"type": "object"}, "output_schema": {}, "timeout_s": 30.0,
        "concurrency": 0,
        "nodes": [
            {"node": SELF_ID, "name": "lab-a", "state": "alive", "local": True},
            {"node": B_ID, "name": "lab-b", "state": "alive", "local": False},
        ],
    },
    {
        "name": "render", "version": "1.0.0", "description": "Draw.", "agent": "", "tags": [],
        "examples": [], "idempotent": False, "input_schema": {}, "output_schema": {},
        "timeout_s": 30.0, "concurrency": 1,
        "nodes": [{"node": NUC_ID, "name": "nuc", "state": "suspect", "local": False}],
    },
]  # fmt: skip
