"""Who may ask a local server, and what browsers may do with what it answers.

Other pages that are open in the same browser can send requests to it, and other users of the machine can too. So each
request must

- name this server in its Host header, as no page does that reaches it by a name of its own (DNS rebinding),
- begin its path with the token, which is in the printed address alone (no cookie: browsers send those by themselves,
  and to all ports of a host),
- come from this server's own page, if it says where it comes from,
- have a body of a bounded length.

What is refused reaches no route.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 8 * 1024**2
"""Bytes. A stroke with a run for every second pixel of a photograph is refused; one of a brush has some thousand."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: run its own modules, and speak with its own server."""

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""What a report, shown within the page, may do: be looked at."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")


class TooLarge(Exception):
    """A body has more bytes than any request needs."""

    def __init__(self) -> None:
        super().__init__(f"A request has at most {LARGEST_BODY} bytes.")


class Guard:
    """Refuses requests before they reach the application; see the top of this module.

    Args:
        app: the application; it sees paths without the token.
        token: what paths begin with.
        port: of the server.
        names: that it has beside those of this machine for itself.
        any_address: whether it listens for other machines, which may call it by any of its addresses.
    """

    def __init__(
        self, app: ASGIApp, token: str, port: int, names: Collection[str] = (), *, any_address: bool = False
    ) -> None:
        self.app = app
        self._token = token.encode()
        self._port = port
        self._names = {"127.0.0.1", "localhost", "[::1]", *(name.lower() for name in names)}
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # there are no web sockets
        send = _with_headers(send)
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return await _refuse(send, 403, "This server goes by another name.")
        parts: list[str] = scope["path"].split("/", 2)
        token, rest = [*parts[1:], "", ""][:2]
        if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            return await _refuse(send, 403, "Open the address that regloss annotate has printed: its token is missing.")
        origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
        sites = [value for name, value in headers if name == b"sec-fetch-site"]
        if any(origin != f"http://{hosts[0]}" for origin in origins) or any(
            site not in (b"same-origin", b"none") for site in sites
        ):
            return await _refuse(send, 403, "Only this server's own page may ask it.")
        lengths = [value for name, value in headers if name == b"content-length"]
        if any(not value.isdigit() or int(value) > LARGEST_BODY for value in lengths):
            return await _refuse(send, 413, str(TooLarge()))
        path = f"/{rest}"
        inner = {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogatepass"), "root_path": ""}
        await self.app(inner, _limited(receive), send)

    def _is_own(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        if parts is None or int(parts["port"] or 80) != self._port:
            return False
        if parts["name"] in self._names:
            return True
        if not self._any_address:
            return False
        try:  # no page can make a browser take an address for a name of its own
            ipaddress.ip_address(parts["name"].strip("[]"))
        except ValueError:
            return False
        return True


def _limited(receive: Receive) -> Receive:
    """``receive`` that raises `TooLarge`: a body may come without its length."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > LARGEST_BODY:
                raise TooLarge
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message.get("headers", [])}
            further = [(name, value) for name, value in _HEADERS if name not in given]
            if b"content-security-policy" not in given:
                further.append((b"content-security-policy", PAGE_POLICY.encode()))
            message = {**message, "headers": [*message.get("headers", []), *further]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, problem: str) -> None:
    body = json.dumps({"problem": problem}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the request is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
