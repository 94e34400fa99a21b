"""`regloss annotate`: a server for one folder, until it is interrupted."""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

from regloss.errors import MissingDependency, UsageError

_BUSY = 128  # connections and requests at once, above which more are turned away
_LOCAL = ("127.0.0.1", "localhost", "::1")


class AnnotationServer:
    """A server for one folder; it listens from the beginning, and answers while it `run`s.

    Args:
        folder: images, in ``folder/images`` or in itself.
        host: name or address to listen on; others than this machine's own let other machines in.
        port: 0 = any that is free.
        run: output folder of a training, whose predictions are shown.

    Raises:
        MissingDependency: starlette or uvicorn is not installed.
        UsageError: see `regloss.apps.annotate.image_set.ImageSet` and `regloss.apps.annotate.server.Annotation`; or the
            port cannot be had.

    Attributes:
        address: of the page, with its token.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, run: Path | None = None) -> None:
        for name in ("starlette", "uvicorn"):
            try:
                importlib.import_module(name)
            except ImportError as cause:
                raise MissingDependency(
                    f'regloss annotate needs {name}, which is not installed: pip install "regloss[annotate]".'
                ) from cause
        import uvicorn

        from regloss.apps.annotate.guard import Guard
        from regloss.apps.annotate.image_set import ImageSet
        from regloss.apps.annotate.server import Annotation, application

        self.images = ImageSet(folder)
        self._listener = _listen(host, port)
        try:
            self.annotation = Annotation(self.images, run)
        except BaseException:
            self._listener.close()
            raise
        self.is_open = host not in _LOCAL
        self.token = secrets.token_urlsafe(24)
        self.port = int(self._listener.getsockname()[1])
        name = _own_address() if host in ("0.0.0.0", "::") else host
        self.address = f"http://{f'[{name}]' if ':' in name else name}:{self.port}/{self.token}/"
        app = application(self.annotation, lambda: self._server.should_exit)
        names = (host, socket.gethostname()) if self.is_open else ()
        config = uvicorn.Config(
            Guard(app, self.token, self.port, names, any_address=self.is_open),
            log_level="warning",
            access_log=False,  # addresses hold the token
            proxy_headers=False,
            server_header=False,
            ws="none",
            limit_concurrency=_BUSY,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Answer, until Ctrl-C or `stop`; then end what runs beside the server."""
        try:
            self._server.run(sockets=[self._listener])
        except KeyboardInterrupt:
            pass
        finally:
            self._listener.close()
            self.annotation.close()

    def stop(self) -> None:
        """Have `run` end, from another thread."""
        self._server.should_exit = True


def annotate_folder(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    run: Path | None = None,
    browser: bool = True,
    callback: Callable[[str], object] = print,
) -> None:
    """Serve a page to draw scribbles on the images of ``folder``, until Ctrl-C; see `AnnotationServer`.

    Args:
        folder: see there.
        host: see there.
        port: see there.
        run: see there.
        browser: open the page.
        callback: called with the address, and with sentences on the images.
    """
    server = AnnotationServer(folder, host=host, port=port, run=run)
    for note in server.images.notes:
        callback(note)
    if server.is_open:
        callback("Whoever has the address can see the images and change the scribbles, from other machines too.")
    count = len(server.images.ids)
    callback(f"{count} images in {server.images.root}. Draw on them at\n\n    {server.address}\n\nCtrl-C ends.")
    if browser:
        webbrowser.open(server.address)
    server.run()
    callback("Ended. All that was drawn is saved.")


def _own_address() -> str:
    """This machine's address in its network, or its name where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # of no machine, and nothing is sent: it says which way one would go
        except OSError:
            return socket.gethostname()
        return str(asked.getsockname()[0])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UsageError: it cannot.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as cause:
        raise UsageError(f"There is no machine {host!r} to listen on: {cause.strerror}.") from cause
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as cause:
        listener.close()
        raise UsageError(
            f"Port {port} of {host} cannot be had: {cause.strerror}. --port 0 takes one that is free."
        ) from cause
    return listener
