"""The report is one complete, escaped, self-contained page, whatever a run has or lacks; its pictures show the data."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from regloss.errors import UsageError
from regloss.metrics.foreground import ForegroundScores
from regloss.metrics.scores import Scores
from regloss.report.advice import Advice
from regloss.report.examples import Example
from regloss.report.page import write_report

CLASSES = ("background", "cup & <saucer>", "a$x_{$b")
COLORS = ((0, 0, 0), (230, 40, 40), (40, 90, 250))


def squares(shift=0, shape=(40, 60)):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[..., 5 + shift : 25 + shift, 5:25] = 1
    labels[..., 10:30, 30 + shift : 50 + shift] = 2
    return labels


def example(name="one", **changes):
    scribble = np.full((40, 60), 255, dtype=np.uint8)
    scribble[14:16, 10:20], scribble[19:21, 35:45], scribble[35:37, 5:55] = 1, 2, 0
    given = {
        "image": np.repeat(np.random.default_rng(0).random((1, 40, 60), dtype=np.float32) / 2, 3, axis=0),  # grey
        "scribble": scribble,
        "proposal": squares(1),
        "prediction": squares(2),
        "label": squares(),
        **changes,
    }
    return Example(name, **given)


def scores(groups=2):
    result = Scores(CLASSES, (2, 4))
    for index in range(groups):
        result.update(torch.from_numpy(squares(index % 7)), torch.from_numpy(squares()), f"patient {index:03d}")
    return result.compute()


def steps(count=120):
    return [
        {"step": n, "epoch": n // 20, "learning-rate": 1e-3, "loss": 2 / (n + 1) + 0.3, "data": 2 / (n + 1), "crf": 0.3}
        for n in range(count)
    ]


def epochs(count=6):
    return [
        {
            "epoch": n,
            "loss": 1 / (n + 1),
            "seconds": 10.0,
            "train-seconds": 6.0,
            "network-seconds": 1.0,
            "solver-seconds": 2.0,
            "proposal-energy-before": 0.5 if n % 2 else float("nan"),
            "proposal-energy-after": 0.4 if n % 2 else float("nan"),
            "train-energy": 0.3 - 0.02 * n,
            "val-energy": 0.4 - 0.02 * n,
            "val-mean-iou": 0.1 * n if n != 5 else 0.35,
            "val-boundary-density": 3.0 - 0.1 * n,
            "test-distance": 20.0 - n,
        }
        for n in range(count)
    ]


def write(folder, **changes):
    given = {
        "title": "run <1>",
        "config_text": 'name = "unet"  # a < b & c',
        "steps": steps(),
        "epochs": epochs(),
        "scores": {"test": scores()},
        "classes": CLASSES,
        "colors": COLORS,
        "examples": [example()],
        "sections": [("Notes & more", "<table><tr><td>a plugin&#39;s own &lt;numbers&gt;</td></tr></table>")],
        **changes,
    }
    return write_report(folder, **given)


BARE = {"config_text": "", "steps": [], "epochs": [], "scores": {}, "examples": [], "sections": []}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"))


class Page(HTMLParser):
    """Text, tags and attributes; fails where tags are not balanced."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.attributes, self.open = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pictures(path):
    return sorted(file.name for file in (path.parent / "report").iterdir())


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_page_is_complete(full):
    assert full.name == "report.html"
    assert pictures(full) == [
        "boundary-density.png",
        "confusion-test.png",
        "energy.png",
        "example-01-one.png",
        "learning-rate.png",
        "loss.png",
        "other-scores.png",
        "proposal-energy.png",
        "scores.png",
        "time.png",
        "trimap.png",
    ]
    text = Page(full).text
    for expected in ("Results", "Training", "Scores by class", "Examples", "Notes & more", "Configuration", "run <1>"):
        assert expected in text
    assert 'name = "unet"  # a < b & c' in text
    assert "a plugin's own <numbers>" in text


