"""The answer to scribbles, in stages: a preview, the minimum, a bound."""

import numpy as np
import pytest
import torch

from regloss.apps.annotate import live
from regloss.apps.annotate.live import AnswerSettings, LiveImage
from regloss.apps.annotate.solver import Solver
from regloss.apps.segment import default_segmenter
from regloss.errors import UsageError


def scene(size, classes=2, noise=0.08, seed=0):
    """Bands of grey values and strokes along their middle rows."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), -(-size // classes))[:size]
    labels = np.repeat(labels[:, None], size, axis=1).astype(np.uint8)
    image = (0.2 + 0.6 * labels / (classes - 1) + rng.normal(0, noise, labels.shape)).clip(0, 1).astype(np.float32)
    scribbles = np.full_like(labels, 255)
    for label in range(classes):
        row = int(np.flatnonzero(labels[:, 0] == label).mean())
        scribbles[row - 1 : row + 2, size // 4 : 3 * size // 4] = label
    return np.repeat(image[None], 3, axis=0), labels, scribbles


def stages(image, scribbles, classes, **settings):
    asked = AnswerSettings(**settings)
    live_image = image if isinstance(image, LiveImage) else LiveImage(image)
    first = live_image.quick(scribbles, classes, asked)
    found = [] if first is None else [first]
    if first is None or not first.final:
        found += live_image.thorough(scribbles, classes, asked, None if first is None else first.labels)
    return found


def test_two_classes_end_in_what_segment_finds():
    image, labels, scribbles = scene(200)
    preview, answer = stages(image, scribbles, 2)
    assert (preview.state, preview.final, answer.state, answer.final) == ("preview", False, "optimal", True)
    expected = default_segmenter("scribbles")(
        torch.from_numpy(image).unsqueeze(0), scribbles=torch.from_numpy(scribbles.astype(np.int64)).unsqueeze(0)
    )
    np.testing.assert_array_equal(answer.labels, expected.labels[0].numpy())
    assert (answer.labels == labels).mean() > 0.99
    assert (preview.labels == answer.labels).mean() > 0.99


def test_small_images_need_no_preview():
    image, _, scribbles = scene(60)
    (answer,) = stages(image, scribbles, 2)
    assert (answer.state, answer.gap) == ("optimal", 0.0)


def test_more_classes_get_a_bound():
    image, labels, scribbles = scene(200, classes=3)
    preview, answer, bounded = stages(image, scribbles, 3, weight=0.01)
    assert (preview.state, answer.state, bounded.state) == ("preview", "approximate", "bounded")
    assert answer.gap is None
    assert 0 < bounded.gap < 0.05
    np.testing.assert_array_equal(answer.labels, bounded.labels)
    assert (bounded.labels == labels).mean() > 0.98


def test_scribbles_hold_in_every_stage():
    image, _, scribbles = scene(200, classes=3)
    scribbles[3, 5:60] = 2  # against all colours
    scribbles[100, 100] = 0
    drawn = scribbles != 255
    for answer in stages(image, scribbles, 3):
        np.testing.assert_array_equal(answer.labels[drawn], scribbles[drawn])


def test_large_images_are_reduced(monkeypatch):
    monkeypatch.setattr(live, "LARGEST", 10_000)
    image, labels, scribbles = scene(201)
    answer = stages(image, scribbles, 2)[-1]
    assert answer.factor == 3
    assert answer.labels.shape == (67, 67)
    assert (np.kron(answer.labels, np.ones((3, 3), np.uint8)) == labels).mean() > 0.97


@pytest.mark.parametrize(("size", "factor"), [(200, 2), (201, 3), (301, 4)])
def test_previews_of_large_images_are_reduced(monkeypatch, size, factor):
    """The answer is what it is without, at the image's size, and starts from the preview's labels."""
    image, labels, scribbles = scene(size, classes=3)
    expected = stages(image, scribbles, 3)[-1]
    monkeypatch.setattr(live, "_PREVIEW_SHOWN", 10_000)
    monkeypatch.setattr(live, "_PREVIEW", 2_000)
    preview, answer, bounded = stages(image, scribbles, 3)
    assert (preview.state, preview.factor) == ("preview", factor)
    assert preview.labels.shape == (-(-size // factor),) * 2
    enlarged = np.kron(preview.labels, np.ones((factor, factor), np.uint8))[:size, :size]
    assert (enlarged == labels).mean() > 0.97
    assert (answer.factor, bounded.factor) == (1, 1)
    assert (bounded.labels == expected.labels).mean() > 0.999


def test_without_place_things_of_one_color_are_found_anywhere():
    """A second square of the object's colour, far from the stroke, by a background stroke."""
    labels = np.zeros((120, 120), np.uint8)
    labels[10:30, 10:30] = labels[90:110, 90:110] = 1
    grey = 0.3 + 0.09 * labels + np.random.default_rng(0).normal(0, 0.03, labels.shape)
    image = np.repeat(grey[None].astype(np.float32), 3, axis=0)
    scribbles = np.full_like(labels, 255)
    scribbles[18:22, 12:28] = 1
    scribbles[2, 5:115] = scribbles[70, 80:118] = 0
    everywhere = stages(image, scribbles, 2, place=0.0)[-1].labels
    near = stages(image, scribbles, 2)[-1].labels
    assert (everywhere == labels).mean() > 0.99
    assert near[12:28, 12:28].all()
    assert not near[90:110, 90:110].any()


