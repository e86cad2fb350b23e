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
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from pomona.console import (
    begin_csv,
    make_table,
    open_console,
    print_audit,
    print_benchmark,
    print_difference,
    print_effects,
    print_evaluation,
    print_export,
    print_forecast,
    print_json,
    print_places,
    print_row,
    print_speed,
    print_teaching,
    print_training,
    print_trust,
    print_way,
    show_progress,
    tabulate_explanations,
    tabulate_names,
    tabulate_predictions,
    warn,
)
from pomona.errors import OptionError, PomonaError

if TYPE_CHECKING:
    from pomona.bundle import Bundle
    from pomona.explaining import Explanation, FindNearest
    from pomona.prediction import Prediction

EXIT_DATA, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_OPTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "demo": ("pomona.demo", "DemoOptions", ()),
    "check": ("pomona.checking", "CheckOptions", ("data",)),
    "train": ("pomona.training", "TrainOptions", ("data",)),
    "benchmark": ("pomona.benchmark", "BenchmarkOptions", ("data",)),
    "export": ("pomona.export", "ExportOptions", ("run",)),
    "serve": ("pomona.service.options", "ServeOptions", ("run",)),
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
    inbox = typer.Typer(no_args_is_help=True, help="List the photos that people sent, or make a data set of them.")
    inbox.command("list")(_guard(inbox_list))
    inbox.command("export")(_guard(inbox_export))
    app.add_typer(inbox, name="inbox")
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

    open_console(sys.stderr).print(f"[bold red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)
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
    with show_progress() as on_progress:
        result = run_demo(options, on_progress=on_progress)
    out = open_console(sys.stdout)
    print_training(out, result.trained)
    answers = [prediction for _, prediction in result.predictions]
    out.print(tabulate_predictions(answers, shows=[label for label, _ in result.predictions]))
    out.print(
        "The last photo shows no fruit, and was never learnt: it is to be answered unknown.\n",
        style="dim",
    )
    print_places(
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

    with show_progress() as on_progress:
        result = train_run(options, on_progress=on_progress, on_forecast=print_forecast, on_row=print_row)
    folder = result.bundle.folder
    if as_json:
        stages = {stage.name: round(stage.seconds, 3) for stage in result.stages}
        extra = {"output": str(folder), "notes": list(result.notes), "seconds": stages}
        counted = {"n_skipped": len(result.dataset.skipped), "interrupted": result.interrupted}
        trusted = {
            "kept": result.kept.to_dict() if result.kept else None,
            "baselines": {one.name: one.to_dict() for one in result.baselines},
            "evidence": result.evidence.to_dict() if result.evidence else None,
        }
        print_json({**result.evaluation.to_dict(), **trusted, **counted, **extra})
    else:
        out = open_console(sys.stdout)
        print_training(out, result)
        print_places(out, {"Recogniser": folder, "Report": folder / "report.html"})
        if result.dataset.skipped:
            print_places(out, {"Skipped": folder / "audit.csv"})
    if result.interrupted:
        learnt = f"a recogniser of what was learnt stands in {folder}, and the same with --resume goes on"
        _fail(f"interrupted; {learnt}", EXIT_INTERRUPTED)


def check(options: Any, *, as_json: Json = False) -> None:
    """Look for what spoils a recogniser: copies, leaks, wrong labels, poor photos. Nothing is changed or deleted."""
    from pomona.checking import check_data

    with show_progress() as on_progress:
        result = check_data(options, on_progress=on_progress)
    if as_json:
        print_json(result.to_dict())
        return
    out = open_console(sys.stdout)
    print_audit(out, result.audit)
    if result.plan:
        out.print(f"\n{result.plan.describe()}", highlight=False, markup=False)
    print_places(out, result.places)
    if result.audit.count() and not options.report:
        out.print("\nLook at them in a browser: --report audit.html", style="dim", highlight=False)


def benchmark(
    options: Any,
    *,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of a recogniser: cores that it may use; one unless named.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Of a recogniser: photos to answer for; a few are drawn unless named.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what transfer learning bought on your photos; of a run or an export, how fast it answers."""
    from pomona.benchmark import run_benchmark
    from pomona.speed import SpeedOptions, is_recogniser, measure_speed

    if is_recogniser(options.data):
        _refuse_others(options, type(options)(data=options.data), "the speed of a recogniser is measured")
        asked = SpeedOptions(path=options.data, photos=photos, threads=threads or 1)
        with show_progress() as on_progress:
            speed = measure_speed(asked, on_progress=on_progress)
        if as_json:
            print_json(speed.to_dict())
        else:
            print_speed(open_console(sys.stdout), speed)
        return
    if threads is not None or photos is not None:
        name = "threads" if threads is not None else "photos"
        raise OptionError(f"{name}: wanted it with a run folder or an export, got {options.data}, which is neither")
    with show_progress() as on_progress:
        result = run_benchmark(options, on_progress=on_progress, on_row=print_way)
    if as_json:
        print_json(result.to_dict())
    else:
        print_benchmark(open_console(sys.stdout), result)
    if result.interrupted:
        _fail(f"interrupted; what was measured so far stands in {options.output}", EXIT_INTERRUPTED)


def _refuse_others(options: Any, defaults: Any, where: str) -> None:
    """Refuse options that were set and mean nothing here."""
    for name in list_flags(type(options)):
        if getattr(options, name) != getattr(defaults, name):
            raise OptionError(f"{name.replace('_', '-')}: it has no meaning where {where}; leave it away")


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
    with show_progress() as on_progress:
        dataset = load_labelled(bundle, data, split=split)
        score = evaluate_bundle(bundle, dataset, on_photo=functools.partial(on_progress, "evaluate"))
        if other is not None:
            known = load_labelled(other, data, split=split)
            held_against = evaluate_bundle(other, known, on_photo=functools.partial(on_progress, "compare_runs"))
            difference = compare_scores(score, held_against)
    if score.n_learnt:
        n_measured = score.evaluation.n
        of_these = f"{score.n_learnt:,} of these {n_measured:,} photos were" if n_measured > 1 else "this photo was"
        warn(f"{of_these} learnt from: the numbers are too good")
    if other is not None and held_against.n_learnt:
        warn(f"{held_against.n_learnt:,} of these photos were learnt from by {against}: its numbers are too good")
    if as_json:
        compared = {} if other is None else {"against": held_against.to_dict(), "difference": difference.to_dict()}
        print_json({**score.to_dict(), **compared})
        return
    out = open_console(sys.stdout)
    print_evaluation(out, score.evaluation, f"photos in {data}")
    print_trust(out, score.kept, score.baselines, bundle.promise)
    if other is not None:
        print_difference(out, difference, run, against)
    if score.n_unknown_class:
        names = ", ".join(score.unknown_labels)
        count = "1 photo" if score.n_unknown_class == 1 else f"{score.n_unknown_class:,} photos"
        said = "" if score.found_unknown is None else f"; {score.found_unknown.value:.0%} of them are answered unknown"
        warn(f"left out, of classes that the recogniser does not know: {count} ({names}){said}")
    for one in score.skipped:
        warn(f"{one.name}: {one.detail}")


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
    write_row = begin_csv() if as_csv else None
    try:
        # Rows on a terminal are progress enough, and bars would break them.
        with (
            show_progress(as_bars=not (as_csv and sys.stdout.isatty())) as on_progress,
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
        print_json([answer.to_dict() for answer in answers])
    elif not as_csv:
        open_console(sys.stdout).print(tabulate_predictions(answers, language=language))
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
    with show_progress() as on_progress:
        explanations = explain_photos(bundle, paths, n_top=topk, find_nearest=_open_neighbours(bundle))
        with closing(explanations), closing(write_explanations(output, explanations)) as written:
            for row in written:
                rows.append(row)
                on_progress("explain", len(rows), len(paths))
    if as_json:
        print_json([explanation.to_dict(picture) for explanation, picture in rows])
    else:
        out = open_console(sys.stdout)
        out.print(tabulate_explanations(rows))
        if any(picture for _, picture in rows):
            print_places(out, {"Pictures": output})
    if not any(picture for _, picture in rows):
        _fail(_say_none(len(rows)), EXIT_DATA)


def _open_neighbours(bundle: Bundle) -> FindNearest | None:
    """What finds the nearest photos learnt from; where it cannot be had, a note says why and the rest goes on."""
    from pomona.errors import BundleError
    from pomona.explaining import load_neighbours

    try:
        return load_neighbours(bundle)
    except BundleError as error:
        warn(f"no photos learnt from are named: {error}")
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

    with show_progress() as on_progress:
        result = add_to_run(run, name, _read_paths(photos), n_workers=workers, on_progress=on_progress)
    print_teaching(result, as_json=as_json)


def remove_class(
    run: Annotated[Path, typer.Argument(help="Run folder that `pomona train` wrote.")],
    name: Annotated[str, typer.Argument(help="Class, or its path.")],
    *,
    as_json: Json = False,
) -> None:
    """Let a recogniser forget a class and its photos, as if it had never learnt them."""
    from pomona.teaching import remove_class as remove_from_run

    with show_progress() as on_progress:
        result = remove_from_run(run, name, on_progress=on_progress)
    print_teaching(result, as_json=as_json)


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
                warn(note)
        else:
            bundle = load_bundle(run)
        if write:
            write_class_names(write, bundle.tree, bundle.names)
        labels, called, content = list(bundle.tree.names), list(bundle.names), list_names(bundle.tree, bundle.names)
    if as_json:
        print_json(content)
        return
    out = open_console(sys.stdout)
    out.print(tabulate_names(labels, called, language))
    if write:
        print_places(out, {"Table": write})


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
    with show_progress() as on_progress:
        page = preview_augmentation(
            data, preview, chosen, n_photos=photos, seed=seed, size_px=imgsz, on_progress=on_progress
        )
    for one in page.skipped:
        warn(f"{one.name}: {one.detail}")
    out = open_console(sys.stdout)
    print_places(out, {"Page": page.path})
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
    with show_progress() as on_progress:
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
        print_json({**(effects.to_dict() if effects else {}), "preview": None if preview is None else str(preview)})
        return
    out = open_console(sys.stdout)
    if effects:
        print_effects(out, effects)
    if preview is not None:
        print_places(out, {"Page": preview})


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
    with show_progress() as on_progress:
        dataset = load_dataset(data, min_classes=1, on_photo=functools.partial(on_progress, "read"))
        check_table_path(output, dataset)
        features = extract_features(
            dataset, embedding, n_workers=workers, on_photo=functools.partial(on_progress, "features")
        )
    write_features(output, features)
    for one in features.dataset.skipped:
        warn(f"{one.name}: {one.detail}")
    n_photos, dim = features.vectors.shape
    if as_json:
        counts = {"n_photos": n_photos, "dim": dim, "n_computed": features.n_computed}
        facts = {"backbone": found.name, "layer": layer, "imgsz": embedding.preprocessing.size_px}
        extra = {"n_skipped": len(features.dataset.skipped), "licence": embedding.licence, "output": str(output)}
        print_json({**counts, **facts, **extra})
        return
    out = open_console(sys.stdout)
    out.print(f"{n_photos:,} photos, {dim:,} numbers each, {features.n_computed:,} computed now.", highlight=False)
    print_places(out, {"Features": output})


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
        print_json([row.to_dict() for row in rows])
        return
    table = make_table("Name", "Pixels", "Numbers", "MB", "Licence", "ImageNet", "Here")
    for row in rows:
        sizes = ["-" if n is None else f"{n:g}" for n in (row.size_px, row.dim, row.size_mb)]
        table.add_row(row.name, *sizes, row.licence, "-" if row.top1 is None else f"{row.top1:.1%}", row.ready)
    out = open_console(sys.stdout)
    out.print(table)
    out.print(SPELLINGS, style="dim", highlight=False)


def _list_layers(name: str, *, as_json: bool) -> None:
    from pomona.backbone import find_backbone, list_layers

    backbone = find_backbone(name)
    layers = list_layers(backbone)
    if as_json:
        rows = [{**layer._asdict(), "dim": layer.dim} for layer in layers]
        print_json({"name": backbone.name, "licence": backbone.licence, "layers": rows})
        return
    table = make_table("Layer", "Gives", "Shape", "Numbers", "Cuts in two")
    for layer in layers:
        shape = " x ".join(str(side) for side in layer.shape)
        table.add_row(layer.name, layer.kind, shape, f"{layer.dim}", "yes" if layer.is_cut else "")
    open_console(sys.stdout).print(table)


def fetch(
    name: Annotated[str | None, typer.Argument(help="Name of the set; without one, the sets are listed.")] = None,
    *,
    output: Annotated[Path | None, typer.Option(help="Folder to write; by default data/ and the name.")] = None,
) -> None:
    """Bring a public set of photos by name; needs git and the internet."""
    from pomona.fetch import PHOTO_SETS, fetch_photo_set, find_photo_set

    out = open_console(sys.stdout)
    if name is None:
        table = make_table("Name", "Photos", "MB", "Licence", "Title")
        for row in PHOTO_SETS:
            table.add_row(row.name, f"{row.n_photos:,}", str(row.size_mb), row.licence, row.title)
        out.print(table)
        return
    photo_set = find_photo_set(name)
    errors = open_console(sys.stderr)
    folder = fetch_photo_set(
        photo_set, output, on_line=lambda line: errors.print(line, style="dim", highlight=False, markup=False)
    )
    print_places(out, {"Photos": folder})
    out.print(f"Train on them: pomona train {folder}", highlight=False, soft_wrap=True, markup=False)


def export(options: Any, *, as_json: Json = False) -> None:
    """Write a recogniser as ONNX, OpenVINO, int8, a page or an image; nothing is written unless it answers the same."""
    from pomona.export import export_bundle
    from pomona.export.parity_report import PAGE_NAME

    with show_progress() as on_progress:
        result = export_bundle(options, on_progress=on_progress)
    for note in result.notes:
        warn(note)
    if as_json:
        print_json(result.to_dict())
        return
    out = open_console(sys.stdout)
    print_export(out, result)
    print_places(out, {"Export": result.folder, "Parity": result.folder / PAGE_NAME})


def serve(options: Any) -> None:
    """Answer over HTTP: a page for people, an API for programs. Ends in order at Ctrl-C."""
    from pomona.service.server import serve as serve_run

    serve_run(options)


InboxPlace = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER|URL", help="Run folder, folder of an inbox, or URL of its database.")
]
InboxPhotos = Annotated[
    Path | None, typer.Option("--photos", help="Folder of the photo files; needed beside a URL of PostgreSQL.")
]


def inbox_list(place: InboxPlace, *, photos: InboxPhotos = None, as_json: Json = False) -> None:
    """List the photos that people sent, with what became of them."""
    from collections import Counter

    from pomona.inbox import open_inbox

    with open_inbox(place, photos=photos, create=False) as opened:
        found = opened.list_photos()
    if as_json:
        print_json([photo.to_dict() for photo in found])
        return
    table = make_table("Photo", "Label", "Sent", "State", "Version")
    for photo in found:
        sent, version = f"{photo.added.astimezone():%Y-%m-%d %H:%M}", "" if photo.version is None else photo.version
        table.add_row(photo.sha256[:12], photo.label, sent, photo.state, f"{version}")
    out = open_console(sys.stdout)
    out.print(table)
    states = "".join(f", {n:,} {state}" for state, n in Counter(photo.state for photo in found).items())
    out.print(f"{len(found):,} photo{'' if len(found) == 1 else 's'}{states}.", highlight=False)


def inbox_export(
    place: InboxPlace,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an earlier export is replaced.")],
    state: Annotated[Literal["all", "waiting", "taught"], typer.Option(help="Which photos.")] = "all",
    photos: InboxPhotos = None,
    as_json: Json = False,
) -> None:
    """Make a data set of the photos that people sent: a folder a class, as `pomona train` reads it."""
    from pomona.inbox import export_inbox, open_inbox

    with open_inbox(place, photos=photos, create=False) as opened:
        tree = export_inbox(opened, output, state=None if state == "all" else state)
    if as_json:
        print_json(tree.to_dict())
        return
    for label, folder in tree.renamed.items():
        warn(f"{label} is in the folder {folder}: no folder can be called like it everywhere")
    out = open_console(sys.stdout)
    n_photos, n_classes = tree.n_photos, len(tree.counts)
    photos_text = "1 photo" if n_photos == 1 else f"{n_photos:,} photos"
    out.print(f"{photos_text} of {n_classes} class{'' if n_classes == 1 else 'es'}.", highlight=False)
    print_places(out, {"Photos": tree.folder})


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
    export,
    serve,
)
"""In the order of the help."""