def test_page_holds_its_pictures_and_nothing_else(full):
    page = Page(full)
    sources = [value for tag, name, value in page.attributes if name == "src"]
    prefix = "data:image/png;base64,"
    embedded = [base64.b64decode(source.removeprefix(prefix), validate=True) for source in sources]
    stored = [file.read_bytes() for file in (full.parent / "report").iterdir()]
    assert sorted(embedded) == sorted(stored)
    assert all(alternative for tag, name, alternative in page.attributes if name == "alt")
    assert not {"script", "link", "iframe", "a", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", full.read_text(encoding="utf-8"))


def test_headline_numbers(full):
    text, result = Page(full).text, scores()
    assert f"{100 * result['mean-iou']:.1f} %mean IoU" in text
    assert f"{100 * result['mean-foreground-dice']:.1f} %mean foreground Dice" in text
    assert f"{result['boundary-density']:.2f} %boundary length per area" in text
    assert "40.0 %best val mean IoU (epoch 4)" in text
    assert "1 min 0 stime" in text
    assert "20.0 %of it in the solver" in text
    assert "0.1667last loss" in text


def test_tables(full):
    text, result = Page(full).text, scores()
    row = "".join(f"{100 * result[key][CLASSES[1]]:.1f} %" for key in ("iou", "dice", "dice-per-group"))
    assert CLASSES[1] + row in text
    assert "Dice of the groups of test (2), the worst first" in text
    assert text.index("patient 001") < text.index("patient 000")  # the shifted one is the worse


def test_charts_are_of_one_size(full):
    sizes = {pixels(full.parent / "report" / name).shape for name in pictures(full) if name[:4] not in ("conf", "exam")}
    assert len(sizes) == 1
    for name in pictures(full):
        picture = pixels(full.parent / "report" / name)
        assert picture.std() > 5, name  # something is drawn
        frame = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
        assert (frame == 255).all(), name  # and nothing runs over the edge


def test_example_shows_image_scribble_and_labels(full):
    """Per panel: scribbles opaque, regions tinted by the class colour, the image untouched elsewhere."""
    picture = pixels(full.parent / "report" / "example-01-one.png").astype(int)
    frame = (picture == (0xD1, 0xD5, 0xDB)).all(-1)
    sides, bottom = np.flatnonzero(frame.mean(0) > 0.4), np.flatnonzero(frame.mean(1) > 0.8).max()
    assert len(sides) == 10  # five panels
    assert np.ptp(np.diff(sides)[::2]) <= 1  # of equal width
    panels = [picture[:bottom, left:right] for left, right in zip(sides[::2], sides[1::2], strict=True)]

    def count(panel, color):
        return int((np.abs(panel - np.asarray(color)).max(-1) <= 2).sum())

    image, scribble, *dense = panels
    inside = np.s_[5:-5, 5:-5]
    box = [panel[bottom - 190 :][inside] for panel in (image, scribble)]  # below the panels' names
    assert count(box[0], (255, 255, 255)) == 0
    assert count(box[1], (255, 255, 255)) > 500  # the rim, by which a black scribble is seen
    for color in COLORS[1:]:
        assert count(image, color) == 0
        assert count(scribble, color) > 100
        assert all(count(panel, color) > 100 for panel in dense)  # outlines
    tinted = [(panel[..., 0] - panel[..., 2] > 60).sum() for panel in panels]  # red regions
    assert tinted[0] == 0
    assert min(tinted[2:]) > 5 * tinted[1] > 0


def test_without_anything(tmp_path):
    path = write(tmp_path / "new" / "run", **BARE)
    assert pictures(path) == []
    assert Page(path).tags.count("section") == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": steps(1)}, ["learning-rate.png", "loss.png"]),
        (
            {"epochs": epochs(1)},
            ["boundary-density.png", "energy.png", "loss.png", "other-scores.png", "scores.png", "time.png"],
        ),
        ({"epochs": [{"epoch": 0, "val-energy": 0.5}, {"epoch": 1, "val-energy": None}]}, ["energy.png"]),
        ({"epochs": [{"epoch": 0, "loss": 1.0, "seconds": 0.0}]}, ["loss.png"]),
        ({"epochs": [{"epoch": 0, "val-mean-iou": None}]}, []),
        ({"scores": {"val/x": {"accuracy": 0.5, "mean-iou": None}}}, []),
        ({"scores": {"val/x": {"confusion": np.eye(3).tolist()}}}, ["confusion-val-x.png"]),
        ({"examples": [example("../é x", scribble=None, proposal=None, label=None)]}, ["example-01-x.png"]),
    ],
)
def test_with_parts_missing(tmp_path, changes, expected):
    path = write(tmp_path, **{**BARE, **changes})
    assert pictures(path) == expected
    assert Page(path).tags.count("img") == len(expected)


def test_training_without_labels(tmp_path):
    """Losses of further networks have a chart of their own; latent maps are shown, and their histograms by class."""
    found = ForegroundScores(3)
    found.update(torch.from_numpy(squares()), torch.from_numpy(squares()), "one")
    rows = [{"step": n, "loss": 1.0, "region": 1.0, "encoder-loss": 0.1 * n} for n in range(5)]
    latent = np.where(squares(2) == 1, 3.0, -3.0).astype(np.float32)
    plain = {"scribble": None, "proposal": None}
    changes = {
        "steps": rows,
        "scores": {"test": {"unsupervised": found.compute()}},
        "examples": [example("one", **plain, numbers={"latent": latent}), example("two", **plain)],
    }
    path = write(tmp_path, **{**BARE, **changes})
    assert pictures(path) == [
        "example-01-one.png",
        "example-02-two.png",
        "further-losses.png",
        "histogram-image.png",
        "histogram-latent.png",
        "loss.png",
    ]
    text = Page(path).text
    assert "test: best match of each image100.0 %100.0 %100.0 %" in text
    assert "test: less of the border100.0 %" in text
    wide, narrow = (pixels(tmp_path / "report" / f"example-0{n}.png").shape[1] for n in ("1-one", "2-two"))
    assert wide > narrow  # one panel more
    with pytest.raises(UsageError, match="its latent must have the image's size"):
        example("three", numbers={"latent": latent[1:]})


