"""A trained model as one file of tensor operations, for programs without regloss: ONNX, or PyTorch's own format.

The network and its input's normalisation, and the layer behind it, unrolled to a fixed number of steps. What is written
is compared with the model itself on real images before anyone relies on it.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regloss.apps.trained_model import TrainedModel, load
from regloss.errors import MissingDependency, UsageError
from regloss.io.folders import index_folder
from regloss.io.images import as_image, read_stored
from regloss.io.outputs import check_new_file, replacing
from regloss.training.model import check_run

Format = Literal["onnx", "torch-export"]
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
COMPARED = 5  # images


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares.

    Attributes:
        size: (H, W) of the images that it takes.
        images: how many of the given ones are of that size and were compared.
        difference: largest difference of a probability to the same steps in PyTorch.
        to_model: largest difference of a probability to the model as it predicts, whose solver stops at convergence.
        pixels_changed: fraction of the pixels to which the model gives another label.
        bytes: of the file.
        seconds: for an image, of the exported model; the median over the images, which both took in turn.
        torch_seconds: of the model itself.
    """

    size: tuple[int, int]
    images: int
    difference: float
    to_model: float
    pixels_changed: float
    bytes: int
    seconds: float
    torch_seconds: float


def export_run(
    run: Path,
    images: Path,
    output: Path,
    format: Format = "onnx",
    *,
    steps: int | None = None,
    changes: Sequence[str] = (),
) -> Exported:
    """Write a run's model as one file, and compare it on images.

    It takes an image (1, C, H, W) float32 with values in [0, 1] and gives logits (1, K, H, W), which are
    log-probabilities where a layer stands behind the network.

    Args:
        run: output folder of a training.
        images: an image, or a folder of images, whose first one's size the model will take.
        output: the file to write, ending in .onnx or .pt2.
        format: "onnx", or "torch-export" for `torch.export.load`.
        steps: of the layer's solver; None = as the run's configuration says.
        changes: ``section.key=value`` settings that replace the run's.

    Raises:
        UsageError: no such run or images; a layer that cannot be exported; the file exists, or ends otherwise.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
    """
    check_run(run)
    if format not in SUFFIXES:
        raise UsageError(f"The format is one of {', '.join(SUFFIXES)}; got {format!r}.")
    if output.suffix != SUFFIXES[format]:
        raise UsageError(f"A file of the format {format} ends in {SUFFIXES[format]}; got {output}.")
    if format == "onnx":
        _check_onnx()
    check_new_file(output)
    model = load(run, changes, device="cpu")
    if model.config.data.component_settings().get("reduce", 1) != 1:
        raise UsageError(
            f"The run {run} reduces its images (data.reduce), which an exported model does not do. Reduce them first, "
            "and export with --set data.reduce=1."
        )
    found = _images(images, model)
    size = (found[0].shape[2], found[0].shape[3])
    alike = [image for image in found if image.shape == found[0].shape][:COMPARED]
    segmenter = model.model.segmenter
    fixed = copy.deepcopy(segmenter)
    if fixed.layer is not None:
        fixed.layer = fixed.layer.unrolled(steps)
    elif steps is not None:
        raise UsageError(f"The run {run} has no layer, so there are no steps to fix.")
    fixed.eval().float().requires_grad_(False)
    with torch.no_grad():
        fixed(found[0])  # says what cannot be, which the exporter would bury in its own words
        program = torch.export.export(fixed, (found[0],), strict=False)
        run_exported = _write(program, output, format)
        outputs, seconds = _in_turn((run_exported, fixed, segmenter.eval()), alike)
    return Exported(
        size,
        len(alike),
        max(_difference(made, same) for made, same, _ in outputs),
        max(_difference(made, own) for made, _, own in outputs),
        max(float((made.argmax(1) != own.argmax(1)).float().mean()) for made, _, own in outputs),
        output.stat().st_size,
        seconds[0],
        seconds[2],
    )


def _images(path: Path, model: TrainedModel) -> list[Tensor]:
    files = [path] if path.is_file() else list(index_folder(path).values())[: 4 * COMPARED] if path.is_dir() else []
    if not files:
        raise UsageError(f"{path} is neither an image nor a folder with images.")
    loaded = (as_image(read_stored(file), file, model.channels, model.model.window) for file in files)
    return [torch.from_numpy(image).unsqueeze(0) for image in loaded]


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as cause:
        raise MissingDependency(f"ONNX needs more packages: pip install 'regloss[onnx]' ({cause}).") from cause


def _write(program: torch.export.ExportedProgram, output: Path, format: Format) -> Callable[[Tensor], Tensor]:
    """The file, written, and what runs it."""
    if format == "torch-export":
        with replacing(output) as temporary, temporary.open("wb") as file:
            torch.export.save(program, file)
        read: nn.Module = torch.export.load(output).module()
        return read
    import onnxruntime

    # It would tell of torchvision's operators, and of its own progress.
    loggers = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    with replacing(output) as temporary:
        temporary.write_bytes(made.model_proto.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as it is compared with
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _in_turn(
    networks: Sequence[Callable[[Tensor], Tensor]], images: Sequence[Tensor]
) -> tuple[list[list[Tensor]], list[float]]:
    """Logits of each image by each network, and each network's median seconds for an image after its first call.

    They take turns, so that all of them meet the same machine.
    """
    for network in networks:
        network(images[0])
    outputs, seconds = [], []
    for image in images:
        row, times = [], []
        for network in networks:
            began = time.perf_counter()
            row.append(network(image))
            times.append(time.perf_counter() - began)
        outputs.append(row)
        seconds.append(times)
    return outputs, [median(times) for times in zip(*seconds, strict=True)]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.softmax(1) - other.softmax(1)).abs().max())
