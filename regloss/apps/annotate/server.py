"""The routes of the page; what they may be asked by whom is the business of `guard`.

    GET   /                              the page
    GET   /page/NAME                     its style sheet and modules
    GET   /api/set                       images, classes, and how far one is
    POST  /api/classes                   rename, recolour, add
    GET   /api/images/N/picture          as PNG or JPEG; thumbnail likewise
    GET   /api/images/N/scribbles        a line of JSON, then the labels, a byte a pixel
    POST  /api/images/N/claim, release   which tab draws on it
    POST  /api/images/N/strokes          draw, and save
    POST  /api/images/N/answer           ask for another answer
    GET   /api/images/N/answer?after=M   wait for an answer after the M-th: a line of JSON, then its labels
    GET   /api/training                  how it stands; POST starts it
    POST  /api/training/plan, stop       the configuration; the end
    GET   /api/training/report           the report of the last run
    GET   /api/masks                     how saving answers stands; POST begins it
    GET   /api/uncertainty               of the network, by image; POST begins to compute it

N is a number, so that no request ever names a file.
"""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from regloss.apps.annotate.guard import REPORT_POLICY, TooLarge
from regloss.apps.annotate.image_set import ImageSet
from regloss.apps.annotate.leases import Leases
from regloss.apps.annotate.live import Answer, AnswerSettings, LiveImage
from regloss.apps.annotate.masks import Masks
from regloss.apps.annotate.scribbles import OutOfDate, Scribbles, Stroke
from regloss.apps.annotate.solver import Published, Solver
from regloss.apps.annotate.training import Training, TrainingSettings
from regloss.apps.annotate.uncertainty import Uncertainty
from regloss.apps.trained_model import TrainedModel, load
from regloss.errors import FailedWrite, ReglossError, UsageError
from regloss.io.palettes import Color
from regloss.io.types import LabelMap

_MOST_TABS = 64  # whose settings are remembered
_WAIT = 20.0  # seconds that a request for an answer waits
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Tab = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
_Body = TypeVar("_Body", bound=BaseModel)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Claim(_Message):
    """A tab wants to draw on an image."""

    tab: Tab
    take: bool = False


class StrokeMessage(_Message):
    """See `regloss.apps.annotate.scribbles.Stroke`."""

    tab: Tab
    number: Annotated[int, Field(ge=0, lt=2**53)]
    revision: Annotated[int, Field(ge=0, lt=2**53)]
    runs: list[Annotated[int, Field(ge=0, lt=2**53)]]


class AnswerMessage(_Message):
    """A tab wants an answer by these settings, now and for its next strokes."""

    tab: Tab
    settings: dict[str, Any]


class ClassMessage(_Message):
    """One class."""

    name: str
    color: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class ClassesMessage(_Message):
    """All classes, in the order of their indices."""

    classes: Annotated[list[ClassMessage], Field(min_length=2, max_length=255)]


