"""The command line: flags to the one function of each command, results to people or machines.

In: arguments. Out: results on stdout, progress and messages on stderr, and an exit code: 0 done, 1 the data or the
model is at fault, 2 usage, 130 interrupted.
Why: the only place that turns an error into an exit code. Flags, defaults and help come from the options class of each
command, so that they cannot differ from the API's. Heavy modules are imported by the commands, so `--help` is quick.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from pomona.errors import OptionError, PomonaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pomona.benchmark import BenchmarkResult, BenchmarkRow
    from pomona.bundle import Bundle
    from pomona.class_names import ClassName
    from pomona.clock import Progress
    from pomona.comparison import Difference
    from pomona.effort import Forecast
    from pomona.enhancement_effect import Effects
    from pomona.evaluation import Evaluation, Metric
    from pomona.explaining import Explanation, FindNearest
    from pomona.findings import Audit
    from pomona.prediction import Answer, Prediction
    from pomona.run_log import Row
    from pomona.teaching import TeachResult
    from pomona.training import TrainResult
    from pomona.trust import Baseline, Evidence, Kept, Promise

EXIT_DATA, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_STEPS = {
    "load": "Opening the run",
    "render": "Rendering photos",
    "read": "Reading photos",
    "look": "Looking at photos",
    "compare": "Comparing photos",
    "split": "Measuring the split",
    "labels": "Doubting labels",
    "shortcuts": "Trying shortcuts",
    "write": "Writing",
    "plan": "Planning",
    "features": "Computing features",
    "fit": "Fitting the head",
    "trust": "Holding out photos",
    "start": "Preparing",
    "range": "Finding the rate",
    "train": "Training",
    "evaluate": "Evaluating",
    "compare_runs": "Evaluating the other",
    "save": "Writing the run",
    "predict": "Predicting",
    "explain": "Finding reasons",
    "ways": "Measuring ways",
}

_OPTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "demo": ("pomona.demo", "DemoOptions", ()),
    "check": ("pomona.checking", "CheckOptions", ("data",)),
    "train": ("pomona.training", "TrainOptions", ("data",)),
    "benchmark": ("pomona.benchmark", "BenchmarkOptions", ("data",)),
}
"""Where the options class of a command is, and which of its fields are arguments."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads for decoding and the network; by default every core.")
]
NameLanguage = Annotated[
    Literal["en", "zh"] | None, typer.Option(help="Show names for people instead of those of the classes.")
]


# --- edge -----------------------------------------------------------------------------------------------------------


def run() -> None:
    """Entry point of the `pomona` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # odd file names must not end the run
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # as file names that are no text are read elsewhere
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    try:
        build_app(asked)(prog_name="pomona")
    except KeyboardInterrupt:  # before a command began, while its modules are loaded
        sys.exit(EXIT_INTERRUPTED)


def build_app(asked: str | None = None) -> typer.Typer:
    """The commands, each with its flags.

    Parameters
    ----------
    asked : str, optional
        Only this command gets its flags, so that the modules of the others are not loaded; all do where not given.

    Returns
    -------
    typer.Typer
        The application.
    """
    app = typer.Typer(name="pomona", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_main)
    for command in _COMMANDS:
        name = command.__name__.replace("_", "-")
        if name in _OPTIONS and asked in (name, None):
            module, class_name, positional = _OPTIONS[name]
            options_class = getattr(importlib.import_module(module), class_name)
            app.command(name)(_guard(_with_flags(command, options_class, positional)))
        elif name in _OPTIONS:
            app.command(name, help=command.__doc__)(lambda: None)
        else:
            app.command(name)(_guard(command))
    return app


def _guard(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line on stderr and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except OptionError as error:
            _fail(str(error), EXIT_USAGE)
        except PomonaError as error:
            _fail(str(error), EXIT_DATA)
        except KeyboardInterrupt:
            kept = "; features computed so far are kept" if command.__name__ in _OPTIONS else ""
            _fail(f"interrupted{kept}", EXIT_INTERRUPTED)
        except BrokenPipeError:  # the reader of stdout has seen enough
            _silence_stdout()
            raise typer.Exit(0) from None
        except OSError as error:  # stdout, on a full disk: the steps below turn their own into a StorageError
            _silence_stdout()
            place = error.filename or "the result"
            _fail(f"could not read or write {place}: {error.strerror or error}", EXIT_DATA)
        except MemoryError:
            _fail("out of memory: close other programs, or use fewer --workers", EXIT_DATA)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the edge: a user gets a line, a developer can ask for the rest
            if os.environ.get("POMONA_TRACEBACK"):
                raise
            name = type(error).__name__
            _fail(f"unexpected {name}: {error} (a fault in Pomona; POMONA_TRACEBACK=1 shows where)", EXIT_DATA)

    return guarded


def _silence_stdout() -> None:
    """Let what stdout still holds go nowhere, so that the exit does not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    from rich.markup import escape

    _console(sys.stderr).print(f"[bold red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _with_flags(
    command: Callable[..., None], options_class: type[Any], positional: Sequence[str]
) -> Callable[..., None]:
    """A command whose flags are the fields of an options class, its own first, and after them those of the command."""

    @functools.wraps(command)
    def run_command(**values: Any) -> None:
        options = options_class(**{name: values.pop(name) for name in list_flags(options_class)})
        command(options, **values)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    found = list_flags(options_class)
    base = options_class.__base__
    inherited = list_flags(base) if base and is_dataclass(base) else {}
    flags = [
        _to_parameter(
            name,
            *found[name],
            is_argument=name in positional,
            panel=getattr(base, "PANEL", None) if name in inherited else None,
        )
        for name in sorted(found, key=inherited.__contains__)
    ]
    run_command.__signature__ = inspect.Signature([*flags, *own])  # type: ignore[attr-defined]
    run_command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*flags, *own]}
    return run_command


