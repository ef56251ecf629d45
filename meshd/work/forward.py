"""Posting inputs to URLs: one kept session, no redirects, bounded answers."""

import asyncio

import aiohttp

from meshd.clock import Seconds
from meshd.errors import Code, DeadlineError, PeerError
from meshd.work.executors import HttpReply

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 64

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/plain;q=0.9, */*;q=0.1",
    # A small compressed body could unfold past every bound.
    "Accept-Encoding": "identity",
}


class HttpForward:
    """The `Forward` of a real node. Its session is made on first use."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self, url: str, body: bytes, *, timeout_s: Seconds, bytes_max: int
    ) -> HttpReply:
        """Post `body` as JSON and read at most `bytes_max` bytes of the answer.

        Raises:
            PeerError: no connection (definite), or lost or too long (indefinite).
            DeadlineError: no answer within `timeout_s`; indefinite.
        """
        session = self._open()
        try:
            async with (
                asyncio.timeout(timeout_s),
                session.post(
                    url,
                    data=body,
                    headers=_HEADERS,
                    allow_redirects=False,
                ) as response,
            ):
                answer = await _read(response, bytes_max)
                return HttpReply(response.status, answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise PeerError(
                f"the URL's host cannot be reached: {_reason(error)}",
                hint="is the program behind it running?",
                code=Code.REJECTED,
                definite=True,
            ) from error
        except aiohttp.InvalidURL as error:
            raise PeerError("the URL is not valid", code=Code.REJECTED, definite=True) from error
        except TimeoutError as error:
            raise DeadlineError(
                f"the URL gave no answer within {timeout_s:.3g} s", definite=False
            ) from error
        except aiohttp.ClientError as error:
            raise PeerError(
                f"the connection to the URL was lost: {type(error).__name__}", definite=False
            ) from error

    async def close(self) -> None:
        """Close kept connections. Idempotent; a later post opens a new session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    parts = bytearray()
    async for part in response.content.iter_any():
        parts.extend(part)
        if len(parts) > bytes_max:
            raise PeerError(f"the URL's answer is longer than {bytes_max} bytes", definite=False)
    return bytes(parts)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
