"""Finds the local daemon's control socket and calls it. Standard library only: it must start fast.

It speaks HTTP/1.1 by hand (one request, one connection): importing http.client alone would take
longer than a whole call.
"""
# pathlib would make this module's start-up half as long again; os.path is loaded anyway:
# ruff: noqa: PTH111, PTH116, PTH117, PTH118, PTH120, PTH208

import contextlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from meshd.errors import (
    Code,
    DeadlineError,
    MeshError,
    NoDaemonError,
    PeerError,
    UsageError,
    error_from_wire,
)

SOCKET_PATH_BYTES_MAX = 103
"""One below the 104 bytes, zero included, of macOS and the BSDs; Linux has four more."""
RESPONSE_BYTES_MAX = 64 * 1_048_576
HEAD_BYTES_MAX = 65_536
SOCKETS_MAX = 1_000
PROBE_TIMEOUT_S = 1.0
SYSTEM_RUNTIME_DIR = "/run/meshd"
_SUFFIX = ".sock"
_CHUNK = 262_144


class SocketInfo(NamedTuple):
    """A control socket's file and the daemon that it says it is of."""

    path: str
    mesh: str
    name: str


def state_dir_root() -> str:
    """Where all nodes of this user keep their state; a node's own is `ROOT/MESH/NAME`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return os.path.join(base, "meshd")
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Application Support", "meshd")
    return os.path.join(home, ".local", "state", "meshd")


def runtime_dir() -> str:
    """Where this user's daemons have their control sockets: `DIR/MESH/NAME.sock`."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base):
        return os.path.join(base, "meshd")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIR
    return os.path.join(state_dir_root(), "run")


def socket_path(mesh: str, name: str) -> str:
    """The control socket of the node `name` in `mesh`.

    Raises:
        UsageError: the path is longer than a socket's may be.
    """
    path = os.path.join(runtime_dir(), mesh, name + _SUFFIX)
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES_MAX:
        raise UsageError(
            f"the control socket's path has {size} bytes, "
            f"more than the {SOCKET_PATH_BYTES_MAX} that a socket may have: {path}",
            hint="choose a shorter --name or --mesh, set XDG_RUNTIME_DIR, or use --socket",
        )
    return path


def find_sockets(mesh: str | None = None) -> list[SocketInfo]:
    """The control sockets on this machine that this user may see, live or stale, sorted."""
    found: list[SocketInfo] = []
    for root in _roots():
        for each in [mesh] if mesh is not None else _names(root):
            directory = os.path.join(root, each)
            found += [
                SocketInfo(os.path.join(directory, file), each, file.removesuffix(_SUFFIX))
                for file in _names(directory)
                if file.endswith(_SUFFIX) and _is_socket(os.path.join(directory, file))
            ]
    return found[:SOCKETS_MAX]


def choose_socket(
    path: str | None = None, mesh: str | None = None, name: str | None = None
) -> SocketInfo:
    """The one daemon that is meant. With one live daemon nothing needs to be said.

    Raises:
        UsageError: several daemons fit; the error lists them. Or permission denied.
        NoDaemonError: none answers; the hint says how to start one.
    """
    if path is not None:
        _connect(path, PROBE_TIMEOUT_S).close()
        return SocketInfo(path, mesh or "", name or "")
    fitting = [s for s in find_sockets(mesh) if name is None or s.name == name]
    live = [s for s in fitting if is_live(s.path)]
    if len(live) == 1:
        return live[0]
    if live:
        listed = ", ".join(f"{s.name} (mesh {s.mesh}, {s.path})" for s in live)
        raise UsageError(
            f"{len(live)} daemons are running here: {listed}",
            hint="say which with --node NAME or --socket PATH",
            data={"sockets": [s.path for s in live]},
        )
    raise _nobody(fitting, mesh, name)


def is_live(path: str) -> bool:
    """Whether a process listens on the control socket `path`.

    Raises:
        UsageError: permission denied, so nobody can tell.
    """
    try:
        _connect(path, PROBE_TIMEOUT_S).close()
    except (NoDaemonError, PeerError):
        return False
    return True


