"""``regloss data``: annotations of other programs as a data set, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regloss.errors import UsageError

if TYPE_CHECKING:
    from regloss.io.palettes import Color

app = typer.Typer(
    help="Make a data set of other programs' annotations, or look for what is wrong with one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A file or folder that another program has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the data set; must not exist yet.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="labelme, coco, label-studio, cvat, labelmap, label-tiff, strokes or wsl4mis. [default: recognised]"
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images. [default: beside the annotations]")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="scribbles|labels",
            help="What shapes become. [default: strokes scribbles, areas labels of all pixels]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Classes in their order; others are left out. Of label maps, names of the values."
        ),
    ] = None,
    stroke_width: Annotated[float | None, typer.Option(help="Of lines and points, in pixels. [default: 3]")] = None,
    unlabelled: Annotated[
        int | None,
        typer.Option(min=0, help="Value of label maps where nothing was drawn. [default: 0; of WSL4MIS 4]"),
    ] = None,
    colors: Annotated[
        str | None,
        typer.Option(
            metavar="COLOUR=CLASS,...",
            help="What colours of strokes mean: names or #rrggbb. [default: red=object,blue=background]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call left there.")] = False,
) -> None:
    """Make a data set of annotations: images, scribbles, labels and classes, as the data set "folder" reads them."""
    from regloss.apps.check_data import FolderCheck
    from regloss.apps.import_data import import_annotations
    from regloss.io.foreign.source import Options

    if stroke_width is not None and not 1 <= stroke_width <= 1000:
        raise UsageError(f"--stroke-width is a number of pixels from 1 to 1000; got {stroke_width:g}")
    defaults = Options()
    options = Options(
        images=images,
        stroke_width=defaults.stroke_width if stroke_width is None else stroke_width,
        unlabelled=unlabelled,
        colors=None if colors is None else _colors(colors),
        classes=None if classes is None else _names(classes),
    )
    result = import_annotations(source, output, format=format, options=options, to=part, overwrite=overwrite)
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"\n{result.configuration()}\n")
    for line in FolderCheck(output).findings.lines():
        typer.echo(line)


@app.command()
def check(
    root: Annotated[
        Path, typer.Argument(help="Folder of the data set: images, scribbles, labels, classes.toml; or of nnU-Net.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the data set, such as unlabelled=0; may be repeated."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="The data set: folder, volumes or nnunet. [default: what the files look like]"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw samples as they are understood into a new file.")
    ] = None,
) -> None:
    """Print all that is wrong with a folder of images, scribbles and labels; exit with 1 if something is."""
    from regloss.apps.check_data import Check, FolderCheck, draw_samples
    from regloss.apps.check_volumes import LAYOUTS, VolumesCheck, layout_of
    from regloss.io.outputs import check_new_file
    from regloss.io.toml import toml_value

    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise UsageError(f"--picture is written as PNG; its name must end in .png, got {picture.name!r}")
        check_new_file(picture)
    settings = {}
    for change in changes or ():
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"--set is KEY=VALUE, such as unlabelled=0; got {change!r}")
        settings[key.strip().removeprefix("data.").replace("-", "_")] = toml_value(value)
    chosen = layout_of(root) if layout is None else layout
    if chosen not in LAYOUTS:
        raise UsageError(f"--layout is one of {', '.join(LAYOUTS)}; got {chosen!r}")
    found: Check = FolderCheck(root, settings) if chosen == "folder" else VolumesCheck(root, chosen, settings)
    for line in found.findings.lines():
        typer.echo(line)
    if picture is not None:
        typer.echo(draw_samples(found, picture))
    if found.findings.problems:
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"--classes is a list of different names, such as background,cell; got {text!r}")
    return names


def _colors(text: str) -> dict[Color, str]:
    from PIL import ImageColor

    table: dict[Color, str] = {}
    for entry in text.split(","):
        color, _, name = (part.strip() for part in entry.partition("="))
        try:
            red, green, blue = ImageColor.getrgb(color)[:3]
        except ValueError as error:
            raise UsageError(f"--colors: {color!r} is no colour; write red=object,#0000ff=background") from error
        if not name or (red, green, blue) in table:
            raise UsageError(f"--colors: {entry!r} must be a colour of its own and a class, as in red=object")
        table[red, green, blue] = name
    return table
