"""Sessions for those who like nox better than make; both install what requirements.lock names, `peers` aside."""

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]


def install(session: nox.Session) -> None:
    """Everything from the lock, and Pomona itself as it stands here."""
    session.install("--requirement", "requirements.lock")
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")


@nox.session
def lint(session: nox.Session) -> None:
    session.install("--constraint", "requirements.lock", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    install(session)
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    install(session)
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Every command and example in the documents, and every example in the code."""
    install(session)
    session.run("pytest", "tests/test_readme.py", "src")


@nox.session
def bench(session: nox.Session) -> None:
    install(session)
    session.run("python", "bench/spine.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Networks of torchvision and timm, then the same photos with fastai and timm; only when asked for by name.

    Several GB of packages, half an hour. Both cannot be in the lock: torchvision needs a torch of its own build.
    """
    session.install("--requirement", "bench/peers/requirements.txt")
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")
    session.run("pytest", "tests/test_pretrained.py", "tests/test_layers.py", "tests/test_catalogue.py")
    session.run("python", "bench/peers/run.py", *session.posargs)