class ControlClient:
    """Calls one daemon over its control socket: a connection for each call."""

    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, method: str, params: Any = None, timeout_s: float = 30.0) -> Any:
        """Call `method` and return its result.

        Raises:
            MeshError: what the daemon answered.
            NoDaemonError: nobody answers on the socket.
            UsageError: permission denied, or parameters that are not JSON.
            DeadlineError: no answer within `timeout_s` (indefinite).
            PeerError: the daemon went away before it answered (indefinite).
        """
        deadline = time.monotonic() + timeout_s
        request = _request(method, params, timeout_s)
        with _connect(self.path, timeout_s) as link:
            try:
                answer = _exchange(link, request, deadline)
            except TimeoutError:
                raise DeadlineError(
                    f"the daemon did not answer {method!r} within {timeout_s:g} s",
                    hint="it may be stopped, or too busy: look at its process and its log",
                    definite=False,
                ) from None
            except OSError as error:
                raise PeerError(
                    f"the daemon went away before it answered {method!r}: {error}", definite=False
                ) from None
        return _result(_body(answer))

    def stream(
        self, method: str, params: Any = None, timeout_s: float = 30.0
    ) -> Iterator[tuple[str, Any]]:
        """Call `method`: its partial results and progress as they come, and the result at last.

        Yields:
            `("part", value)`, `("progress", {"fraction": .., "message": ..})`, last
            `("result", value)`.

        Raises:
            MeshError: as `call` does.
        """
        deadline = time.monotonic() + timeout_s
        request = _request(method, params, timeout_s, accept="text/event-stream")
        try:
            with _connect(self.path, timeout_s) as link:
                for message in _events(link, request, deadline):
                    if "method" not in message:
                        yield "result", _result_of(message)
                        return
                    told = message.get("params") or {}
                    if message["method"] == "part":
                        yield "part", told.get("value")
                    elif message["method"] == "progress":
                        yield "progress", told
        except TimeoutError:
            raise DeadlineError(
                f"{method!r} did not end within {timeout_s:g} s", definite=False
            ) from None
        except OSError as error:
            raise PeerError(
                f"the daemon went away before it answered {method!r}: {error}", definite=False
            ) from None
        raise PeerError("the daemon closed the link without an answer", definite=False)


def _roots() -> list[str]:
    own = runtime_dir()
    return [own] if own == SYSTEM_RUNTIME_DIR else [own, SYSTEM_RUNTIME_DIR]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _nobody(fitting: list[SocketInfo], mesh: str | None, name: str | None) -> MeshError:
    """Why no daemon was found, as far as one can tell from here."""
    start = "start it: meshd start"
    if fitting:
        path = fitting[0].path
        return NoDaemonError(
            f"no daemon is answering on {path}",
            hint=f"a stale socket is left from a daemon that is gone; {start}",
        )
    for root in _roots():
        if _is_hidden(root):
            return _denied(root)
    wanted = "".join(
        f" {what} {value!r}" for what, value in (("named", name), ("in mesh", mesh)) if value
    )
    inner = [(root, each) for root in _roots() for each in _names(root) if mesh in {None, each}]
    hidden = [path for path in (os.path.join(*place) for place in inner) if _is_hidden(path)]
    if hidden:
        # No more than a hint: it may be an old one, and others may start nodes of their own.
        start += f"; or run as {_owner(hidden[0])}, who may look into {hidden[0]}"
    return NoDaemonError(
        f"no daemon{wanted} is running here (no socket under {' or '.join(_roots())})", hint=start
    )


def _is_hidden(directory: str) -> bool:
    """Whether it is there, or may be, and this user cannot look into it."""
    try:
        os.stat(directory)
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(directory, os.R_OK | os.X_OK)


