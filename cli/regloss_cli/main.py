"""The regloss command. Thin: it parses, calls the library and prints; heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from regloss.errors import BrokenPlugin, ReglossError, UsageError
from regloss_cli import data, plugins

app = typer.Typer(
    name="regloss",
    help="Regularized losses and layers for image segmentation with few, weak or no labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(plugins.app, name="plugins")

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace a setting of the file; may be repeated."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; must not exist yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that an earlier call left there.")]
Range = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--window",
        metavar="LOW HIGH",
        help="Values of the files that become 0 and 1. [default: by the type; of 16 bits, by the values found]",
    ),
]
Devices = Annotated[int, typer.Option(min=1, help="Processes to spread images over, each with a GPU, or on the CPU.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines to spread images over, on each of which this command runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def _print_message(message: str) -> None:
    typer.echo(message, err=True)


def _version(wanted: bool) -> None:
    if wanted:
        import regloss

        typer.echo(f"regloss {regloss.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the whole program."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, and how.")],
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|all", help="Cross-validation (data.folds): leave out this fold, from 0, or each in turn."
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a network as a TOML file says; leaves a model, scores and a report."""
    silent = quiet or not sys.stderr.isatty()
    if fold is not None:
        from regloss.apps.cross_validation import read_table, train_folds

        output = train_folds(
            config, fold, changes or (), resume=resume, overwrite=overwrite, quiet=silent, callback=_print_message
        )
        typer.echo(read_table(output))
        return
    from regloss.apps.train import train_file

    scores = train_file(
        config, changes or (), resume=resume, overwrite=overwrite, quiet=silent, callback=_print_message
    )
    _print_scores(scores)


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folder of a training; several are compared.")
    ],
    subset: Annotated[str, typer.Option(help="Subset of the runs' data set.")] = "test",
    changes: Changes = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:LEVEL",
            help="Score noisy images too: gaussian:0.1, salt:0.01, pepper:0.01 or salt-and-pepper:0.05, say; "
            "may be repeated.",
        ),
    ] = None,
    trimap: Annotated[
        str | None,
        typer.Option(metavar="WIDTHS", help="Score bands around true boundaries too: 2,4,8,16, say, in pixels."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the scores to this JSON file.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write a CSV file: a row for each run, noise and band around boundaries.")
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option(help="Draw scores over the widths of bands, or over noise, a curve a run: .png, .svg or .pdf."),
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Score trained models on a subset of their data set, and compare them."""
    import json

    from regloss.apps.compare import as_csv, check_chart, compare_runs, draw_chart, parse_widths, table_of
    from regloss.apps.several import is_first_machine
    from regloss.apps.trained_model import check_runs
    from regloss.io.outputs import check_new_file, write_new

    check_runs(runs)
    widths = [] if trimap is None else parse_widths(trimap)
    check_new_file(*filter(None, (output, table, chart)))
    if chart is not None:
        check_chart(chart, widths, noise or ())
    settings = [*(changes or ()), *([f"evaluation.trimap={widths}"] if widths else ())]
    found = compare_runs(runs, subset, noise or (), settings, devices=devices, nodes=nodes, callback=_print_message)
    if not is_first_machine(nodes):
        return
    (first, *others) = found.values()
    if output is not None:
        write_new(output, json.dumps(found if others else first, indent=1))
    if table is not None:
        write_new(table, as_csv(table_of(found)))
    if chart is not None:
        draw_chart(found, chart)
    named = {f"{run}, {name}": of for run, scores in found.items() for name, of in scores.items()}
    _print_scores(named if others else first, widths)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    images: Annotated[Path, typer.Argument(help="An image or a volume, or a folder of them.")],
    output: Output,
    changes: Changes = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="Average with the model of another training; may be repeated."),
    ] = None,
    crf: Annotated[
        bool, typer.Option("--crf", help="Refine what the network says, by mean field on two dense CRFs.")
    ] = False,
    regularizer: Annotated[
        list[str] | None,
        typer.Option(help="With --crf, instead of these: NAME or NAME:weight=5,setting=value; may be repeated."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="With --crf: NAME or NAME:setting=value,... [default: mean-field, 10 steps]")
    ] = None,
    entropy: Annotated[
        float | None, typer.Option(help="With --crf: weight of the entropy, 0 for solvers over labels. [default: 1]")
    ] = None,
    unary: Annotated[
        str | None,
        typer.Option(help="With --crf: stay near to the network's log-probabilities (the default), or to its labels."),
    ] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Write the classes' probabilities too: npy, or tiff with a page a class."),
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="FORMAT", help="How label maps of images are written: png, or tiff with tiles.")
    ] = "png",
    tile: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cut images that are larger into tiles of so many pixels. [default: 1024, if over 16 MP]"
        ),
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an earlier call has left undone.")] = False,
    window: Range = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment images or volumes with a trained model: a label map (PNG, NIfTI) and an overlay for each."""
    from regloss.apps.predict import predict_files
    from regloss.apps.trained_model import check_runs

    check_runs([run, *(others or ())])
    post_process = None
    if crf:
        from regloss.apps.post_process import PostProcess

        post_process = PostProcess.parse(regularizer, solver, entropy, unary)
    elif regularizer or any(given is not None for given in (solver, entropy, unary)):
        raise UsageError("--regularizer, --solver, --entropy and --unary of predict belong to --crf. Give it too.")
    silent = quiet or not sys.stderr.isatty()
    from regloss.io.windows import Window

    count = predict_files(
        [run, *(others or ())],
        images,
        output,
        changes or (),
        post_process=post_process,
        probabilities=probabilities,
        labels=labels,
        tile=tile,
        devices=devices,
        nodes=nodes,
        resume=resume,
        window=None if window is None else Window(*window),
        callback=_print_message,
        overwrite=overwrite,
        quiet=silent,
    )
    written = f"{count} images: label maps in {output / 'labels'}, overlays in {output / 'overlays'}"
    typer.echo(written if probabilities is None else f"{written}, probabilities in {output / 'probabilities'}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    images: Annotated[
        Path, typer.Argument(help="An image, or a folder, to compare on; the first one's size is taken.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .onnx, or .pt2.")],
    format: Annotated[str, typer.Option(help="onnx, or torch-export for torch.export.load.")] = "onnx",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the layer's solver. [default: as the run is configured]")
    ] = None,
    changes: Changes = None,
) -> None:
    """Write a trained model, its layer unrolled to fixed steps, as one file for other programs."""
    from regloss.apps.export import export_run

    made = export_run(run, images, output, format, steps=steps, changes=changes or ())  # type: ignore[arg-type]
    typer.echo(
        f"{output}: {made.bytes / 1e6:.1f} MB, for images of {made.size[1]} x {made.size[0]} pixels.\n"
        f"Compared on {made.images} images: probabilities differ by at most {made.difference:.1e} from the same steps "
        f"in PyTorch, and by {made.to_model:.1e} from the model as it predicts; labels in {made.pixels_changed:.3%} of "
        f"the pixels.\n{1e3 * made.seconds:.0f} ms an image, the model itself {1e3 * made.torch_seconds:.0f} ms."
    )


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="The image, or a volume: NIfTI, NRRD or MetaImage.")],
    output: Output,
    scribbles: Annotated[
        Path | None,
        typer.Option(
            help="PNG of class indices, 255 = unlabelled, of the image's size; for a volume, one on the same grid."
        ),
    ] = None,
    phases: Annotated[int | None, typer.Option(help="Without scribbles: how many phases, 2 or more.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Without scribbles: PNG of phase indices to start from, instead of k-means; or color, "
            "border-contrast, spectral-residual, centre or random.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="NAME or NAME:setting=value,... of a segmenter: chan-vese, region-competition, graph-cut, or "
            "deep-chan-vese, which fits networks to the image; regloss plugins list --kind segmenter has all."
        ),
    ] = None,
    region_force: Annotated[
        str | None, typer.Option(help="How colours speak for labels: NAME or NAME:setting=value,...")
    ] = None,
    regularizer: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:weight=5,setting=value; may be repeated.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="NAME or NAME:setting=value,... [default: alpha-expansion]")
    ] = None,
    unary: Annotated[
        str, typer.Option(help='"color": colour model of the scribbles; "uniform": seeds alone.')
    ] = "color",
    entropy: Annotated[
        float | None, typer.Option(help="Weight of the entropy, for solvers over probabilities. [default: 0]")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Fit statistics and labels in turn, so often at most. [default: 50, scribbles: 1]"),
    ] = None,
    coupling: Annotated[
        str | None,
        typer.Option(help="Of deep-chan-vese: splitting, gradient-descent or layer. [default: splitting]"),
    ] = None,
    post_processing: Annotated[
        str | None,
        typer.Option(
            "--post-processing",
            "--refine",
            help='Of deep-chan-vese: "guided" moves boundaries to edges by the guided filter.',
        ),
    ] = None,
    snapshots: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Of deep-chan-vese: draw the phases after these steps, 0,60,80,100, say; 0 = start."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of k-means, and of all else that is random.")] = 0,
    window: Range = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="Channels along the fourth axis of a volume, which else would be time."),
    ] = None,
    unlabelled: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Value of the scribbles where nothing was drawn, beside 255."),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE=CLASS,...",
            help="What the values of the scribbles, or of --start FILE, mean: 0=0,255=1, or names of classes.toml.",
        ),
    ] = None,
    max_scribbled: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest fraction of the pixels that scribbles may label. [default: a third]"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment one image from scribbles, or into phases by its colours, without a network."""
    from regloss.apps.segment import parse_steps, parse_values, segment_file
    from regloss.io.samples import MAX_SCRIBBLED
    from regloss.io.windows import Window

    result = segment_file(
        image,
        output,
        scribbles=scribbles,
        phases=phases,
        start=start,
        method=method,
        region_force=region_force,
        regularizers=regularizer,
        solver=solver,
        unary=unary,
        entropy=entropy,
        max_rounds=rounds,
        coupling=coupling,
        post_processing=post_processing,
        snapshots=None if snapshots is None else parse_steps(snapshots),
        seed=seed,
        window=None if window is None else Window(*window),
        channels=channels,
        unlabelled=unlabelled,
        values=None if values is None else parse_values(values),
        max_scribbled=MAX_SCRIBBLED if max_scribbled is None else max_scribbled,
        overwrite=overwrite,
        callback=_print_message,
    )
    for line in result.lines():
        typer.echo(line)


