"""What the page of `regloss annotate` asks its server: drawing, answers, tabs, training."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from annotation import OTHER_TAB, TAB, Client, files_of, served, strokes_of, write_images

pytest.importorskip("starlette", reason="needs regloss[annotate]")

WIDTH = 56
OBJECT = [20 * WIDTH + 15, 8, 1, 21 * WIDTH + 15, 8, 1]  # within the disc of the first image
GROUND = [0, 50, 0, 38 * WIDTH, 50, 0]


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "set")


@pytest.fixture
def server(root):
    with served(root) as (server, _):
        yield server


@pytest.fixture
def client(server):
    return Client("127.0.0.1", server.port, server.token)


def test_what_a_page_learns_of_the_set(client):
    found = client.ask("/api/set").json
    assert [image["name"] for image in found["images"]] == ["i0", "i1", "i2"]
    assert found["images"][0] == {"name": "i0", "height": 40, "width": WIDTH, "drawn": False}
    assert [each["name"] for each in found["classes"]] == ["background", "object"]
    assert found["settings"]["costs"] == "colors"
    assert found["run"] == ""


def test_strokes_and_their_answer(client, root):
    revision, labels = client.scribbles(0)
    assert revision == 0
    assert (labels == 255).all()
    first = client.draw(0, 0, OBJECT).json
    assert first["drawn"]
    about, labels = client.answer(0, request=first["request"])
    assert (about["state"], labels.size) == ("waiting", 0)
    second = client.draw(0, first["revision"], GROUND).json
    about, labels = client.answer(0, about["number"], second["request"])
    assert about["state"] == "optimal"
    assert about["gap"] == 0
    assert labels.shape == (40, WIDTH)
    rows, columns = np.indices((40, WIDTH))
    disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 100
    assert (labels == disc).mean() > 0.98
    revision, drawn = client.scribbles(0)
    assert revision == 2
    np.testing.assert_array_equal(drawn, strokes_of(root / "scribbles/i0.png"))
    assert sorted(files_of(root / "scribbles")) == ["i0.png"]


def test_an_answer_by_other_settings(client):
    client.draw(0, 0, [*OBJECT, *GROUND])
    after = 0
    for settings, area in (
        ({"costs": "seeds", "weight": 0.0}, None),
        ({"weight": 1e4}, (0, 1200)),
        ({"star": True}, (200, 500)),
    ):
        request = client.ask("/api/images/0/answer", {"tab": TAB, "settings": settings}).json["request"]
        about, labels = client.answer(0, after, request)
        after = about["number"]
        assert about["state"] in ("optimal", "approximate")
        if area is not None:
            assert area[0] <= (labels == 1).sum() <= area[1]
    # Its next strokes keep them, and another tab's do not.
    reply = client.draw(0, 1, [30 * WIDTH, 3, 0]).json
    assert client.answer(0, after, reply["request"])[0]["state"] == "approximate"


def test_a_second_tab_is_told(client, root):
    assert client.ask("/api/images/0/claim", {"tab": TAB}).json["held"]
    assert not client.ask("/api/images/0/claim", {"tab": OTHER_TAB}).json["held"]
    client.draw(0, 0, OBJECT)
    before = files_of(root)
    reply = client.draw(0, 1, GROUND, tab=OTHER_TAB)
    assert (reply.status, reply.json["reason"]) == (409, "held")
    assert files_of(root) == before
    assert client.ask("/api/images/1/claim", {"tab": OTHER_TAB}).json["held"]  # other images are free
    # Taken over, the first one is told.
    assert client.ask("/api/images/0/claim", {"tab": OTHER_TAB, "take": True}).json["held"]
    assert not client.ask("/api/images/0/claim", {"tab": TAB}).json["held"]
    assert client.draw(0, 1, GROUND, tab=TAB).json["reason"] == "held"
    assert client.draw(0, 1, GROUND, tab=OTHER_TAB).status == 200
    # A stroke on what it has seen before does not undo what the other has drawn.
    client.ask("/api/images/0/release", {"tab": OTHER_TAB})
    reply = client.draw(0, 1, [0, 5, 255], tab=TAB)
    assert (reply.status, reply.json["reason"]) == (409, "changed")
    assert (client.scribbles(0)[1][0, :50] == 0).all()


def test_the_newest_of_many_strokes_is_answered(client):
    """Strokes that come faster than answers."""
    revision, number = client.draw(0, 0, [*OBJECT, *GROUND]).json["revision"], 0
    for column in range(12):
        reply = client.draw(0, revision, [10 * WIDTH + column, 1, 0]).json
        revision = reply["revision"]
    about, labels = client.answer(0, number, reply["request"])
    assert about["request"] == reply["request"]
    assert (labels[10, :12] == 0).all()
    assert revision == 13


def test_strokes_of_many_images_at_once(client, root):
    """Nothing is lost, and every file holds what its image was sent."""
    failures = []

    def draw(index):
        mine, revision = Client(client.host, client.port, client.token), 0
        for column in range(15):
            reply = mine.draw(index, revision, [index * WIDTH + column, 1, column % 2])
            if reply.status != 200:
                failures.append(reply.body)
                return
            revision = reply.json["revision"]

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for index in range(3):
        drawn = strokes_of(root / f"scribbles/i{index}.png")
        assert drawn[index, :15].tolist() == [0, 1] * 7 + [0]
        assert (drawn != 255).sum() == 15


def test_classes_are_edited(client, root):
    wanted = [
        {"name": "ground", "color": [0, 0, 0]},
        {"name": "disc", "color": [1, 2, 3]},
        {"name": "x", "color": [9, 9, 9]},
    ]
    assert client.ask("/api/classes", {"classes": wanted}).json["classes"] == wanted
    assert "disc" in (root / "classes.toml").read_text()
    assert client.draw(0, 0, [0, 4, 2]).status == 200
    reply = client.ask("/api/classes", {"classes": wanted[:2]})
    assert reply.status == 400
    assert "There are 3 classes" in reply.json["problem"]


def test_a_disk_that_is_full(client, root, monkeypatch):
    from regloss.errors import FailedWrite

    def full(*arguments, **options):
        raise FailedWrite("scribbles/i0.png cannot be written: no space left")

    with monkeypatch.context() as patch:
        patch.setattr("regloss.apps.annotate.sources.save_label_png", full)
        reply = client.draw(0, 0, OBJECT)
    assert reply.status == 507
    assert "no space left" in reply.json["problem"]
    assert client.scribbles(0)[0] == 0


def test_a_configuration_that_trains(client, root):
    from regloss.io.toml import parse_toml
    from regloss.training.config import parse

    assert client.ask("/api/training").json["state"] == "none"
    reply = client.ask("/api/training/plan", {"epochs": 3, "weight": 2.5})
    assert reply.status == 400
    assert "two classes" in reply.json["problem"]
    client.draw(1, 0, [*OBJECT, *GROUND])
    before = files_of(root)
    text = client.ask("/api/training/plan", {"epochs": 3, "weight": 2.5}).json["configuration"]
    assert files_of(root) == before  # a plan is none
    config = parse(parse_toml(text, "the plan"), "the plan")
    assert Path(config.output) == root.resolve() / "runs/annotate-1"
    assert (config.training.epochs, config.training.batch_size) == (3, 1)  # more would be the one image again
    assert config.data.component_settings()["split"] == {"train": ["i1"]}
    assert client.ask("/api/training/report").status == 404


def test_masks_of_what_is_drawn_on(client, root):
    """Answers are written for images with strokes, into a new folder each time."""
    assert "draw on an image" in client.ask("/api/masks", {"tab": TAB, "settings": {}}).json["problem"]
    client.draw(0, 0, [*OBJECT, *GROUND])
    client.draw(2, 0, OBJECT)
    for name in ("masks", "masks-2"):
        assert client.ask("/api/masks", {"tab": TAB, "settings": {}}).status == 200
        while (state := client.ask("/api/masks").json)["running"]:
            pass
        assert (state["folder"], state["done"], state["images"]) == (name, 1, 2)
        assert state["problems"] == ["i2: Draw strokes of two classes, the background for one."]
        assert [path.name for path in (root / name).iterdir()] == ["i0.png"]
    _, answer = client.answer(0)
    np.testing.assert_array_equal(strokes_of(root / "masks/i0.png"), answer)


def test_without_a_network(client):
    client.draw(0, 0, [*OBJECT, *GROUND])
    request = client.ask("/api/images/0/answer", {"tab": TAB, "settings": {"costs": "network"}}).json["request"]
    about, _ = client.answer(0, 0, request)
    assert about["state"] == "problem"
    assert "no trained network" in about["message"]
    assert "no trained network" in client.ask("/api/uncertainty", {}).json["problem"]


def test_a_run_answers(trained, images):
    """A network's predictions, with scribbles as seeds; and what it is least sure of."""
    with served(images, run=trained) as (_, client):
        assert client.ask("/api/set").json["run"] == trained.name
        request = client.ask("/api/images/0/answer", {"tab": TAB, "settings": {"costs": "network"}}).json["request"]
        about, labels = client.answer(0, 0, request)
        assert about["state"] in ("optimal", "bounded", "approximate")
        assert labels.shape == (24, 28)
        assert labels.max() < 3
        assert client.ask("/api/uncertainty", {}).status == 200
        while True:
            found = client.ask("/api/uncertainty").json
            assert not found["problem"]
            if len(found["found"]) == found["images"]:
                break
        assert all(0 <= value <= 1 for value in found["found"].values())


def test_a_run_of_other_classes(trained, root):
    from regloss.apps.annotate.command import AnnotationServer
    from regloss.errors import UsageError

    (root / "classes.toml").write_text('[[class]]\nname = "a"\n\n[[class]]\nname = "b"\n')
    with pytest.raises(UsageError, match="knows 3 classes"):
        AnnotationServer(root, run=trained)


def test_a_port_that_is_taken(root, server):
    from regloss.apps.annotate.command import AnnotationServer
    from regloss.errors import UsageError

    with pytest.raises(UsageError, match="--port 0"):
        AnnotationServer(root, port=server.port)
    with pytest.raises(UsageError, match="no machine"):
        AnnotationServer(root, host="no.such.machine.invalid")


def test_the_settings_of_the_page_are_those_of_the_server(client):
    """What the page sends is what `AnswerSettings` takes."""
    text = client.ask("/page/main.js").body.decode()
    settings = client.ask("/api/set").json["settings"]
    body = text.split("function readSettings()")[1].split("}")[0]
    assert {line.split(":")[0].strip() for line in body.splitlines() if ":" in line} >= set(settings)
    json.dumps(settings, allow_nan=False)
