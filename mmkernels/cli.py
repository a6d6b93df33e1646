"""The command line: `mmkernels info`, `compile`, `bench`, `train clip`, `eval clip`."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ImportError:
    sys.exit("mmkernels: typer is missing: pip install 'mmkernels[train]'")

from mmkernels.data._files import needs_extra
from mmkernels.models._training import CHECKPOINT, Config, Step

if TYPE_CHECKING:
    from mmkernels.data import Icons
    from mmkernels.models.clip import CLIP

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exact pairwise losses in O(N) memory.")
train_app = typer.Typer(no_args_is_help=True, help="Train a model on real data that needs no download.")
eval_app = typer.Typer(no_args_is_help=True, help="Evaluate a trained model on held-out data.")
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")

PICTURE = "retrieval.png"
_Device = Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU if not given.")]


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def info() -> None:
    """Say which versions and devices are here, and what serves them."""
    import torch

    import mmkernels
    from mmkernels._dispatch import serves_triton

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed (needed for GPUs)"
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    rooms = {True: "Triton kernels", False: "tiled PyTorch"}
    rows = {
        "mmkernels": mmkernels.__version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Triton": triton,
        "GPU": ", ".join(gpus) or "none that PyTorch can use",
        "CPU": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "served on a GPU by": "Triton kernels, float64 by tiled PyTorch" if gpus else "-",
        "served on the CPU by": rooms[serves_triton(torch.empty(0))],
        "memory budget": f"{mmkernels.memory_budget() / 2**20:g} MiB of pairwise scores (tiled PyTorch)",
    }
    for name, value in rows.items():
        typer.echo(f"{name:<21} {value}")


@app.command("compile")
def compile_kernels(
    chip: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; all if not given.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Beginning of a kernel's name; all if not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One configuration a kernel instead of all.")] = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Also say what bounds InfoNCE on an H100, and predict its time.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Compile every Triton kernel for chips that need not be here; show registers, spills and instructions."""
    with _told():
        with needs_extra("train"):
            from rich.console import Console
            from rich.progress import track

        from mmkernels import _cases, _predict, aot
        from mmkernels.data._files import write_atomically

        def progress(jobs: Iterable[Any], total: int) -> Iterable[Any]:
            return track(jobs, "Compiling", total, console=Console(stderr=True))

        rows = aot.compile_kernels(chip or aot.CHIPS, kernel, quick, progress)
        text = aot.table(rows)
        if predict:
            tables = (_predict.table(title, aot.launches(case)) for title, case in _cases.PREDICTED.items())
            text = "\n\n".join((text, *tables))
        typer.echo(text)
        if out is not None:
            with write_atomically(out) as temporary:
                temporary.write_text(text + "\n")
        problems = aot.limits(rows)
        for problem in problems:
            typer.secho(problem, err=True, fg="red")
        typer.echo(f"{len(rows)} kernels compiled, {len(problems)} beyond their limits.")
        if problems:
            raise typer.Exit(1)


@app.command()
def bench(
    size: Annotated[int, typer.Option(min=1, help="Pairs in the batch.")] = 8192,
    features: Annotated[int, typer.Option(min=1, help="Width of the embeddings.")] = 512,
    device: _Device = None,
) -> None:
    """Show time and peak memory of one loss step here, info_nce beside the dense formula."""
    with _told():
        import torch

        from mmkernels._side_by_side import LOSSES, cost

        with needs_extra("train"):
            from rich.console import Console
            from rich.table import Table

        console = Console()
        where = torch.device(_device(device))
        table = Table("forward and backward", "seconds", "peak memory")
        for name in LOSSES:
            with console.status(f"One loss step of {name} in a process of its own"):
                found = cost(name, size, features, where)
            seconds, peak = ("-", "not enough memory") if found is None else (f"{found.seconds:.2f}", "-")
            if found is not None and found.peak_bytes is not None:
                peak = f"{found.peak_bytes / 1e6:,.0f} MB"
            table.add_row(name, seconds, peak)
        console.print(f"One loss step of {size:,} pairs, {features} features, float32, {where.type}:")
        console.print(table)


