"""What every error promises: one family, a text for people, a reason for machines, a way through a process pool."""

from __future__ import annotations

import inspect
import pickle
from typing import get_args

import pytest

from pomona import errors
from pomona.errors import MissingPackageError, PhotoError, PhotoFault, PomonaError


def error_classes() -> list[type[Exception]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [kind for _, kind in members if issubclass(kind, Exception) and kind.__module__ == errors.__name__]


def test_every_error_belongs_to_the_family_and_is_drawn_in_the_tree() -> None:
    assert len(error_classes()) == 16
    for kind in error_classes():
        assert issubclass(kind, PomonaError)
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("fault", get_args(PhotoFault))
def test_a_photo_error_survives_a_process_boundary(fault: PhotoFault) -> None:
    error = pickle.loads(pickle.dumps(PhotoError(fault, "what was found")))
    assert (type(error), error.fault, str(error)) == (PhotoError, fault, "what was found")


def test_an_unknown_fault_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="fault: wanted one of"):
        PhotoError("sad", "it looks unhappy")  # type: ignore[arg-type]


def test_a_missing_package_names_the_line_to_install_it() -> None:
    error = MissingPackageError("torch", "train", "to convert lite0")
    assert str(error) == "torch is needed to convert lite0, and it is not installed: pip install 'pomona[train]'"
    assert (error.package, error.extra) == ("torch", "train")


def test_a_missing_package_survives_a_process_boundary() -> None:
    error = MissingPackageError("torch", "train", "to convert lite0")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.package, again.extra) == (str(error), error.package, error.extra)
