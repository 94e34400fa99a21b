"""A server of `regloss annotate` in a thread, and a client that sends what it is told, byte by byte."""

from __future__ import annotations

import http.client
import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TAB, OTHER_TAB = "a" * 32, "b" * 32


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def labels(self) -> tuple[dict[str, Any], np.ndarray]:
        """What is said of a label map, and the map; of size 0 where there is none."""
        head, _, data = zlib.decompress(self.body).partition(b"\n")
        about = json.loads(head)
        shape = (about.get("height", 0), about.get("width", 0))
        return about, np.frombuffer(data, dtype=np.uint8).reshape(shape)


@dataclass
class Client:
    """Speaks with a server.

    Attributes:
        host: of it.
        port: of it.
        token: of its address.
        numbers: of strokes, by image.
    """

    host: str
    port: int
    token: str
    numbers: dict[int, int] = field(default_factory=dict)

    def ask(
        self,
        path: str,
        content: Any = None,
        *,
        method: str | None = None,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        whole_path: str | None = None,
        timeout: float = 60.0,
    ) -> Reply:
        """One request; ``path`` follows the token, and ``content`` is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            if content is not None:
                body = json.dumps(content).encode()
            target = whole_path if whole_path is not None else f"/{self.token if token is None else token}{path}"
            given = {"Host": f"{self.host}:{self.port}", **(headers or {})}
            chunked = body is not None and not isinstance(body, bytes)
            connection.putrequest(
                method or ("GET" if body is None else "POST"), target, skip_host=True, skip_accept_encoding=True
            )
            for name, value in given.items():
                if value:
                    connection.putheader(name, value)
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            elif body is not None and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))  # type: ignore[arg-type]
            with suppress(BrokenPipeError, ConnectionResetError):  # refused already, what is left is not read
                connection.endheaders(body, encode_chunked=chunked)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def draw(self, index: int, revision: int, runs: list[int], tab: str = TAB, **options: Any) -> Reply:
        """Send a stroke."""
        number = self.numbers[index] = self.numbers.get(index, -1) + 1
        stroke = {"tab": tab, "number": number, "revision": revision, "runs": runs}
        return self.ask(f"/api/images/{index}/strokes", stroke, **options)

    def scribbles(self, index: int) -> tuple[int, np.ndarray]:
        """Revision and labels."""
        about, labels = self.ask(f"/api/images/{index}/scribbles").labels
        return about["revision"], labels

    def answer(self, index: int, after: int = 0, request: int = 0) -> tuple[dict[str, Any], np.ndarray]:
        """The final answer to a request, or to a later one."""
        while True:
            reply = self.ask(f"/api/images/{index}/answer?after={after}")
            assert reply.status == 200, reply.body
            about, labels = reply.labels
            if about["final"] and about["request"] >= request:
                return about, labels
            after = about["number"]


def write_images(root: Path, *, count: int = 3, size: tuple[int, int] = (40, 56), folder: str = "images") -> Path:
    """Bright discs on dark grounds, with noise; colours."""
    rng = np.random.default_rng(0)
    (root / folder).mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices(size)
    for number in range(count):
        disc = (rows - 20) ** 2 + (columns - 20 - 4 * number) ** 2 < 100
        image = np.where(disc[..., None], [200, 120, 60], [40, 60, 90]) + rng.normal(0, 10, (*size, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / folder / f"i{number}.png")
    return root


def files_of(root: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def strokes_of(path: Path) -> np.ndarray:
    """Scribbles as they are on disk."""
    with Image.open(path) as picture:
        return np.array(picture)


@contextmanager
def served(root: Path, **options: Any) -> Iterator[tuple[Any, Client]]:
    """A server in a thread, and a client of it."""
    from regloss.apps.annotate.command import AnnotationServer

    server = AnnotationServer(root, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server, Client("127.0.0.1", server.port, server.token)
    finally:
        server.stop()
        thread.join(300)  # the solver may be compiling
    assert not thread.is_alive()