@train_app.command("clip")
def train_clip(
    out: Annotated[Path, typer.Option(help="Directory of the run; a run in it is replaced.")] = Path("runs/clip"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help=f"Passes over the training icons; {Config.epochs} if not given.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help=f"Any size up to the whole set; {Config.batch_size} if not given.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help=f"Peak learning rate; {Config.lr} if not given.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help=f"Of everything random; {Config.seed} if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch of the run.")] = False,
    device: _Device = None,
) -> None:
    """Train a small CLIP on 14,000 icons and their names, in two minutes, and test it on 1,000 others."""
    with _told():
        with needs_extra("train"):
            import matplotlib  # noqa: F401  (needed at the end: say so at the beginning)
            import safetensors  # noqa: F401

        from mmkernels.data import load_icons, split
        from mmkernels.models._training import load, train

        device = _device(device)
        given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
        config = load(out)[1] if resume else Config()
        config = replace(config, **{name: value for name, value in given.items() if value is not None})
        if not resume and (out / CHECKPOINT).exists():
            typer.echo(f"Replacing the run in {out} (--resume would have gone on with it).")
        icons = load_icons()
        parts = split(icons)
        training, validation, test = (icons.select(rows) for rows in parts)
        typer.echo(f"Training on {len(training.names):,} icons, validating on {len(validation.names):,} others.")
        try:
            _follow(train(training, validation, config, out, device, resume), config)
        except KeyboardInterrupt:
            typer.echo(f"Stopped. `mmkernels train clip --out {out} --resume` goes on after the last finished epoch.")
            raise typer.Exit(130) from None
        _report(load(out, device)[0], test, out)


@eval_app.command("clip")
def eval_clip(
    directory: Annotated[Path, typer.Argument(help="Directory of the run, the --out of its training.")],
    device: _Device = None,
) -> None:
    """Test a trained CLIP on the 1,000 held-out icons, and draw what it retrieves."""
    with _told():
        from mmkernels.data import load_icons, split
        from mmkernels.models._training import load

        model, config, history = load(directory, _device(device))
        if len(history) < config.epochs:
            typer.echo(f"This run stopped after {len(history)} of {config.epochs} epochs.")
        icons = load_icons()
        _report(model, icons.select(split(icons).test), directory)


def _follow(steps: Iterator[Step], config: Config) -> None:
    """Show a run's progress, and a line an epoch."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    images, start = 0, time.perf_counter()
    with Progress(*columns) as progress:
        task = progress.add_task("Starting", total=None)
        for step in steps:
            images += step.images
            rate = images / (time.perf_counter() - start)
            at = f"epoch {step.epoch:>2}/{config.epochs}  loss {step.loss:.3f}  temperature {step.temperature:.4f}"
            progress.update(task, description=f"{at}  {rate:,.0f} images/s", completed=step.done, total=step.total)
            if step.recalls is not None:
                to_text, to_image = (" ".join(f"{100 * r:4.1f}" for r in recalls) for recalls in step.recalls)
                progress.console.print(f"{at}  recall@1/5/10 image to text {to_text}  text to image {to_image}")


def _report(model: CLIP, test: Icons, out: Path) -> None:
    """Print recall on the held-out icons against chance, and draw the picture."""
    from rich.console import Console
    from rich.table import Table

    from mmkernels.data import name_ids
    from mmkernels.models._picture import draw
    from mmkernels.models._recall import KS, chance_at_k
    from mmkernels.models._training import evaluate

    ids = name_ids(test.names)
    recalls = evaluate(model, test)
    table = Table("", *(f"recall@{k}" for k in KS), title=f"{len(ids):,} held-out icons and their names")
    for name, values in {
        "image to text": recalls.image_to_text,
        "text to image": recalls.text_to_image,
        "chance": chance_at_k(ids, ids),
    }.items():
        table.add_row(name, *(f"{100 * value:.1f} %" for value in values))
    console = Console()
    console.print(table)
    draw(model, test, out / PICTURE)
    console.print(f"Picture: {out / PICTURE}", soft_wrap=True)


def _device(name: str | None) -> str:
    """The device of that name, or the best one here."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU and a PyTorch built for it; `mmkernels info` says what is here")
    return name


@contextmanager
def _told() -> Iterator[None]:
    """End with the message alone, without a traceback, where it says what to do."""
    try:
        yield
    except typer.Exit:  # a RuntimeError too
        raise
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