class Annotation:
    """One folder that is being annotated: what all requests share.

    Args:
        images: the folder's.
        run: a trained model's folder, for its predictions; None = there is none yet.

    Raises:
        UsageError: ``run`` is none, or its classes are others.
    """

    def __init__(self, images: ImageSet, run: Path | None = None) -> None:
        self.images = images
        self.scribbles = Scribbles(images, self._drawn)
        self.leases = Leases()
        self.training = Training(images, self.scribbles, self._trained)
        self.uncertainty: Uncertainty | None = None
        self.masks = Masks(images)
        self._model: TrainedModel | None = None
        self._run = ""
        self._model_lock = threading.Lock()
        self._lock = threading.Lock()
        self._settings: OrderedDict[str, AnswerSettings] = OrderedDict()
        self._listeners: list[Callable[[int], object]] = []
        if run is not None:
            self._use(run)
        self.solver = Solver(self._open_image, self._answered)

    @property
    def run(self) -> str:
        """Name of the run whose network is used; "" where there is none."""
        return self._run

    def close(self) -> None:
        """End what runs beside the server."""
        self.training.stop()
        self.solver.close()
        self.masks.close()
        if self.uncertainty is not None:
            self.uncertainty.close()

    def listen(self, callback: Callable[[int], object]) -> None:
        """Have ``callback`` called, in some thread, with the index of each image that has a new answer."""
        self._listeners.append(callback)

    def draw(self, index: int, stroke: Stroke) -> tuple[int, int]:
        """See `Scribbles.draw`; the answer is asked for as soon as it is known what is drawn.

        Returns:
            The image's revision, and the number of the request for an answer.
        """
        revision = self.scribbles.draw(index, stroke)
        return revision, self.solver.newest(index)

    def ask(self, index: int, tab: str, settings: AnswerSettings) -> int:
        """Ask for an answer to an image's scribbles as they are, by ``settings``, which the tab's strokes keep.

        Returns:
            The number of the request.
        """
        with self._lock:
            self._settings[tab] = settings
            self._settings.move_to_end(tab)
            while len(self._settings) > _MOST_TABS:
                self._settings.popitem(last=False)
        return self._request(index, self.scribbles.read(index)[0], tab)

    def save_masks(self, settings: AnswerSettings) -> None:
        """Write the answers by ``settings`` for all images that are drawn on; of a network, for all images.

        Raises:
            UsageError: nothing is drawn, or an earlier call is still at it.
            FailedWrite: no folder can be made.
        """
        classes, everything = len(self.images.classes.names), settings.costs == "network"
        wanted = [index for index in range(len(self.images.ids)) if everything or self.scribbles.is_drawn(index)]

        def answer(index: int) -> Answer:
            return self._open_image(index).settled(self.scribbles.read(index)[0], classes, settings)

        self.masks.begin(wanted, answer)

    def begin_uncertainty(self) -> None:
        """Compute how sure the network is of each image.

        Raises:
            UsageError: there is no network.
        """
        if self._model is None:
            raise UsageError("There is no trained network yet: train on what is drawn, or start with --run.")
        if self.uncertainty is not None:
            self.uncertainty.close()
        self.uncertainty = Uncertainty(self.images, self.logits)

    def logits(self, index: int) -> Tensor:
        """Of the network, (1, K, H, W)."""
        model = self._model
        assert model is not None
        image = self.images.image_for(index, model.channels, model.model.window, model.intensities())
        with self._model_lock:  # a network is used by one thread at a time
            return model.logits(image, self.images.source(index).spacing)

    def _drawn(self, index: int, labels: LabelMap, stroke: Stroke) -> None:
        self._request(index, labels, stroke.tab)

    def _request(self, index: int, labels: LabelMap, tab: str) -> int:
        with self._lock:
            settings = self._settings.get(tab)
        return self.solver.request(index, labels, len(self.images.classes.names), settings or AnswerSettings())

    def _open_image(self, index: int) -> LiveImage:
        return LiveImage(self.images.image(index), None if self._model is None else lambda: self.logits(index))

    def _answered(self, index: int) -> None:
        for listener in self._listeners:
            listener(index)

    def _trained(self, run: Path) -> None:
        self._use(run)
        self.solver.forget_images()

    def _use(self, run: Path) -> None:
        model = load(run)
        if len(model.classes) != len(self.images.classes.names):
            raise UsageError(
                f"The network in {run} knows {len(model.classes)} classes ({', '.join(model.classes)}), and "
                f"{self.images.root} has {len(self.images.classes.names)}: {', '.join(self.images.classes.names)}. "
                "They must be the same."
            )
        self._model, self._run = model, run.name