def _connect(path: str, timeout_s: float) -> socket.socket:
    """Connect to the control socket.

    Raises:
        NoDaemonError: nobody listens there.
        UsageError: permission denied, or no path of a socket.
        PeerError: somebody listens but does not accept.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(timeout_s)
    try:
        link.connect(path)
    except OSError as error:
        link.close()
        raise _connect_error(path, error) from None
    return link


def _connect_error(path: str, error: OSError) -> MeshError:
    start = "start it: meshd start"
    match error:
        case PermissionError():
            return _denied(path)
        case FileNotFoundError():
            return NoDaemonError(
                f"no daemon is answering on {path}", hint=f"the socket does not exist; {start}"
            )
        case ConnectionRefusedError() if not _is_socket(path):
            return UsageError(f"{path} is not a socket", hint="use another --socket")
        case ConnectionRefusedError():
            return NoDaemonError(
                f"no daemon is answering on {path}",
                hint=f"a stale socket is left from a daemon that is gone; {start}",
            )
        case TimeoutError() | BlockingIOError():
            return PeerError(
                f"the daemon behind {path} accepts no connection now",
                hint="it may be stopped or overloaded; try again",
            )
        case _:
            return UsageError(
                f"cannot use the socket {path}: {error.strerror or error}",
                hint="check --socket",
            )


def _denied(path: str) -> UsageError:
    return UsageError(
        f"permission denied on {path}",
        hint=f"run as {_owner(path)} or use --socket",
        code=Code.FORBIDDEN,
    )


def _owner(path: str) -> str:
    """The name of whoever owns the file or, where it is hidden, the nearest visible directory."""
    import pwd

    while True:
        try:
            return pwd.getpwuid(os.stat(path).st_uid).pw_name
        except KeyError:
            return f"user {os.stat(path).st_uid}"
        except OSError:
            path = os.path.dirname(path) or "/"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _request(method: str, params: Any, timeout_s: float, accept: str = "") -> bytes:
    message = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params is not None:
        message["params"] = params
    try:
        body = json.dumps(message, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the parameters of {method!r} are not JSON values: {error}",
            hint="pass only dicts, lists, strings, numbers, booleans and None",
        ) from None
    # Of the older HTTP, a stream comes as it is, until the daemon closes.
    head = (
        f"POST /rpc HTTP/1.{0 if accept else 1}\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nAccept: {accept or '*/*'}\r\n"
        f"Content-Length: {len(body)}\r\nMeshd-Timeout-Ms: {max(1, int(timeout_s * 1000))}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _exchange(link: socket.socket, request: bytes, deadline: float) -> bytes:
    """Send the request and read until the daemon closes.

    Raises:
        OSError: the link got lost; TimeoutError: the time is over.
    """
    _set_time(link, deadline)
    # A daemon that refuses a large body answers and closes before it has read it all.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        link.sendall(request)
    answer = bytearray()
    while len(answer) <= RESPONSE_BYTES_MAX:
        _set_time(link, deadline)
        chunk = link.recv(_CHUNK)
        if not chunk:
            break
        answer += chunk
    return bytes(answer)


def _events(link: socket.socket, request: bytes, deadline: float) -> Iterator[dict[str, Any]]:
    """The JSON-RPC messages of a stream of server-sent events; or the one of a plain answer.

    Raises:
        OSError: the link got lost; TimeoutError: the time is over.
        PeerError: it is no such stream.
    """
    _set_time(link, deadline)
    link.sendall(request)
    pending, is_head, is_stream = b"", True, False
    while True:
        _set_time(link, deadline)
        chunk = link.recv(_CHUNK)
        pending += chunk
        if is_head and b"\r\n\r\n" in pending:
            head, _, pending = pending.partition(b"\r\n\r\n")
            is_head, is_stream = False, b"text/event-stream" in head
        if is_stream:
            *whole, pending = pending.split(b"\n\n")
            yield from (_message(event.removeprefix(b"data: ")) for event in whole)
        if len(pending) > RESPONSE_BYTES_MAX:
            raise PeerError("the daemon's answer is too large", definite=False)
        if not chunk:
            if not is_head and not is_stream:
                yield _message(pending)
            return


def _set_time(link: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)


def _body(answer: bytes) -> bytes:
    """The body of a complete HTTP answer.

    Raises:
        PeerError: it is incomplete, too large, or no HTTP.
    """
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank or not head.startswith(b"HTTP/1.") or len(head) > HEAD_BYTES_MAX:
        raise PeerError("the daemon closed the link without an answer", definite=False)
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip() != b"%d" % len(body):
            raise PeerError("the daemon's answer is incomplete or too large", definite=False)
    return body


def _result(body: bytes) -> Any:
    return _result_of(_message(body))


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _no_daemon()
    return message


def _result_of(answer: dict[str, Any]) -> Any:
    if ("result" in answer) == ("error" in answer):
        raise _no_daemon()
    if "result" in answer:
        return answer["result"]
    error = answer["error"] if isinstance(answer["error"], dict) else {}
    code, data = error.get("code"), error.get("data")
    raise error_from_wire(
        code if isinstance(code, int) else int(Code.INTERNAL),
        str(error.get("message", "unknown error")),
        data if isinstance(data, dict) else None,
    )


def _no_daemon() -> PeerError:
    return PeerError(
        "what answers on the socket does not speak JSON-RPC",
        hint="is it a meshd daemon?",
        definite=False,
    )
