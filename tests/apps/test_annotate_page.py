"""The page of `regloss annotate` in a browser, with real pointer strokes."""

import os
import shutil

import numpy as np
import pytest
from annotation import served, strokes_of, write_images
from PIL import Image

pytest.importorskip("starlette", reason="needs regloss[annotate]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs regloss[browser]")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 300_000  # milliseconds, on a machine that is busy with other things


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("REGLOSS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}, or the path of one in REGLOSS_BROWSER")
    with playwright.sync_playwright() as started:
        # Whoever is root, as in a container, has no sandbox. The pages are our own.
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """A page of the browser, and what a hand does on it."""

    def __init__(self, context, server):
        self.server = server
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.open()

    def open(self):
        self.page.goto(self.server.address, wait_until="commit")
        self.page.wait_for_selector("html[data-opened]")

    def place(self, x, y):
        """Of a point of the image, as fractions of its size, in the window."""
        box = self.page.locator("#stage").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def draw(self, *points):
        mouse = self.page.mouse
        mouse.move(*self.place(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.place(*point), steps=4)
        mouse.up()

    def saved(self):
        self.page.get_by_text("All saved").wait_for()

    def pixel(self, canvas, x, y):
        """Red, green, blue and alpha of a canvas at a point of the image."""
        return self.page.evaluate(
            """([id, x, y]) => {
                const canvas = document.getElementById(id);
                const place = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
                return [...canvas.getContext("2d").getImageData(...place, 1, 1).data];
            }""",
            [canvas, x, y],
        )


@pytest.fixture
def opened(browser):
    """``opened(server)`` opens a page of it; at the end none of them may have complained."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, has_touch=True)
    pages = []

    def open_page(server):
        pages.append(Page(context, server))
        return pages[-1]

    yield open_page
    errors = [error for page in pages for error in page.errors]
    context.close()
    assert not errors


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "set", size=(40, 60))


@pytest.fixture
def server(root):
    with served(root) as (server, _):
        yield server


def test_two_strokes_a_reload_and_a_training(opened, tmp_path):
    """What a newcomer does, on photographs."""
    import regloss

    pytest.importorskip("skimage", reason="needs regloss[sample]")
    samples = regloss.create("dataset", "sample")
    root = tmp_path / "photographs"
    (root / "images").mkdir(parents=True)
    for name in ("coffee-top-left", "coffee-top-right"):
        pixels = np.moveaxis(samples.load(name).image, 0, -1)
        Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(root / "images" / f"{name}.png")
    label = samples.load("coffee-top-left").label
    inside, outside = (_middle_of(label == k) for k in (1, 0))

    with served(root) as (server, _):
        hand = opened(server)
        page = hand.page
        page.get_by_text("Draw strokes of two classes").wait_for()
        hand.draw(inside, (inside[0] + 0.04, inside[1] + 0.02))
        page.keyboard.press("0")
        hand.draw(outside, (outside[0] + 0.04, outside[1] + 0.02))
        page.wait_for_selector("#state.good")
        assert page.inner_text("#state").startswith("Optimal in")
        assert hand.pixel("answer", *inside)[3] > 0
        assert hand.pixel("answer", *outside)[3] == 0  # the background stays image
        hand.saved()
        assert page.inner_text("#drawn-text") == "1 of 2 drawn on"
        drawn = strokes_of(root / "scribbles/coffee-top-left.png")
        assert set(np.unique(drawn)) == {0, 1, 255}
        page.get_by_role("button", name="Save masks").click()
        page.get_by_text("1 masks in photographs/masks").wait_for()
        mask = strokes_of(root / "masks/coffee-top-left.png")
        np.testing.assert_array_equal(mask[drawn != 255], drawn[drawn != 255])

        hand.open()
        page.locator("#film button").first.click()
        page.wait_for_selector("html[data-opened='0']")
        assert hand.pixel("strokes", *inside)[3] > 0
        page.wait_for_selector("#state.good")
        np.testing.assert_array_equal(strokes_of(root / "scribbles/coffee-top-left.png"), drawn)

        page.get_by_role("button", name="Train on these").click()
        page.get_by_label("Epochs").fill("1")
        page.get_by_label("Weight of the prior").press("Tab")
        page.get_by_text("epochs = 1\n").wait_for()
        page.get_by_role("button", name="Start", exact=True).click()
        page.wait_for_selector("html[data-training='running']")
        page.wait_for_selector("html[data-training='done']")
        assert (root / "runs/annotate-1/model.safetensors").exists()
        page.get_by_role("button", name="Report", exact=True).click()
        page.frame_locator("#report").get_by_text("Configuration").first.wait_for()
        page.keyboard.press("Escape")

        page.get_by_role("button", name="Least sure next").click()
        page.wait_for_selector("html[data-opened='1']")
        page.locator("#costs").select_option("network")
        page.wait_for_selector("#state.good")


def _middle_of(mask):
    """A point deep inside a region, as fractions of the size."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0]


def test_every_tool(opened, server, root):
    hand = opened(server)
    page, path = hand.page, root / "scribbles/i0.png"

    def on_disk():
        hand.saved()
        return strokes_of(path) if path.exists() else np.full((40, 60), 255)

    page.keyboard.press("l")
    hand.draw((0.1, 0.1), (0.9, 0.1))
    line = on_disk()
    assert (line[4, 6:54] == 1).all()
    page.keyboard.press("e")
    hand.draw((0.5, 0.0), (0.5, 0.3))
    erased = on_disk()
    assert erased[4, 30] == 255
    assert erased[4, 10] == 1
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(on_disk(), line)
    page.get_by_role("button", name="Redo").click()
    np.testing.assert_array_equal(on_disk(), erased)
    page.keyboard.press("p")
    page.keyboard.press("0")
    for corner in ((0.2, 0.4), (0.8, 0.4), (0.8, 0.8), (0.2, 0.8)):
        page.mouse.click(*hand.place(*corner))
    page.keyboard.press("c")
    assert (on_disk()[17:31, 13:47] == 0).all()
    page.keyboard.press("b")
    page.mouse.move(*hand.place(0.1, 0.9))
    page.mouse.down()
    page.mouse.move(*hand.place(0.5, 0.9))
    page.keyboard.press("Escape")  # given up
    page.mouse.up()
    assert (on_disk()[36] == 255).all()
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert (on_disk() == 255).all()
    assert not path.exists()
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_zoom_and_moving_draw_nothing(opened, server, root):
    hand = opened(server)
    page = hand.page
    before = page.locator("#stage").bounding_box()
    point = hand.place(0.25, 0.5)
    page.mouse.move(*point)
    page.mouse.wheel(0, -400)
    zoomed = page.locator("#stage").bounding_box()
    assert zoomed["width"] > 1.2 * before["width"]
    assert hand.place(0.25, 0.5) == pytest.approx(point, abs=2)  # what is below the pointer stays there
    page.keyboard.down(" ")
    hand.draw((0.3, 0.5), (0.4, 0.6))
    page.keyboard.up(" ")
    page.mouse.down(button="right")
    page.mouse.move(600, 300)
    page.mouse.up(button="right")
    moved = page.locator("#stage").bounding_box()
    assert moved["x"] != zoomed["x"]
    page.keyboard.press("f")
    assert page.locator("#stage").bounding_box() == pytest.approx(before, abs=1)
    page.get_by_label("Brightness").fill("5")
    assert page.inner_text("#brightness-text") == "200 %"
    assert "brightness(200%)" in page.locator("#picture").get_attribute("style")
    page.get_by_role("button", name="Reset").click()
    assert "brightness" not in page.locator("#picture").get_attribute("style")
    assert not (root / "scribbles").exists()


def test_fingers_and_pens(opened, server, root):
    """One finger draws, two zoom; once a pen has drawn, one finger moves; the pen's other end erases."""
    hand = opened(server)
    page, path = hand.page, root / "scribbles/i0.png"
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def pen(kind, x, y, buttons=1, button="left"):
        event = {"type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "pointerType": "pen"}
        session.send("Input.dispatchMouseEvent", event)

    here, there = hand.place(0.3, 0.3), hand.place(0.5, 0.3)
    touch("touchStart", here)
    touch("touchMove", there)
    touch("touchEnd")
    hand.saved()
    drawn = strokes_of(path)
    assert (drawn[12, 19:29] == 1).all()

    before = page.locator("#stage").bounding_box()
    (x, y), (u, v) = hand.place(0.3, 0.6), hand.place(0.5, 0.6)
    touch("touchStart", (x, y))
    touch("touchStart", (x, y), (u, v))
    touch("touchMove", (x - 60, y), (u + 60, v))
    touch("touchEnd")
    assert page.locator("#stage").bounding_box()["width"] > 1.2 * before["width"]
    page.keyboard.press("f")

    pen("mousePressed", *hand.place(0.2, 0.8))
    pen("mouseMoved", *hand.place(0.4, 0.8))
    pen("mouseReleased", *hand.place(0.4, 0.8), buttons=0)
    hand.saved()
    with_pen = strokes_of(path)
    assert (with_pen[32, 13:23] == 1).all()
    np.testing.assert_array_equal(with_pen[:20], drawn[:20])

    here, there = hand.place(0.3, 0.5), hand.place(0.5, 0.5)
    touch("touchStart", here)
    touch("touchMove", there)
    touch("touchEnd")
    assert page.locator("#stage").bounding_box()["x"] > before["x"] + 50
    np.testing.assert_array_equal(strokes_of(path), with_pen)


def test_all_by_keyboard(opened, server, root):
    hand = opened(server)
    page, path = hand.page, root / "scribbles/i0.png"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"viewport", "Brush", "Eraser", "Polygon, filled", "edit-classes", "size", "overlay", "opacity"} <= reached
    assert {"costs", "weight", "brightness", "contrast", "train", "next", "help-button", "reset-image"} <= reached

    page.locator("#viewport").focus()
    page.keyboard.press("ArrowRight")  # the cross appears in the middle, and goes one pixel further
    assert page.inner_text("#spoken") == "31, 20"
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    hand.saved()
    assert (strokes_of(path)[20, 31:42] == 1).all()
    page.keyboard.press("0")
    assert page.inner_text("#spoken") == "Class 0, background"
    page.keyboard.press("PageDown")
    page.wait_for_selector("html[data-opened='1']")
    assert "i1" in page.title()


def test_everything_has_a_name(opened, server):
    """For those who hear the page: controls and images have names."""
    hand = opened(server)
    nameless = hand.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, summary, iframe, canvas[role], [role]")]
            .filter((each) => !["separator", "status", "alert"].includes(each.getAttribute("role")))
            .filter((each) => !(each.getAttribute("aria-label") || each.getAttribute("aria-labelledby") || each.title
                || each.textContent.trim() || each.labels?.length))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    small = hand.page.evaluate(
        """() => [...document.querySelectorAll("button, select")].filter((each) => each.offsetParent)
            .filter((each) => each.offsetHeight < 32 || each.offsetWidth < 32).map((each) => each.outerHTML)"""
    )
    assert small == []


def test_two_tabs_on_one_image(opened, server, root):
    first, second = opened(server), opened(server)
    first.page.bring_to_front()
    first.draw((0.2, 0.2), (0.4, 0.2))
    first.saved()
    second.page.bring_to_front()
    second.page.get_by_text("Another tab draws on this image").wait_for()
    before = strokes_of(root / "scribbles/i0.png")
    second.draw((0.2, 0.6), (0.4, 0.6))
    np.testing.assert_array_equal(strokes_of(root / "scribbles/i0.png"), before)
    second.page.get_by_role("button", name="Draw here instead").click()
    second.page.wait_for_selector("html[data-held='true']")
    assert second.pixel("strokes", 0.3, 0.2)[3] > 0
    second.draw((0.2, 0.6), (0.4, 0.6))
    second.saved()
    assert (strokes_of(root / "scribbles/i0.png") != 255).sum() > (before != 255).sum()
    first.page.bring_to_front()
    first.page.get_by_text("Another tab draws on this image").wait_for()


def test_files_that_change_below_a_page(opened, server, root):
    """Another program's strokes are kept, and the page's are added."""
    hand = opened(server)
    hand.draw((0.2, 0.2), (0.4, 0.2))
    hand.saved()
    foreign = np.full((40, 60), 255, dtype=np.uint8)
    foreign[35] = 0
    Image.fromarray(foreign).save(root / "scribbles/i0.png")
    hand.draw((0.2, 0.6), (0.4, 0.6))
    hand.page.get_by_text("have been read anew").wait_for()
    hand.saved()
    found = strokes_of(root / "scribbles/i0.png")
    assert (found[35] == 0).all()
    assert (found[24, 13:23] == 1).all()
    assert (found[8] == 255).all()  # the other program has taken that away
    hand.errors.clear()  # the browser says that a request was answered by 409


def test_a_server_that_is_gone(opened, root):
    """Strokes wait, and the page says so."""
    with served(root) as (server, _):
        hand = opened(server)
    hand.draw((0.2, 0.2), (0.4, 0.2))
    hand.page.get_by_text("1 not saved: The server cannot be reached").wait_for()
    hand.errors.clear()


def test_classes_are_edited(opened, server, root):
    hand = opened(server)
    page = hand.page
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Name of the class").nth(1).fill("disc")
    page.get_by_role("button", name="Add a class").click()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("1 to 60 printable letters").wait_for()
    page.get_by_label("Name of the class").nth(2).fill("ring")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("radio", name="ring").click()
    hand.draw((0.2, 0.2), (0.4, 0.2))
    hand.saved()
    assert (strokes_of(root / "scribbles/i0.png") == 2).sum() > 20
    assert "ring" in (root / "classes.toml").read_text()
    hand.errors.clear()  # of the request that was refused


def test_what_is_painted_is_what_is_near(opened, server):
    """Lines and polygons of the page, against distances and even-odd tests of every pixel."""
    hand = opened(server)
    rng = np.random.default_rng(0)
    size = 40
    rows, columns = np.indices((size, size)) + 0.5
    lines = []
    for trial in range(60):
        (x, y), (u, v) = rng.uniform(-10, size + 10, (2, 2)) if trial else [(5.0, 5.0), (5.0, 5.0)]
        lines.append([x, y, x if trial % 7 == 2 else u, y if trial % 7 == 1 else v, rng.uniform(0.75, 9)])
    polygons = rng.uniform(0, size, (10, 5, 2))
    painted_lines, painted_polygons = hand.page.evaluate(
        """async ([size, lines, polygons]) => {
            const { LabelMap } = await import("./page/labels.js");
            const same = (one, other) => one.every((value, i) => value === other[i]);
            const line = ([x, y, u, v, radius]) => {
                const map = new LabelMap(size, size);
                map.data.fill(7, 0, 5 * size);
                const before = map.data.slice();
                map.begin();
                map.line({ x, y }, { x: u, y: v }, radius, 1);
                const after = map.data.slice();
                const { forward, backward } = map.end();
                map.apply(backward);
                const back = same(map.data, before);
                map.apply(forward);
                return [[...after], same(map.data, after), back];
            };
            const polygon = (corners) => {
                const map = new LabelMap(size, size);
                map.polygon(corners.map(([x, y]) => ({ x, y })), 1);
                return [...map.data];
            };
            return [lines.map(line), polygons.map(polygon)];
        }""",
        [size, lines, polygons.tolist()],
    )
    for (x, y, u, v, radius), (painted, forward, backward) in zip(lines, painted_lines, strict=True):
        assert forward
        assert backward
        length = (u - x) ** 2 + (v - y) ** 2
        along = np.clip(((columns - x) * (u - x) + (rows - y) * (v - y)) / max(length, 1e-12), 0, 1)
        distance = np.hypot(columns - x - along * (u - x), rows - y - along * (v - y))
        found = np.array(painted).reshape(size, size) == 1
        clear = np.abs(distance - radius) > 1e-6
        np.testing.assert_array_equal(found[clear], (distance <= radius)[clear], err_msg=f"{x, y, u, v, radius}")
    for corners, painted in zip(polygons, painted_polygons, strict=True):
        found = np.array(painted).reshape(size, size) == 1
        odd = np.zeros((size, size), dtype=bool)
        near = np.zeros((size, size), dtype=bool)
        for (x, y), (u, v) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            crosses = (y <= rows) != (v <= rows)
            odd ^= crosses & (columns < x + (rows - y) / (v - y) * (u - x))
            along = np.clip(((columns - x) * (u - x) + (rows - y) * (v - y)) / ((u - x) ** 2 + (v - y) ** 2), 0, 1)
            near |= np.hypot(columns - x - along * (u - x), rows - y - along * (v - y)) <= 0.76
        np.testing.assert_array_equal(found[~near], odd[~near])
        assert found[odd].all()