def list_flags(options_class: type[Any]) -> Mapping[str, tuple[Any, str, Any]]:
    """Type, help and default of each field of an options class; `inspect.Parameter.empty` where it has none."""
    hints = get_type_hints(options_class, include_extras=True)
    defaults = {name: p.default for name, p in inspect.signature(options_class).parameters.items()}
    return {name: (*get_args(hints[name])[:2], default) for name, default in defaults.items()}


def _to_parameter(
    name: str, kind: Any, text: str, default: Any, *, is_argument: bool, panel: str | None
) -> inspect.Parameter:
    parser = functools.partial(_parse_path, name) if Path in (kind, *get_args(kind)) else None
    if parser:
        functools.update_wrapper(parser, Path)  # help shows its name: PATH
    describe = typer.Argument if is_argument else typer.Option
    description = describe(help=text, parser=parser, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, description]
    )


def _parse_path(name: str, text: str) -> Path:
    """Refuse an empty text, which `Path` would take for the current folder."""
    if text == "":
        raise typer.BadParameter("wanted a path, got an empty text", param_hint=name)
    return Path(text)


# --- commands -------------------------------------------------------------------------------------------------------


def _show_version(wanted: bool) -> None:
    if wanted:
        from pomona import __version__

        typer.echo(f"pomona {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A folder of fruit photos becomes a recogniser you can run."""


def demo(options: Any) -> None:
    """Render fruit photos, train on them, and answer for five new ones: a minute, nothing needed."""
    from pomona.demo import run_demo

    started_s = time.perf_counter()
    with _show_progress() as on_progress:
        result = run_demo(options, on_progress=on_progress)
    out = _console(sys.stdout)
    _print_training(out, result.trained)
    answers = [prediction for _, prediction in result.predictions]
    out.print(_tabulate_predictions(answers, shows=[label for label, _ in result.predictions]))
    out.print(
        "The last photo shows no fruit, and was never learnt: it is to be answered unknown.\n",
        style="dim",
    )
    _print_places(
        out,
        {
            "Photos": result.photos,
            "New photos": result.new_photos,
            "Recogniser": result.trained.bundle.folder,
            "Report": result.trained.bundle.folder / "report.html",
        },
    )
    out.print(f"\nDone in {time.perf_counter() - started_s:.1f} s. Try it on your own photo:", highlight=False)
    out.print(f"  pomona predict {result.trained.bundle.folder} PHOTO", style="bold", highlight=False, soft_wrap=True)


def train(options: Any, *, as_json: Json = False) -> None:
    """Make a recogniser from labelled photos: one folder per class, or a table."""
    from pomona.training import train as train_run

    with _show_progress() as on_progress:
        result = train_run(options, on_progress=on_progress, on_forecast=_print_forecast, on_row=_print_row)
    folder = result.bundle.folder
    if as_json:
        stages = {stage.name: round(stage.seconds, 3) for stage in result.stages}
        extra = {"output": str(folder), "notes": list(result.notes), "seconds": stages}
        counted = {"n_skipped": len(result.dataset.skipped), "interrupted": result.interrupted}
        _print_json({**result.evaluation.to_dict(), **counted, **extra})
    else:
        out = _console(sys.stdout)
        _print_training(out, result)
        _print_places(out, {"Recogniser": folder, "Report": folder / "report.html"})
        if result.dataset.skipped:
            _print_places(out, {"Skipped": folder / "audit.csv"})
    if result.interrupted:
        learnt = f"a recogniser of what was learnt stands in {folder}, and the same with --resume goes on"
        _fail(f"interrupted; {learnt}", EXIT_INTERRUPTED)


def check(options: Any, *, as_json: Json = False) -> None:
    """Look for what spoils a recogniser: copies, leaks, wrong labels, poor photos. Nothing is changed or deleted."""
    from pomona.checking import check_data

    with _show_progress() as on_progress:
        result = check_data(options, on_progress=on_progress)
    if as_json:
        _print_json(result.to_dict())
        return
    out = _console(sys.stdout)
    _print_audit(out, result.audit)
    if result.plan:
        out.print(f"\n{result.plan.describe()}", highlight=False, markup=False)
    _print_places(out, result.places)
    if result.audit.count() and not options.report:
        out.print("\nLook at them in a browser: --report audit.html", style="dim", highlight=False)


def benchmark(options: Any, *, as_json: Json = False) -> None:
    """Measure what transfer learning bought: classic features, a network from scratch and Pomona on your photos."""
    from pomona.benchmark import run_benchmark

    with _show_progress() as on_progress:
        result = run_benchmark(options, on_progress=on_progress, on_row=_print_way)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_benchmark(_console(sys.stdout), result)
    if result.interrupted:
        _fail(f"interrupted; what was measured so far stands in {options.output}", EXIT_INTERRUPTED)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    data: Annotated[str, typer.Argument(help="Labelled photos: folder, table, list, pattern or zip.")],
    *,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Part to take; by default test, else val, else all.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run folder: the same photos, and which of the two is right more often.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Measure a recogniser on labelled photos, alone or against another."""
    from pomona.bundle import load_bundle
    from pomona.bundle_score import compare_scores, evaluate_bundle, load_labelled

    bundle = load_bundle(run, n_workers=workers)
    other = None if against is None else load_bundle(against, n_workers=workers)
    with _show_progress() as on_progress:
        dataset = load_labelled(bundle, data, split=split)
        score = evaluate_bundle(bundle, dataset, on_photo=functools.partial(on_progress, "evaluate"))
        if other is not None:
            known = load_labelled(other, data, split=split)
            held_against = evaluate_bundle(other, known, on_photo=functools.partial(on_progress, "compare_runs"))
            difference = compare_scores(score, held_against)
    if score.n_learnt:
        n_measured = score.evaluation.n
        of_these = f"{score.n_learnt:,} of these {n_measured:,} photos were" if n_measured > 1 else "this photo was"
        _warn(f"{of_these} learnt from: the numbers are too good")
    if other is not None and held_against.n_learnt:
        _warn(f"{held_against.n_learnt:,} of these photos were learnt from by {against}: its numbers are too good")
    if as_json:
        compared = {} if other is None else {"against": held_against.to_dict(), "difference": difference.to_dict()}
        _print_json({**score.to_dict(), **compared})
        return
    out = _console(sys.stdout)
    _print_evaluation(out, score.evaluation, f"photos in {data}")
    _print_trust(out, score.kept, score.baselines, bundle.promise)
    if other is not None:
        _print_difference(out, difference, run, against)
    if score.n_unknown_class:
        names = ", ".join(score.unknown_labels)
        count = "1 photo" if score.n_unknown_class == 1 else f"{score.n_unknown_class:,} photos"
        said = "" if score.found_unknown is None else f"; {score.found_unknown.value:.0%} of them are answered unknown"
        _warn(f"left out, of classes that the recogniser does not know: {count} ({names}){said}")
    for one in score.skipped:
        _warn(f"{one.name}: {one.detail}")


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    photos: Annotated[
        list[str], typer.Argument(help="Photos, folders, patterns; - reads paths from stdin, one a line.")
    ],
    *,
    topk: Annotated[int, typer.Option(min=1, help="How many of the most probable classes to name.")] = 5,
    language: NameLanguage = None,
    workers: Workers = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """Name the fruit in photos. A photo that cannot be used is an error line in its place.

    Stopped halfway, it prints the answers it has.
    """
    from pomona.bundle import load_bundle
    from pomona.dataset import find_photos

    if as_json and as_csv:
        raise OptionError("wanted --json or --csv, got both")
    paths = find_photos(_read_paths(photos))
    bundle = load_bundle(run, n_workers=workers)
    answers: list[Prediction] = []
    interrupt = None
    write_row = _begin_csv() if as_csv else None
    try:
        # Rows on a terminal are progress enough, and bars would break them.
        with (
            _show_progress(as_bars=not (as_csv and sys.stdout.isatty())) as on_progress,
            closing(bundle.predict(paths, n_top=topk)) as predictions,
        ):
            for prediction in predictions:
                answers.append(prediction)
                if write_row:
                    write_row(prediction)
                on_progress("predict", len(answers), len(paths))
    except KeyboardInterrupt as error:
        interrupt = error
    if as_json:
        _print_json([answer.to_dict() for answer in answers])
    elif not as_csv:
        _console(sys.stdout).print(_tabulate_predictions(answers, language=language))
    if interrupt:
        raise interrupt
    if not any(answer.label for answer in answers):
        _fail(_say_none(len(answers)), EXIT_DATA)


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    photos: Annotated[
        list[str], typer.Argument(help="Photos, folders, patterns; - reads paths from stdin, one a line.")
    ],
    *,
    output: Annotated[Path, typer.Option(help="Folder for the pictures, one a photo.")] = Path("explanations"),
    topk: Annotated[int, typer.Option(min=1, help="How many of the most probable classes to name.")] = 5,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Show why: where in a photo its answer comes from, and the photos learnt from that are nearest to it."""
    from pomona.bundle import load_bundle
    from pomona.dataset import find_photos
    from pomona.explaining import explain_photos, write_explanations

    paths = find_photos(_read_paths(photos))
    bundle = load_bundle(run, n_workers=workers)
    rows: list[tuple[Explanation, Path | None]] = []
    with _show_progress() as on_progress:
        explanations = explain_photos(bundle, paths, n_top=topk, find_nearest=_open_neighbours(bundle))
        with closing(explanations), closing(write_explanations(output, explanations)) as written:
            for row in written:
                rows.append(row)
                on_progress("explain", len(rows), len(paths))
    if as_json:
        _print_json([explanation.to_dict(picture) for explanation, picture in rows])
    else:
        out = _console(sys.stdout)
        out.print(_tabulate_explanations(rows))
        if any(picture for _, picture in rows):
            _print_places(out, {"Pictures": output})
    if not any(picture for _, picture in rows):
        _fail(_say_none(len(rows)), EXIT_DATA)


def _open_neighbours(bundle: Bundle) -> FindNearest | None:
    """What finds the nearest photos learnt from; where it cannot be had, a note says why and the rest goes on."""
    from pomona.errors import BundleError
    from pomona.explaining import load_neighbours

    try:
        return load_neighbours(bundle)
    except BundleError as error:
        _warn(f"no photos learnt from are named: {error}")
        return None


def add_class(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    name: Annotated[str, typer.Argument(help='Class, known or new; or its path, such as "Fruit/Apple/Elstar".')],
    photos: Annotated[
        list[str], typer.Argument(help="Photos of it, folders, patterns; - reads paths from stdin, one a line.")
    ],
    *,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Teach a recogniser a further class, or further photos of one it knows, in a blink."""
    from pomona.teaching import add_class as add_to_run

    with _show_progress() as on_progress:
        result = add_to_run(run, name, _read_paths(photos), n_workers=workers, on_progress=on_progress)
    _print_teaching(result, as_json=as_json)


def remove_class(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    name: Annotated[str, typer.Argument(help="Class, or its path.")],
    *,
    as_json: Json = False,
) -> None:
    """Let a recogniser forget a class and its photos, as if it had never learnt them."""
    from pomona.teaching import remove_class as remove_from_run

    with _show_progress() as on_progress:
        result = remove_from_run(run, name, on_progress=on_progress)
    _print_teaching(result, as_json=as_json)


def names(
    run: Annotated[Path | None, typer.Argument(help="Run folder that `pomona train` wrote; none with --list.")] = None,
    *,
    table: Annotated[
        Path | None, typer.Option("--set", help="Table to take names from: class,name_en,name_zh,plu.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Table to write, to be filled in; there is none yet.")] = None,
    list_common: Annotated[bool, typer.Option("--list", help="Print the list of common produce instead.")] = False,
    language: NameLanguage = None,
    as_json: Json = False,
) -> None:
    """Show what people call a recogniser's classes, with their codes at a till, or replace that from a table."""
    from pomona.bundle import load_bundle
    from pomona.class_names import list_common_names, write_class_names
    from pomona.naming import list_names, set_names

    if list_common:
        if run or table or write:
            raise OptionError("wanted --list alone, got a run folder or another option beside it")
        common = list_common_names()
        labels, called = [row.label for row in common], [row.name for row in common]
        content = [
            {"class": row.label, "name_en": name.name_en, "name_zh": name.name_zh, "plu": name.plu}
            | {"aliases": list(row.aliases)}
            for row, name in zip(common, called, strict=True)
        ]
    elif run is None:
        raise OptionError("wanted a run folder, or --list, got neither")
    else:
        if write and os.path.lexists(write):
            raise OptionError(f"write: wanted a place for a new table, something stands at {write}")
        if table:
            result = set_names(run, table)
            bundle = result.bundle
            for note in result.notes:
                _warn(note)
        else:
            bundle = load_bundle(run)
        if write:
            write_class_names(write, bundle.tree, bundle.names)
        labels, called, content = list(bundle.tree.names), list(bundle.names), list_names(bundle.tree, bundle.names)
    if as_json:
        _print_json(content)
        return
    out = _console(sys.stdout)
    out.print(_tabulate_names(labels, called, language))
    if write:
        _print_places(out, {"Table": write})


def _tabulate_names(labels: Sequence[str], called: Sequence[ClassName], language: str | None) -> Table:
    from rich.markup import escape

    columns = {"en": "English", "zh": "Chinese"}
    shown = [language] if language else list(columns)
    table = _table("Class", *(columns[one] for one in shown), "PLU")
    for label, name in zip(labels, called, strict=True):
        cells = (label, *(getattr(name, f"name_{one}") or "" for one in shown), name.plu or "")
        table.add_row(*map(escape, cells))
    return table


def augment(
    data: Annotated[str, typer.Argument(help="Labelled photos: folder, table, list, pattern or zip.")],
    *,
    preview: Annotated[Path, typer.Option(help="Page to write: *.html.")],
    steps: Annotated[
        str,
        typer.Option("--augment", help="none, light, standard, strong, or a list: flip,rotate=0.3,color=0.5@0.8."),
    ] = "standard",
    photos: Annotated[int, typer.Option(min=1, max=24, help="How many photos the page shows.")] = 8,
    seed: Annotated[int, typer.Option(help="Decides which photos, and what happens to them.")] = 0,
    imgsz: Annotated[int, typer.Option(min=8, help="Side of the square the network sees, in pixels.")] = 224,
) -> None:
    """Show what random changes while training do to your photos."""
    from pomona.augmentation import parse_augmentation, show_augmentation
    from pomona.augmentation_preview import preview_augmentation

    chosen = parse_augmentation(steps)
    with _show_progress() as on_progress:
        page = preview_augmentation(
            data, preview, chosen, n_photos=photos, seed=seed, size_px=imgsz, on_progress=on_progress
        )
    for one in page.skipped:
        _warn(f"{one.name}: {one.detail}")
    out = _console(sys.stdout)
    _print_places(out, {"Page": page.path})
    out.print(f"Train with it: --augment {show_augmentation(chosen)}", highlight=False, soft_wrap=True, markup=False)


def enhance(
    data: Annotated[str, typer.Argument(help="Labelled photos: folder, table, list, pattern or zip.")],
    *,
    steps: Annotated[
        str, typer.Option("--enhance", help="Steps to look at, with commas between them.")
    ] = "white-balance,clahe,denoise,gamma=0.8",
    preview: Annotated[Path | None, typer.Option(help="Page to write, photos before and after: *.html.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Train with each step and without, and compare.")] = False,
    part: Annotated[
        Literal["val", "folds"] | None,
        typer.Option(help="Photos to measure on: the val part, or all of train in folds; by default val if there."),
    ] = None,
    effort: Annotated[
        Literal["instant", "fast", "best"], typer.Option(help="How much work goes into the features.")
    ] = "instant",
    photos: Annotated[int, typer.Option(min=1, max=8, help="How many photos the page shows.")] = 8,
    seed: Annotated[int, typer.Option(help="Decides which photos, and the folds.")] = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Show what enhancement does to your photos, and measure whether it helps."""
    from pomona.dataset import load_dataset
    from pomona.effort import choose_precision, measure_machine, plan_embedding
    from pomona.enhancement import parse_enhancement
    from pomona.enhancement_effect import list_variants, measure_effects
    from pomona.enhancement_sheet import choose_photos, write_sheet
    from pomona.files import check_page_place

    chosen = parse_enhancement(steps)
    variants = list_variants(chosen)
    if preview is None and not measure:
        raise OptionError("wanted --preview FILE.html, --measure or both, got neither")
    if preview is not None:
        check_page_place(preview)
    effects = None
    with _show_progress() as on_progress:
        dataset = load_dataset(data, on_photo=functools.partial(on_progress, "read"))
        precision = choose_precision(measure_machine(workers)) if measure else "f32"
        embedding = plan_embedding(effort, precision=precision)
        if measure:
            effects = measure_effects(
                dataset, embedding, variants, part=part, seed=seed, n_workers=workers, on_progress=on_progress
            )
    if preview is not None:
        shown = choose_photos(dataset, embedding.preprocessing, n_photos=photos, seed=seed)
        title = Path(dataset.shown).name
        write_sheet(preview, shown, chosen, embedding.preprocessing, title=title, effects=effects)
    if as_json:
        _print_json({**(effects.to_dict() if effects else {}), "preview": None if preview is None else str(preview)})
        return
    out = _console(sys.stdout)
    if effects:
        _print_effects(out, effects)
    if preview is not None:
        _print_places(out, {"Page": preview})


def _say_none(n_photos: int) -> str:
    if n_photos > 1:
        return f"none of the {n_photos:,} photos could be used"
    return "the photo could not be used" if n_photos else "no photo found there"


def _read_paths(photos: Sequence[str]) -> list[str]:
    return [path for item in photos for path in (_read_lines() if item == "-" else [item]) if path]


def _read_lines() -> list[str]:
    """Paths from stdin; split at newlines alone, since a file name may hold any other sign."""
    return [line.removesuffix("\r") for line in sys.stdin.read().split("\n")]


def embed(
    data: Annotated[str, typer.Argument(help="Labelled photos: folder, table, list, pattern or zip.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet, .npz or .csv.")],
    backbone: Annotated[str, typer.Option(help="Pretrained network; `pomona backbones` lists some.")] = "lite0",
    layer: Annotated[
        str | None, typer.Option(help="Layer to take features from; `pomona backbones NAME` lists them.")
    ] = None,
    imgsz: Annotated[int | None, typer.Option(help="Side of the square that the network sees, 64 to 1024.")] = None,
    pooling: Annotated[
        Literal["average", "second-order"], typer.Option(help="What is taken of the activations.")
    ] = "average",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write the features of photos, from any layer of any network, as a table for other tools."""
    from pomona.backbone import choose_layer, find_backbone
    from pomona.dataset import load_dataset
    from pomona.embedding import Embedding
    from pomona.feature_table import check_table_path, write_features
    from pomona.features import extract_features

    if layer is not None and pooling != "average":
        raise OptionError("wanted --layer or --pooling second-order, got both")
    check_table_path(output)
    found = find_backbone(backbone, size_px=imgsz)
    embedding = Embedding((found if layer is None else choose_layer(found, layer),), pooling)
    with _show_progress() as on_progress:
        dataset = load_dataset(data, min_classes=1, on_photo=functools.partial(on_progress, "read"))
        check_table_path(output, dataset)
        features = extract_features(
            dataset, embedding, n_workers=workers, on_photo=functools.partial(on_progress, "features")
        )
    write_features(output, features)
    for one in features.dataset.skipped:
        _warn(f"{one.name}: {one.detail}")
    n_photos, dim = features.vectors.shape
    if as_json:
        counts = {"n_photos": n_photos, "dim": dim, "n_computed": features.n_computed}
        facts = {"backbone": found.name, "layer": layer, "imgsz": embedding.preprocessing.size_px}
        extra = {"n_skipped": len(features.dataset.skipped), "licence": embedding.licence, "output": str(output)}
        _print_json({**counts, **facts, **extra})
        return
    out = _console(sys.stdout)
    out.print(f"{n_photos:,} photos, {dim:,} numbers each, {features.n_computed:,} computed now.", highlight=False)
    _print_places(out, {"Features": output})


def backbones(
    name: Annotated[str | None, typer.Argument(help="Network whose layers are listed; without one, networks.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """List pretrained networks to choose from, or the layers of one."""
    from pomona.catalogue import SPELLINGS, list_rows

    if name is not None:
        _list_layers(name, as_json=as_json)
        return
    rows = list_rows()
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    table = _table("Name", "Pixels", "Numbers", "MB", "Licence", "ImageNet", "Here")
    for row in rows:
        sizes = ["-" if n is None else f"{n:g}" for n in (row.size_px, row.dim, row.size_mb)]
        table.add_row(row.name, *sizes, row.licence, "-" if row.top1 is None else f"{row.top1:.1%}", row.ready)
    out = _console(sys.stdout)
    out.print(table)
    out.print(SPELLINGS, style="dim", highlight=False)


def _list_layers(name: str, *, as_json: bool) -> None:
    from pomona.backbone import find_backbone, list_layers

    backbone = find_backbone(name)
    layers = list_layers(backbone)
    if as_json:
        rows = [{**layer._asdict(), "dim": layer.dim} for layer in layers]
        _print_json({"name": backbone.name, "licence": backbone.licence, "layers": rows})
        return
    table = _table("Layer", "Gives", "Shape", "Numbers", "Cuts in two")
    for layer in layers:
        shape = " x ".join(str(side) for side in layer.shape)
        table.add_row(layer.name, layer.kind, shape, f"{layer.dim}", "yes" if layer.is_cut else "")
    _console(sys.stdout).print(table)


def fetch(
    name: Annotated[str | None, typer.Argument(help="Name of the set; without one, the sets are listed.")] = None,
    *,
    output: Annotated[Path | None, typer.Option(help="Folder to write; by default data/ and the name.")] = None,
) -> None:
    """Bring a public set of photos by name; needs git and the internet."""
    from pomona.fetch import PHOTO_SETS, fetch_photo_set, find_photo_set

    out = _console(sys.stdout)
    if name is None:
        table = _table("Name", "Photos", "MB", "Licence", "Title")
        for row in PHOTO_SETS:
            table.add_row(row.name, f"{row.n_photos:,}", str(row.size_mb), row.licence, row.title)
        out.print(table)
        return
    photo_set = find_photo_set(name)
    errors = _console(sys.stderr)
    folder = fetch_photo_set(
        photo_set, output, on_line=lambda line: errors.print(line, style="dim", highlight=False, markup=False)
    )
    _print_places(out, {"Photos": folder})
    out.print(f"Train on them: pomona train {folder}", highlight=False, soft_wrap=True, markup=False)


_COMMANDS = (
    demo,
    check,
    train,
    evaluate,
    benchmark,
    predict,
    explain,
    add_class,
    remove_class,
    names,
    augment,
    enhance,
    embed,
    backbones,
    fetch,
)
"""In the order of the help."""


def _print_row(row: Row, n_epochs: int) -> None:
    """A line of the log of training, on stderr."""
    left_s = row.seconds * max(0.0, n_epochs / row.epoch - 1) if row.epoch else 0.0
    parts = [f"epoch {row.epoch:g} of {n_epochs}", f"loss {row.train_loss:.3f}" if row.train_loss is not None else ""]
    if row.val_loss is not None and row.val_accuracy is not None:
        parts.append(f"validation {row.val_loss:.3f}, right {row.val_accuracy:.1%}")
    if row.photos_per_s:
        parts.append(f"{row.photos_per_s:,.0f} photos/s")
    parts.append(f"{left_s / 60:.1f} min left" if left_s >= 60 else f"{left_s:.0f} s left")
    _console(sys.stderr).print("  " + ", ".join(part for part in parts if part), style="dim", highlight=False)


def _print_forecast(forecasts: Sequence[Forecast], taken: Forecast) -> None:
    """What each effort will cost, before it begins; on stderr, as it is no result."""
    out = _console(sys.stderr)
    for one in forecasts:
        work = f"{one.n_photos:,} photos: decoding {one.decode_s:.0f} s, network {one.network_s:.0f} s, "
        mark = "[bold]" if one is taken else "[dim]"
        chosen = "" if len(forecasts) == 1 else ", taken" if one is taken else ""
        out.print(
            f"{mark}{one.effort}: about {one.total_s:.0f} s[/] [dim]({work}fit {one.fit_s:.0f} s, the rest "
            f"{one.start_s:.0f} s){chosen}[/]",
            highlight=False,
            soft_wrap=True,
        )


# --- what people see ------------------------------------------------------------------------------------------------


def _console(stream: Any) -> Console:
    from rich.console import Console

    # A pipe or a file has no width: wide enough that nothing is cut.
    return Console(file=stream, width=None if stream.isatty() else 160)


@contextmanager
def _show_progress(*, as_bars: bool = True) -> Iterator[Progress]:
    """Bars on stderr with rate and time left where a person looks at it; one line a step where not."""
    console = _console(sys.stderr)
    if console.is_terminal and as_bars:
        with _Bars(console) as bars:
            yield bars.update
    else:
        yield _Lines(console).update


class _Bars:
    """One progress bar a step."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        rate = TextColumn("{task.fields[rate]}", style="dim")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, Any] = {}
        self._started_s: dict[str, float] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: str, n_done: int, n_total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(_STEPS[step], total=None, rate="")
            self._started_s[step] = time.perf_counter()
        task = self._tasks[step]
        elapsed_s = time.perf_counter() - self._started_s[step]
        rate = f"{n_done / elapsed_s:,.0f}/s" if n_done > 1 and elapsed_s > 0.2 else ""
        if n_total > 1 or self._progress.tasks[task].total is None:
            self._progress.update(task, completed=n_done, total=n_total or None, rate=rate)


class _Lines:
    """One line when a step is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s: dict[str, float] = {}
        self._done: set[str] = set()

    def update(self, step: str, n_done: int, n_total: int) -> None:
        self._started_s.setdefault(step, time.perf_counter())
        if n_total and n_done == n_total and step not in self._done:
            self._done.add(step)
            seconds = time.perf_counter() - self._started_s[step]
            count = f" {n_total}," if n_total > 1 else ""
            self._console.print(f"{_STEPS[step]}:{count} {seconds:.1f} s", style="dim", highlight=False)


def _warn(message: str) -> None:
    from rich.markup import escape

    _console(sys.stderr).print(f"[yellow]note[/]: {escape(message)}", highlight=False, soft_wrap=True)


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        numeric = heading in {"Score", "Photos", "MB", "Value", "95 % interval", "Right", "Seconds", "CPU-seconds"}
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table


def _print_training(out: Console, result: TrainResult) -> None:
    n_skipped = len(result.dataset.skipped)
    n_train = result.dataset.part("train").n_photos
    skipped = f", {n_skipped} skipped" if n_skipped else ""
    out.print(f"\nLearnt {len(result.dataset.tree)} classes from {n_train} photos{skipped}.", highlight=False)
    _print_evaluation(out, result.evaluation, result.evaluated_on)
    if result.kept:
        _print_trust(out, result.kept, result.baselines, result.bundle.promise, result.evidence)
    for note in result.notes:
        _warn(note)


def _print_audit(out: Console, audit: Audit) -> None:
    from rich.markup import escape

    from pomona.findings import CHECKS

    dataset, counts = audit.dataset, audit.count()
    classes = f" of {len(dataset.tree)} classes" if len(dataset.tree) else ", without labels"
    out.print(f"{dataset.n_photos:,} photos{classes}; {len(dataset.skipped):,} cannot be used.", highlight=False)
    if audit.n_groups:
        out.print(f"{audit.n_grouped:,} of them belong together, in {audit.n_groups:,} groups.", highlight=False)
    table = _table("Check", "Photos", "")
    for name, n_photos in counts.items():
        is_note = CHECKS[name].family == "note"
        table.add_row(CHECKS[name].title, f"{n_photos:,}", CHECKS[name].advice, style="dim" if is_note else None)
    if counts:
        out.print(table)
    else:
        out.print("Nothing was found.")
    if audit.gap:
        random, grouped = audit.gap.random, audit.gap.grouped
        out.print(
            f"A small head is right on {random.value:.1%} where photos are parted at random, and on "
            f"{grouped.value:.1%} ({grouped.low:.1%} to {grouped.high:.1%}) where groups stay whole.",
            highlight=False,
        )
    for remark in audit.remarks:
        mark = "[bold red]![/] " if remark.flagged else "  "
        out.print(f"{mark}{escape(remark.text)}", highlight=False)


def _print_way(row: BenchmarkRow) -> None:
    """A way that is done, on stderr."""
    from rich.markup import escape

    right = f"right on {row.accuracy.value:.1%}" if row.accuracy else f"{row.status}: {row.reason}"
    _console(sys.stderr).print(escape(f"  {row.title}: {right}, {row.seconds:.1f} s"), style="dim", highlight=False)


def _print_benchmark(out: Console, result: BenchmarkResult) -> None:
    from rich.markup import escape

    out.print(f"\n{result.verdict}", style="bold", highlight=False, markup=False)
    skipped = f", {result.n_skipped:,} skipped" if result.n_skipped else ""
    out.print(
        f"Learnt from {result.n_learnt:,} photos of {result.n_classes:,} classes{skipped}; measured on "
        f"{result.n_measured:,} {result.measured_on}.",
        highlight=False,
        markup=False,
    )
    table = _table("Way", "Right", "95 % interval", "Seconds", "CPU-seconds", "MB", "Cached", "")
    for row in result.rows:
        found = row.accuracy
        shares = (f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}") if found else ("-", "")
        memory = "-" if row.memory_mb is None else f"{row.memory_mb:,.0f}"
        cached = f"{row.n_cached:,}" if row.n_cached else "no"
        costs = (f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", memory, cached)
        said = row.detail if row.status == "done" else f"{row.status}: {row.reason}"
        table.add_row(row.title, *shares, *costs, escape(said), style=None if row.status == "done" else "dim")
    out.print(table)
    out.print(
        "Each way in a process of its own, from photos to answers. Where others use the cores too, CPU-seconds are "
        "the figure to trust.",
        style="dim",
    )
    for note in result.notes:
        _warn(note)
    _print_places(out, result.places)


def _print_effects(out: Console, effects: Effects) -> None:
    from pomona.comparison import write_points
    from pomona.enhancement_effect import describe_steps

    out.print(effects.describe(), style="bold", highlight=False, soft_wrap=True)
    out.print(f"Measured on {effects.n:,} {effects.measured_on}; points of 100 against no step.", highlight=False)
    table = _table("Steps", "Value", "Difference", "95 % interval", "Verdict")
    table.add_row(describe_steps(()), f"{effects.accuracy:.1%}", "", "", "")
    for one in effects.effects:
        found = one.difference
        interval = f"{write_points(found.low)} to {write_points(found.high)}"
        name = describe_steps(one.steps)
        table.add_row(name, f"{one.accuracy:.1%}", write_points(found.gain), interval, found.verdict)
    out.print(table)


def _print_teaching(result: TeachResult, *, as_json: bool) -> None:
    for one in result.skipped:
        _warn(f"{one.name}: {one.detail}")
    for note in result.notes:
        _warn(note)
    if as_json:
        _print_json(result.to_dict())
        return
    out = _console(sys.stdout)
    folder = result.bundle.folder
    out.print(result.describe(), highlight=False, soft_wrap=True, markup=False)
    if result.n_photos:
        out.print("The numbers in its report are of before. Measure it again:", highlight=False)
        out.print(f"  pomona evaluate {folder} DATA", style="bold", highlight=False, soft_wrap=True, markup=False)


def _print_evaluation(out: Console, evaluation: Evaluation, evaluated_on: str) -> None:
    from rich.markup import escape

    def percent(metric: Metric) -> tuple[str, str]:
        return f"{metric.value:.1%}", f"{metric.low:.1%} to {metric.high:.1%}"

    out.print(
        f"[bold]Right on {evaluation.accuracy.value:.1%}[/] of {evaluation.n} {escape(evaluated_on)} "
        f"(95 % interval {evaluation.accuracy.low:.1%} to {evaluation.accuracy.high:.1%}).",
        highlight=False,
    )
    table = _table("Measure", "Value", "95 % interval")
    table.add_row("Accuracy", *percent(evaluation.accuracy))
    table.add_row("Balanced accuracy", *percent(evaluation.balanced_accuracy))
    table.add_row("Macro F1", *percent(evaluation.macro_f1))
    table.add_row("Weighted F1", *percent(evaluation.weighted_f1))
    table.add_row("Among the first five", *percent(evaluation.top5))
    for level in evaluation.levels[:-1]:
        table.add_row(f"Accuracy, {level.name} ({level.n_classes} classes)", *percent(level.accuracy))
    out.print(table)


def _show_name(answer: Answer | Prediction, language: str | None) -> str:
    """Name of a class in a language; that of the class itself where there is none."""
    return (language and getattr(answer, f"name_{language}")) or answer.label or ""


def _print_trust(
    out: Console,
    kept: Kept,
    baselines: Sequence[Baseline],
    promise: Promise | None,
    evidence: Evidence | None = None,
) -> None:
    """Simple ways beside it, what was forecast, and whether what is promised holds."""

    def write(metric: Metric) -> str:
        return f"{metric.value:.1%} ({metric.low:.1%} to {metric.high:.1%})"

    said = [f"{_BASELINES[one.name]} {one.accuracy.value:.1%}" for one in baselines]
    if evidence is not None:
        said.insert(0, f"forecast from folds of what was learnt {write(evidence.held_out.accuracy)}")
    if said:
        out.print(f"Beside it: {', '.join(said)}.", highlight=False)
    out.print(
        f"How sure it says it is: off by {kept.after.ece:.1%} on average "
        f"({kept.after.by_chance:.1%} would be chance on as many photos).",
        highlight=False,
    )
    if promise is None or kept.covered is None:
        return
    right = "none is sure" if kept.sure_right is None else f"right on {write(kept.sure_right)}"
    out.print(
        f"Sure answers, promised right on {promise.share:.0%}: {right}; {kept.share_exact:.0%} of photos get a class, "
        f"{kept.share_coarse:.0%} one above it, {kept.share_open:.0%} no sure answer.",
        highlight=False,
    )
    away = "" if kept.turned_away is None else f" Called unknown, though known: {kept.turned_away.value:.1%}."
    out.print(
        f"Shortlists of {kept.shortlist_size:.1f} classes hold the right one on {write(kept.covered)}.{away}",
        highlight=False,
    )


_BASELINES = {"most frequent": "always the most frequent class", "nearest": "the nearest photo's class"}


def _print_difference(out: Console, found: Difference, run: Path, against: Path | None) -> None:
    from pomona.comparison import write_points

    out.print(
        f"[bold]{found.verdict.capitalize()}[/]: on the same {found.n:,} photos, {write_points(found.gain)} points "
        f"({write_points(found.low)} to {write_points(found.high)}); {found.n_better} right in {run} alone, "
        f"{found.n_worse} in {against} alone; p = {found.p_value:.2g}.",
        highlight=False,
        soft_wrap=True,
    )


def _tabulate_predictions(
    answers: Sequence[Prediction], *, shows: Sequence[str] = (), language: str | None = None
) -> Table:
    from rich.markup import escape

    folder, names = _split_common_folder([answer.file for answer in answers])
    table = _table("Photo", *(["Shows"] if shows else []), "Answer", "Score", "Then")
    if folder:
        table.title, table.title_justify = escape(f"Photos in {folder}"), "left"
    for row, answer in enumerate(answers):
        lead = [escape(names[row]), *([escape(shows[row])] if shows else [])]
        if answer.error is not None:
            table.add_row(*lead, f"[red]error[/]: {escape(answer.error)}", "", "")
            continue
        said = answer.answer or answer.top[0]
        others = [one for one in answer.top[:3] if one.label != said.label][:2]
        rest = ", ".join(f"{escape(_show_name(one, language))} {one.score:.1%}" for one in others)
        best = f"[bold]{escape(_show_name(said, language))}[/]"
        if answer.unknown:
            table.add_row(*lead, f"[yellow]{best}[/]", "", f"[dim]nearest: {rest}[/]")
            continue
        doubt = " [yellow]?[/]" if answer.sure is False else ""
        table.add_row(*lead, f"{best}{doubt}", f"{said.score:.1%}", f"[dim]{rest}[/]")
    return table


def _tabulate_explanations(rows: Sequence[tuple[Explanation, Path | None]]) -> Table:
    from rich.markup import escape

    folder, names = _split_common_folder([explanation.prediction.file for explanation, _ in rows])
    table = _table("Photo", "Answer", "Score", "Nearest photos learnt from", "Picture")
    if folder:
        table.title, table.title_justify = escape(f"Photos in {folder}"), "left"
    for name, (explanation, picture) in zip(names, rows, strict=True):
        answer = explanation.prediction
        if picture is None:
            table.add_row(escape(name), f"[red]error[/]: {escape(answer.error or '')}", "", "", "")
            continue
        counts = Counter(one.label for one in explanation.nearest)
        nearest = ", ".join(f"{n_photos} {escape(label)}" for label, n_photos in counts.items())
        said = answer.answer or answer.top[0]
        score = "" if answer.unknown else f"{said.score:.1%}"
        label = f"[bold]{escape(said.label)}[/]"
        table.add_row(escape(name), label, score, f"[dim]{nearest}[/]", escape(picture.name))
    return table


def _split_common_folder(files: Sequence[str]) -> tuple[str, list[str]]:
    """Folder that all files lie in, and their names in it; no folder where there is none or a single file."""
    parents = [Path(file).parent for file in files]
    if len(files) < 2 or len({parent.is_absolute() for parent in parents}) > 1:
        return "", list(files)
    folder = os.path.commonpath(parents)
    if folder in {"", os.curdir, Path(folder).anchor}:
        return "", list(files)
    return folder, [str(Path(file).relative_to(folder)) for file in files]


def _print_places(out: Console, places: Mapping[str, Path]) -> None:
    for name, path in places.items():
        out.print(f"{name:<12} {path}", highlight=False, soft_wrap=True, markup=False)


def _print_json(content: Any) -> None:
    # An encoding that lacks a sign would write it in Python's way, which is no JSON.
    as_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    typer.echo(json.dumps(content, indent=2, ensure_ascii=as_ascii))


def _begin_csv() -> Callable[[Prediction], None]:
    """Write the heading; returns what writes a row, so that a stop loses none of those before it."""
    import csv

    out = sys.stdout  # while bars are shown, `sys.stdout` leads to them
    writer = csv.writer(out, lineterminator="\n")

    def write(row: Sequence[str]) -> None:
        writer.writerow(row)
        out.flush()  # a full disk or a closed pipe shows here, and not after the exit code is settled

    def write_row(answer: Prediction) -> None:
        score = "" if answer.score is None else f"{answer.score:.6f}"
        called = (answer.name_en or "", answer.name_zh or "", answer.plu or "")
        said = answer.answer.label if answer.answer else ""
        sure = "" if answer.sure is None else str(int(answer.sure))
        found = (said, sure, "" if answer.error else str(int(answer.unknown)))
        write((answer.file, answer.label or "", score, answer.error or "", *called, *found))

    write(("file", "label", "score", "error", "name_en", "name_zh", "plu", "answer", "sure", "unknown"))
    return write_row