def test_classes_without_scribbles_are_not_answered():
    image, _, scribbles = scene(60)
    assert stages(image, scribbles, 5)[-1].labels.max() == 1


def test_one_class_is_not_enough():
    image, _, scribbles = scene(60)
    scribbles[scribbles == 1] = 255
    (answer,) = stages(image, scribbles, 2)
    assert answer.labels is None
    assert answer.state == "waiting"


def test_seeds_alone():
    """Without colours, boundaries run where the image has edges."""
    image, labels, scribbles = scene(100, noise=0.0)
    answer = stages(image, scribbles, 2, costs="seeds")[-1]
    np.testing.assert_array_equal(answer.labels, labels)


def test_a_network_with_scribbles_as_seeds():
    image, labels, scribbles = scene(80)
    calls = []

    def network():
        calls.append(1)
        return torch.stack([torch.from_numpy(labels == k) for k in (1, 0)]).float().unsqueeze(0) * 6  # wrong everywhere

    live_image = LiveImage(image, network)
    drawn = np.full_like(scribbles, 255)
    answer = stages(live_image, drawn, 2, costs="network", weight=0.1)[-1]
    np.testing.assert_array_equal(answer.labels, 1 - labels)
    answer = stages(live_image, scribbles, 2, costs="network", weight=0.1)[-1]
    np.testing.assert_array_equal(answer.labels[scribbles != 255], scribbles[scribbles != 255])
    assert len(calls) == 1
    with pytest.raises(UsageError, match="knows 2 classes, and there are 3 now"):
        live_image.quick(scribbles, 3, AnswerSettings(costs="network"))


@pytest.mark.parametrize("settings", [{"star": True}, {"convex": True}, {"least": 0.1, "most": 0.2}], ids=str)
def test_constraints_hold(settings):
    """A disc with a hole, and a spot of its colour apart from it."""
    from scipy import ndimage

    size = 48
    rows, columns = np.indices((size, size))
    disc = (rows - 24) ** 2 + (columns - 24) ** 2 < 200
    hole = (rows - 24) ** 2 + (columns - 29) ** 2 < 20
    bright = (disc & ~hole) | ((rows - 40) ** 2 + (columns - 40) ** 2 < 9)
    image = np.repeat(np.where(bright, 0.8, 0.2)[None].astype(np.float32), 3, axis=0)
    scribbles = np.full((size, size), 255, dtype=np.uint8)
    scribbles[24, 14:22], scribbles[2, 2:46] = 1, 0

    def spots(answer):
        return ndimage.label(answer.labels == 1)[1]

    free = stages(image, scribbles, 2)[-1]
    assert spots(free) == 2
    assert not (free.labels[hole] == 1).any()
    (answer,) = stages(image, scribbles, 2, **settings)
    assert answer.state == "approximate"
    region = answer.labels == 1
    if "least" in settings:
        assert 0.1 <= region.mean() <= 0.2
    elif "star" in settings:
        assert spots(answer) == 1
    else:
        assert region[hole].all()
    np.testing.assert_array_equal(answer.labels[scribbles != 255], scribbles[scribbles != 255])


def test_images_of_one_colour():
    scribbles = np.full((30, 30), 255, dtype=np.uint8)
    scribbles[3, 3], scribbles[20, 20] = 0, 1
    image = np.full((1, 30, 30), 0.5, dtype=np.float32)
    for settings in ({}, {"star": True}):
        assert stages(image, scribbles, 2, **settings)[-1].labels.shape == (30, 30)


def test_a_failing_solver_says_so_and_goes_on(capsys):
    image, _, scribbles = scene(60)

    def open_image(index):
        if index == 0:
            raise RuntimeError("broken")
        return LiveImage(image)

    import threading

    heard = threading.Semaphore(0)
    solver = Solver(open_image, lambda index: heard.release())
    try:
        solver.request(0, scribbles, 2, AnswerSettings())
        assert heard.acquire(timeout=60)
        found = solver.latest(0)
        assert (found.answer.state, found.answer.message) == ("problem", "The solver failed: RuntimeError: broken")
        assert "broken" in capsys.readouterr().err
        solver.request(1, scribbles, 2, AnswerSettings())
        assert heard.acquire(timeout=60)
        assert solver.latest(1).answer.state == "optimal"
    finally:
        solver.close()


def test_the_newest_request_counts():
    """A request that has waited while a newer one came is never answered."""
    import threading

    image, _, scribbles = scene(60)
    begun, go_on, heard = threading.Event(), threading.Event(), threading.Semaphore(0)

    def open_image(index):
        begun.set()
        assert go_on.wait(60)
        return LiveImage(image)

    answered = []

    def listen(index):
        answered.append((index, solver.latest(index).request))
        heard.release()

    solver = Solver(open_image, listen)
    try:
        first = solver.request(0, scribbles, 2, AnswerSettings())
        assert begun.wait(60)
        solver.request(1, scribbles, 2, AnswerSettings())
        newest = [solver.request(1, scribbles, 2, AnswerSettings()) for _ in range(5)][-1]
        latest = solver.request(2, scribbles, 2, AnswerSettings())
        go_on.set()
        for _ in range(3):
            assert heard.acquire(timeout=60)
        assert answered == [(0, first), (2, latest), (1, newest)]
    finally:
        solver.close()