def application(annotation: Annotation, is_closing: Callable[[], bool] = lambda: False) -> Starlette:
    """The routes.

    Args:
        annotation: what they serve.
        is_closing: whether the server is about to end, so that nobody waits any longer.
    """
    page = _page_files()
    bell = _Bell()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        bell.begin()
        annotation.listen(bell.ring)
        yield

    def index_of(request: Request) -> int:
        index: int = request.path_params["index"]
        if index >= len(annotation.images.ids):
            raise UsageError(f"There is no image {index}; there are {len(annotation.images.ids)}.")
        return index

    def home(request: Request) -> Response:
        return Response(page["index.html"], media_type=_TYPES[".html"])

    def page_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in page:
            return _problem(404, "There is no such file.")
        return Response(page[name], media_type=_TYPES[Path(name).suffix])

    def whole_set(request: Request) -> Response:
        images = annotation.images
        return JSONResponse(
            {
                "folder": images.root.name,
                "images": [
                    {"name": name, "height": height, "width": width, "drawn": annotation.scribbles.is_drawn(index)}
                    for index, (name, (height, width)) in enumerate(zip(images.ids, images.sizes, strict=True))
                ],
                "classes": _classes(images),
                "notes": images.notes,
                "run": annotation.run,
                "settings": AnswerSettings().model_dump(),
            }
        )

    async def change_classes(request: Request) -> Response:
        message = await _read(request, ClassesMessage)
        colors: list[Color] = [(each.color[0], each.color[1], each.color[2]) for each in message.classes]
        await run_in_threadpool(annotation.images.change_classes, [each.name for each in message.classes], colors)
        return JSONResponse({"classes": _classes(annotation.images)})

    def picture(request: Request) -> Response:
        data, media_type = annotation.images.picture(index_of(request))
        return Response(data, media_type=media_type)

    def thumbnail(request: Request) -> Response:
        return Response(annotation.images.thumbnail(index_of(request)), media_type="image/jpeg")

    def scribbles(request: Request) -> Response:
        labels, revision = annotation.scribbles.read(index_of(request))
        return _labels({"revision": revision}, labels)

    async def claim(request: Request) -> Response:
        index, message = index_of(request), await _read(request, Claim)
        held = annotation.leases.claim(index, message.tab, take=message.take)
        _, revision = await run_in_threadpool(annotation.scribbles.read, index)
        return JSONResponse({"held": held, "revision": revision})

    async def release(request: Request) -> Response:
        index, message = index_of(request), await _read(request, Claim)
        annotation.leases.release(index, message.tab)
        return JSONResponse({})

    async def strokes(request: Request) -> Response:
        index, message = index_of(request), await _read(request, StrokeMessage)
        if not annotation.leases.claim(index, message.tab):
            return _problem(409, "Another tab draws on this image.", reason="held")
        stroke = Stroke(message.tab, message.number, message.revision, message.runs)
        revision, number = await run_in_threadpool(annotation.draw, index, stroke)
        drawn = annotation.scribbles.is_drawn(index)
        return JSONResponse({"revision": revision, "request": number, "drawn": drawn})

    async def ask(request: Request) -> Response:
        index, message = index_of(request), await _read(request, AnswerMessage)
        settings = _validated(AnswerSettings, message.settings)
        return JSONResponse({"request": await run_in_threadpool(annotation.ask, index, message.tab, settings)})

    async def answer(request: Request) -> Response:
        index, after = index_of(request), request.query_params.get("after", "0")
        if not after.isascii() or not after.isdigit() or len(after) > 15:
            raise UsageError(f"after is the number of an answer; got {after!r}.")
        waited = 0.0
        while waited < _WAIT and not is_closing():
            heard = bell.next()
            found = annotation.solver.latest(index)
            if found is not None and found.number > int(after):
                return _answer(found)
            waited += 0.5
            try:
                await asyncio.wait_for(heard.wait(), 0.5)
            except asyncio.TimeoutError:
                continue
        return Response(status_code=204)

    def training_state(request: Request) -> Response:
        state = annotation.training.state()
        reported = annotation.training.report() is not None
        return JSONResponse({**asdict(state), "report": reported, "network": annotation.run})

    async def plan(request: Request) -> Response:
        settings = await _read(request, TrainingSettings)
        return JSONResponse({"configuration": await run_in_threadpool(annotation.training.plan, settings)})

    async def start(request: Request) -> Response:
        settings = await _read(request, TrainingSettings)
        await run_in_threadpool(annotation.training.start, settings)
        return JSONResponse(asdict(annotation.training.state()))

    def stop(request: Request) -> Response:
        annotation.training.stop()
        return JSONResponse({})

    def report(request: Request) -> Response:
        path = annotation.training.report()
        if path is None:
            return _problem(404, "There is no report yet.")
        return Response(path.read_bytes(), media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    def masks_state(request: Request) -> Response:
        return JSONResponse(asdict(annotation.masks.state))

    async def save_masks(request: Request) -> Response:
        message = await _read(request, AnswerMessage)
        await run_in_threadpool(annotation.save_masks, _validated(AnswerSettings, message.settings))
        return JSONResponse(asdict(annotation.masks.state))

    def uncertainty(request: Request) -> Response:
        found = annotation.uncertainty
        if found is None:
            return JSONResponse({"found": {}, "images": len(annotation.images.ids), "problem": ""})
        return JSONResponse({"found": found.found, "images": len(annotation.images.ids), "problem": found.problem})

    def begin_uncertainty(request: Request) -> Response:
        annotation.begin_uncertainty()
        return JSONResponse({})

    image = "/api/images/{index:int}"
    app = Starlette(
        routes=[
            Route("/", home),
            Route("/page/{name}", page_file),
            Route("/api/set", whole_set),
            Route("/api/classes", change_classes, methods=["POST"]),
            Route(f"{image}/picture", picture),
            Route(f"{image}/thumbnail", thumbnail),
            Route(f"{image}/scribbles", scribbles),
            Route(f"{image}/claim", claim, methods=["POST"]),
            Route(f"{image}/release", release, methods=["POST"]),
            Route(f"{image}/strokes", strokes, methods=["POST"]),
            Route(f"{image}/answer", ask, methods=["POST"]),
            Route(f"{image}/answer", answer),
            Route("/api/training", training_state),
            Route("/api/training", start, methods=["POST"]),
            Route("/api/training/plan", plan, methods=["POST"]),
            Route("/api/training/stop", stop, methods=["POST"]),
            Route("/api/training/report", report),
            Route("/api/masks", masks_state),
            Route("/api/masks", save_masks, methods=["POST"]),
            Route("/api/uncertainty", uncertainty),
            Route("/api/uncertainty", begin_uncertainty, methods=["POST"]),
        ],
        exception_handlers={
            OutOfDate: lambda request, error: _problem(409, str(error), reason="changed"),
            FailedWrite: lambda request, error: _problem(507, str(error)),
            UsageError: lambda request, error: _problem(400, str(error)),
            ReglossError: lambda request, error: _problem(500, str(error)),
            TooLarge: lambda request, error: _problem(413, str(error), headers={"connection": "close"}),
            404: lambda request, error: _problem(404, "There is nothing of that name."),
            405: lambda request, error: _problem(405, "It is not asked that way."),
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to addresses without the token
    return app


class _Bell:
    """Wakes who waits for an answer, from other threads."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """What is set at the next ring."""
        return self._event

    def ring(self, index: int) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        rung, self._event = self._event, asyncio.Event()
        rung.set()


def _page_files() -> dict[str, bytes]:
    """The files of the page by name, read once: no path is ever made of a request."""
    folder = resources.files("regloss.apps.annotate") / "page"
    return {item.name: item.read_bytes() for item in folder.iterdir() if Path(item.name).suffix in _TYPES}


async def _read(request: Request, model: type[_Body]) -> _Body:
    """The body of a request, as JSON of that kind.

    Raises:
        UsageError: it is something else.
    """
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as cause:
        raise UsageError(f"A request's body is JSON; got something else ({cause}).") from cause
    return _validated(model, content)


def _validated(model: type[_Body], content: Any) -> _Body:
    try:
        return model.model_validate(content)
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UsageError(f"The request says something that means nothing: {where}: {first['msg']}.") from cause


def _classes(images: ImageSet) -> list[dict[str, Any]]:
    known = zip(images.classes.names, images.classes.colors, strict=True)
    return [{"name": name, "color": list(color)} for name, color in known]


def _answer(published: Published) -> Response:
    answer = published.answer
    about = {"number": published.number, "request": published.request, **asdict(answer)}
    del about["labels"]
    return _labels(about, answer.labels)


def _labels(about: dict[str, Any], labels: LabelMap | None) -> Response:
    """A line of JSON and a label map, a byte a pixel; compressed, since it is mostly of one value."""
    if labels is not None:
        about = {**about, "height": labels.shape[0], "width": labels.shape[1]}
    data = json.dumps(about).encode() + b"\n" + (b"" if labels is None else labels.tobytes())
    return Response(
        zlib.compress(data, 1), media_type="application/octet-stream", headers={"content-encoding": "deflate"}
    )


def _problem(status: int, problem: str, reason: str = "", headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"problem": problem, "reason": reason}, status_code=status, headers=headers)
