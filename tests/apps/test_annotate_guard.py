"""Attacks on the server of `regloss annotate`: refused, and nothing read or written that should not be."""

import threading
from contextlib import suppress

import numpy as np
import pytest
from annotation import OTHER_TAB, TAB, files_of, served, write_images

pytest.importorskip("starlette", reason="needs regloss[annotate]")

BLOCK = bytes(1 << 20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("annotate") / "set")
    (root.parent / "secret.txt").write_text("secret")
    return root


@pytest.fixture(scope="module")
def server(root):
    with served(root) as (server, _):
        yield server


@pytest.fixture
def client(server, root):
    """A client; whatever it asks, nothing below the folder changes."""
    from annotation import Client

    before = files_of(root.parent)
    yield Client("127.0.0.1", server.port, server.token)
    assert files_of(root.parent) == before


def stroke(**changes):
    return {"tab": TAB, "number": 0, "revision": 0, "runs": [0, 1, 1], **changes}


def test_the_page_is_served(client):
    reply = client.ask("/")
    assert reply.status == 200
    assert b"regloss annotate" in reply.body
    assert client.ask("/page/main.js").headers["content-type"].startswith("text/javascript")


def test_what_browsers_are_told(client):
    """Of each answer, those of errors too."""
    for path in ("/", "/page/style.css", "/api/set", "/api/images/0/picture", "/absent", "/api/images/9/picture"):
        headers = client.ask(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    assert "access-control-allow-origin" not in client.ask("/api/set").headers


@pytest.mark.parametrize("token", ["", "x", "TOKEN", "t%C3%B6ken", "%00", "%ff", "api", ".", "..", "a" * 5000])
def test_wrong_tokens(client, token):
    for path in ("/", "/api/set", "/page/main.js", "/api/images/0/scribbles"):
        reply = client.ask(path, token=token)
        assert reply.status == 403
        assert b"token" in reply.body
    assert client.ask("/api/images/0/strokes", stroke(), token=token).status == 403


def test_parts_of_the_token(client):
    for token in (client.token[:-1], client.token + "x", client.token.swapcase(), client.token[1:]):
        assert client.ask("/api/set", token=token).status == 403


def test_the_token_anywhere_else(client):
    for path in (f"/api/set?token={client.token}", f"//{client.token}/api/set", f"/api/{client.token}/set"):
        assert client.ask("", whole_path=path).status == 403
    assert client.ask("", whole_path="/api/set", headers={"Authorization": f"Bearer {client.token}"}).status == 403
    assert client.ask("", whole_path="/api/set", headers={"Cookie": f"token={client.token}"}).status == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/../../secret.txt",
        "/page/../../secret.txt",
        "/page/../server.py",
        "/page/..%2Fserver.py",
        "/page/%2e%2e/server.py",
        "/page/%2e%2e%2fserver.py",
        "/page/..%5cserver.py",
        "/page//etc/passwd",
        "/page/%2Fetc%2Fpasswd",
        "/page/server.py",
        "/page/",
        "/page",
        "//etc/passwd",
        "/etc/passwd",
        "/images/i0.png",
        "/scribbles/i0.png",
        "/classes.toml",
        "/api/images/../../secret.txt/picture",
        "/api/images/i0.png/picture",
        "/api/images/..%2F..%2Fsecret.txt/picture",
        "/api/images/-1/picture",
        "/api/images/0x0/picture",
        "/api/images/0/picture/..",
        "/api/training/report/../../set",
        "/api/training/report",
        "/api/set/",
        "/evil.example/",
        "//evil.example/",
        "/%00",
        "/page/main.js%00.css",
        "/%ff",
    ],
)
def test_paths_to_elsewhere(client, path):
    reply = client.ask(path)
    assert reply.status == 404, reply.body
    assert b"secret" not in reply.body
    assert b"root:" not in reply.body


def test_absolute_addresses(client):
    for path in ("http://evil.example/api/set", "/etc/passwd", "file:///etc/passwd", "*", "../../etc/passwd"):
        assert client.ask("", whole_path=path).status in (400, 403)


def test_images_that_are_not_there(client):
    for index in (3, 10**9, 10**30):
        assert client.ask(f"/api/images/{index}/picture").status == 400


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "localhost.evil.example:{port}",
        "127.0.0.1:{port}@evil.example",
        "127.0.0.1:{port}, evil.example",
        "0.0.0.0:{port}",
        "[::2]:{port}",
        "10.0.0.1:{port}",
        "",
    ],
)
def test_other_hosts(client, host):
    """A page that reaches this server by a name of its own reads nothing, even with the token."""
    reply = client.ask("/api/set", headers={"Host": host.format(port=client.port)})
    assert reply.status in (400, 403)
    assert b"images" not in reply.body