def test_what_to_try_is_said_and_escaped(tmp_path):
    said = [
        Advice("'a < b' is never predicted on test.", "Look at <its> scribbles."),
        Advice("The loss fell.", "Wait."),
    ]
    page = Page(write(tmp_path, **{**BARE, "advice": said}))
    assert "What to try'a < b' is never predicted on test. Look at <its> scribbles.The loss fell. Wait." in page.text
    assert page.tags.count("li") == 2


@pytest.mark.parametrize("first", [15, 0])
def test_a_divergent_run_is_not_hidden(tmp_path, first):
    rows = [{"step": n, "loss": 1.0 if n < first else float("nan")} for n in range(20)]
    text = Page(write(tmp_path, **{**BARE, "steps": rows})).text
    assert f"{20 - first} values of the loss are NaN or infinite" in text
    assert "nanlast loss" in text


def test_undefined_scores(tmp_path):
    result = Scores(CLASSES)
    result.update(torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64), "p")
    text = Page(write(tmp_path, **{**BARE, "scores": {"test": result.compute()}})).text
    assert CLASSES[1] + "n/an/an/a" in text
    assert "n/amean foreground Dice" in text
    assert "pn/a100.0 %n/an/a" in text  # the group's row


def test_long_group_tables_are_cut_and_say_so(tmp_path):
    result = scores(groups=210)
    result.pop("confusion")
    path = write(tmp_path, **{**BARE, "scores": {"test": result}})
    text = Page(path).text
    assert "the worst 200 of 210" in text
    assert len(re.findall(r"patient \d{3}", text)) == 200
    # Groups 0, 7, 14, ... are perfect: 30 of them, of which the last 10 are left out.
    assert "patient 133" in text
    assert "patient 140" not in text
    assert "patient 141" in text


def test_a_volume_shows_its_middle_slice(tmp_path):
    flat = np.zeros((5, 40, 60), dtype=np.uint8)
    middle = flat.copy()
    middle[2, 10:30, 10:30] = 1
    image = np.zeros((1, 5, 40, 60), dtype=np.float32)
    reds = []
    for name, prediction in (("flat", flat), ("middle", middle)):
        volume = example(name, image=image, scribble=None, proposal=None, prediction=prediction, label=None)
        write(tmp_path, **{**BARE, "examples": [volume]})
        picture = pixels(tmp_path / "report" / f"example-01-{name}.png").astype(int)
        reds.append(int((picture[..., 0] - picture[..., 2] > 60).sum()))
    # The legend names a class only where it occurs, so the flat prediction has no red at all.
    assert reds[0] == 0
    assert reds[1] > 5000


def test_arguments_stay_as_they_were(tmp_path):
    given = example(proposal=np.full((40, 60), 255, dtype=np.uint8))
    copies = [array.copy() for array in (given.image, given.scribble, given.proposal, given.prediction, given.label)]
    write(tmp_path, examples=[given], **{key: value for key, value in BARE.items() if key != "examples"})
    after = (given.image, given.scribble, given.proposal, given.prediction, given.label)
    assert all(np.array_equal(copy, array) for copy, array in zip(copies, after, strict=True))


def test_a_second_report_replaces_the_first(tmp_path):
    write(tmp_path, **{**BARE, "title": "first"})
    path = write(tmp_path, **{**BARE, "title": "second"})
    assert "second" in Page(path).text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report", "report.html"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": COLORS[:2]}, "3 classes and 2 colours"),
        ({"examples": [example(prediction=np.full((40, 60), 3, dtype=np.uint8))]}, r"found also \[3\]"),
    ],
)
def test_bad_reports(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path, **{**BARE, **changes})


def test_bad_examples():
    with pytest.raises(UsageError, match=r"'one': its truth must have the image's size \(40, 60\); got \(40, 61\)"):
        example(label=np.zeros((40, 61), dtype=np.uint8))
    with pytest.raises(UsageError, match="2D or 3D"):
        example(image=np.zeros((40, 60), dtype=np.float32))


def test_the_page_says_which_channel_is_shown(tmp_path):
    sentence = "Of 5 channels the first is shown, in grey."
    many = example(image=np.random.default_rng(0).random((5, 40, 60), dtype=np.float32))
    assert sentence in write(tmp_path, **{**BARE, "examples": [many]}).read_text(encoding="utf-8")
    assert "channels" not in write(tmp_path, **{**BARE, "examples": [example()]}).read_text(encoding="utf-8")
