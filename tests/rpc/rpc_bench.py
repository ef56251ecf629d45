"""What the tests of the RPC room share: handlers to call, and a raw connection to call them by."""

import asyncio
import contextlib
import json

import msgspec

from meshd.errors import BusyError
from meshd.model import Address
from meshd.rpc.methods import Registry

LOOPBACK = Address("127.0.0.1", 0)


class EchoParams(msgspec.Struct, forbid_unknown_fields=True):
    text: str = ""


class Bench:
    """A registry whose handlers a test can hold, let go and look into."""

    def __init__(self):
        self.registry = Registry()
        self.release = asyncio.Event()
        self.started = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self.seen = []
        add = self.registry.add
        add("echo", EchoParams, self.echo)
        add("hold", None, self.hold)
        add("fail", None, self.fail)
        add("refuse", None, self.refuse)
        add("cancelled", None, self.cancelled)
        add("odd", None, self.odd)
        add("big", None, self.big)
        add("who", None, self.who)
        add("secret", None, self.who, control=True)

    async def echo(self, params, context):
        self.seen.append(params.text)
        return {"text": params.text}

    async def hold(self, params, context):
        self.started.release()
        try:
            await self.release.wait()
        finally:
            self.ended.release()
        return "held"

    async def fail(self, params, context):
        raise RuntimeError("/etc/secret/path is broken")

    async def refuse(self, params, context):
        raise BusyError("no slot", hint="later", data={"eta_s": 3})

    async def cancelled(self, params, context):
        raise asyncio.CancelledError

    async def odd(self, params, context):
        return object()

    async def big(self, params, context):
        return "x" * params["size"]

    async def who(self, params, context):
        return {"remote": context.remote, "local": context.local, "deadline_s": context.deadline_s}


class Wire:
    """A raw connection, to say what no client library would."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def answer(self):
        """The next HTTP answer: (status, headers, body)."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers, body

    async def rest(self):
        """All bytes until the other side closes."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def http(body=b"", *, method="POST", path="/rpc", host="127.0.0.1", **headers):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    fields = {
        "Host": host,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def rpc(method, params=None, request_id=1):
    message = {"jsonrpc": "2.0", "method": method, "id": request_id}
    return message if params is None else {**message, "params": params}


class Socket:
    """Takes frames; while `room` is clear, it takes as long as it is."""

    closed = False

    def __init__(self):
        self.frames = []
        self.room = asyncio.Event()
        self.room.set()
        self.error = None

    def send(self, message):
        if self.error is not None:
            raise self.error
        self.frames.append(message)
        return self.room.is_set()

    async def wait_for_room(self):
        await self.room.wait()

    def listen(self, on_frame):
        raise AssertionError("nobody reads here")

    async def close(self):
        pass

    def abort(self):
        raise AssertionError("nobody is cut off here")