@app.command()
def annotate(
    folder: Annotated[Path, typer.Argument(help="Folder with images or volumes, in images/ or in itself.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 = any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, a tablet for one.")
    ] = "127.0.0.1",
    run: Annotated[
        Path | None, typer.Option(help="Output folder of a training, whose predictions are shown and corrected.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open nothing.")] = False,
) -> None:
    """Draw scribbles on the images of a folder, on a local web page, and train on them."""
    from regloss.apps.annotate.command import annotate_folder

    annotate_folder(folder, host=host, port=port, run=run, browser=not no_browser, callback=_print_message)


@app.command("compile")
def compile_kernels(
    families: Annotated[
        list[str] | None, typer.Argument(metavar="[FAMILY]...", help="What to compile. [default: everything]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compile the solvers' kernels ahead of their first use, in an image's build or a cluster's first job."""
    import logging

    from regloss.apps.compile_kernels import compile_kernels

    logging.getLogger("regloss.hints").disabled = True  # this command is the hint
    total = 0.0
    for name, seconds in compile_kernels(families or (), quiet=quiet or not sys.stderr.isatty()):
        typer.echo(f"{name:12} {seconds:6.1f} s")
        total += seconds
    typer.echo(f"{'all':12} {total:6.1f} s")


@app.command()
def demo(
    output: Output = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the sample images, of each run.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on the sample images with partial cross entropy and with the trust region, and compare."""
    from regloss.apps.demo import run_demo

    lines = run_demo(
        output,
        epochs=epochs,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet or not sys.stderr.isatty(),
        callback=_print_message,
    )
    for line in lines:
        typer.echo(line)


def _print_scores(scores: dict[str, Any], widths: Sequence[int] = ()) -> None:
    for subset, values in scores.items():
        numbers = [
            f"{name} {values[name]:.4f}"
            for name in ("mean-iou", "mean-foreground-dice", "accuracy", "boundary-density", "energy")
            if values.get(name) is not None
        ]
        for name in ("hd95", "surface-distance", "surface-dice"):
            if values.get(f"mean-foreground-{name}") is not None:
                unit = "" if name == "surface-dice" else f" {values['distance-unit']}"
                numbers.append(f"{name} {values[f'mean-foreground-{name}']:.4g}{unit}")
        numbers += [f"{name} {value:.4g}" for name, value in values.get("layer", {}).items()]
        typer.echo(f"{subset}: " + "  ".join(numbers))
        for width in map(str, widths):
            band = values["trimap"][width]
            measured = "  ".join(
                f"{name} {band[name]:.4f}" for name in ("mean-iou", "accuracy") if band[name] is not None
            )
            typer.echo(f"{subset}, within {width} pixels of a boundary: {measured}")
        if values.get("confusion") is not None:
            for name, row in zip(values["iou"], values["confusion"], strict=True):
                if not sum(row):
                    typer.echo(f"{subset}: no label is of class {name!r}, so these scores say nothing of it")
        for rule, of in values.get("unsupervised", {}).items():
            if rule != "images":
                measured = "  ".join(f"{name} {value:.4f}" for name, value in of.items())
                typer.echo(f"{subset}, foreground by rule {rule}: {measured}")


def main() -> None:
    """Run the command; exit with 0 when done, 1 when it failed while running, 2 on bad input."""
    try:
        from regloss.hooks import manager

        manager().hook.regloss_commands(app=app)
        app(prog_name="regloss")
    except (UsageError, BrokenPlugin) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except ReglossError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # of the system, which nobody asked about a file: a full disk, or one that is gone
        typer.echo(f"Error: {type(error).__name__}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