def test_own_names(client):
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert client.ask("/api/set", headers={"Host": f"{host}:{client.port}"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_pages(client, headers):
    headers = {name: value.format(port=client.port) for name, value in headers.items()}
    assert client.ask("/api/images/0/strokes", stroke(), headers=headers).status == 403
    assert client.ask("/api/set", headers=headers).status == 403


def test_other_methods(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST", "NONSENSE"):
        assert client.ask("/api/set", method=method).status in (400, 405)
    assert client.ask("/api/images/0/strokes").status == 405


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"' + b"x" * 100,
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"tab": "' + TAB.encode() + b'", "number": NaN, "revision": 0, "runs": [0, 1, 1]}',
        b'{"tab": "' + TAB.encode() + b'", "number": 0, "revision": 0, "runs": [' + b"9" * 5000 + b", 1, 1]}",
    ],
    ids=range(9),
)
def test_bodies_that_are_no_strokes(client, body):
    assert client.ask("/api/images/0/strokes", body=body).status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"tab": "../../x"},
        {"tab": ""},
        {"tab": "a" * 1000},
        {"tab": 7},
        {"number": -1},
        {"number": "0"},
        {"number": 1.5},
        {"revision": None},
        {"revision": True},
        {"runs": "abc"},
        {"runs": [0, 1, "../x"]},
        {"runs": [0, 1, 1.0]},
        {"runs": [0, 1, True]},
        {"runs": [0, 10**9, 1]},
        {"runs": [0, 1, 200]},
        {"runs": [0, 1]},
        {"path": "/etc/passwd"},
    ],
    ids=str,
)
def test_strokes_that_mean_nothing(client, changes):
    assert client.ask("/api/images/0/strokes", stroke(**changes)).status == 400


def test_settings_that_name_components_or_paths(client):
    for settings in (
        {"costs": "/etc/passwd"},
        {"weight": 1e300},
        {"weight": "nan"},
        {"place": -1},
        {"star": "yes please"},
        {"method": "graph-cut"},
        {"shaped": -1},
    ):
        reply = client.ask("/api/images/0/answer", {"tab": TAB, "settings": settings})
        assert reply.status == 400, settings
    for settings in ({"output": "/tmp/x"}, {"epochs": 0}, {"epochs": "60; rm"}, {"weight": -1}, []):
        assert client.ask("/api/training/plan", settings).status == 400
        assert client.ask("/api/training", settings).status == 400
    for color in ([0, 0], [0, 0, 256], ["0", "0", "0"], "red"):
        classes = [{"name": "a", "color": color}, {"name": "b", "color": [0, 0, 0]}]
        assert client.ask("/api/classes", {"classes": classes}).status == 400


def test_a_hundred_megabytes(client):
    """Refused by the length that is named, and by what has come where none is."""
    named = client.ask("/api/images/0/strokes", body=b"", headers={"Content-Length": str(100 << 20)})
    assert named.status == 413
    sent = 0

    def blocks():
        nonlocal sent
        for _ in range(100):
            sent += len(BLOCK)
            yield BLOCK

    with suppress(BrokenPipeError, ConnectionResetError):  # refused while it was being sent
        assert client.ask("/api/images/0/strokes", body=blocks()).status == 413
    assert sent < 100 << 20
    assert client.ask("/api/set", body=b"", method="GET", headers={"Content-Length": "-5"}).status in (400, 413)
    assert client.ask("/api/set").status == 200


def test_two_hundred_at_once(client):
    """Of wrong tokens and of a tab that does not hold the image; the server goes on as if nothing had been."""
    assert client.ask("/api/images/2/claim", {"tab": TAB}).json["held"]
    found = []

    def attack(number):
        path, options = [
            ("/api/images/2/strokes", {"token": "x"}),
            ("/api/images/2/strokes", {}),
            ("/../../etc/passwd", {}),
            ("/api/images/2/strokes", {"headers": {"Host": "evil.example"}}),
        ][number % 4]
        try:
            found.append(client.ask(path, stroke(tab=OTHER_TAB), **options).status)
        except ConnectionError:
            found.append(0)  # turned away at once

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert set(found) <= {0, 403, 404, 409, 503}
    assert client.ask("/api/set").status == 200
    assert (client.scribbles(2)[1] == 255).all()
    client.ask("/api/images/2/release", {"tab": TAB})


def test_it_listens_on_this_machine_alone(server):
    assert server._listener.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.port}/{server.token}/"
    assert len(server.token) >= 32


def test_tokens_differ(root, server):
    with served(root) as (other, _):
        assert other.token != server.token
        assert other.port != server.port


def test_other_machines_use_addresses_alone(root):
    """Told to listen for them, a server goes by its addresses; a name of somebody's page it still does not."""
    with served(root, host="0.0.0.0") as (server, client):
        assert server.is_open
        for host, status in (("192.168.1.7", 200), ("[fe80::1]", 200), ("127.0.0.1", 200), ("evil.example", 403)):
            assert client.ask("/api/set", headers={"Host": f"{host}:{client.port}"}).status == status


def test_pictures_are_what_the_reader_has_read(client, root):
    import io

    from PIL import Image

    with (
        Image.open(io.BytesIO(client.ask("/api/images/1/picture").body)) as sent,
        Image.open(root / "images/i1.png") as kept,
    ):
        np.testing.assert_array_equal(np.array(sent), np.array(kept))
    assert len(client.ask("/api/images/1/thumbnail").body) < 5000
