"""Everything that Pomona raises on purpose.

In: what was wanted, where, what was found. Out: one exception class per kind of fault, with a message a user can act
on.
Why: only the edge (`cli`) turns an error into an exit code, so every layer below raises one of these::

    PomonaError
    ├── OptionError            an option has a value that cannot be used              (exit code 2)
    ├── MissingPackageError    an optional package is not installed; names the pip line
    ├── DataError              the photos or their list cannot be used
    │   └── PhotoError         one photo cannot be used; carries a machine-readable reason
    ├── BackboneError          the pretrained network or its weights cannot be used
    │   └── NotFiniteError     a network gave numbers that are not finite
    ├── FitError               a head cannot be fitted on these features
    ├── TuneError              gradient training cannot begin, go on or end with something usable
    │   └── DivergedError      the loss became no number
    ├── BundleError            a folder is not a usable bundle
    │   ├── BundleDamagedError its files do not match their hashes
    │   └── BundleFormatError  it was written by a newer Pomona
    ├── ExportError            an export cannot be made, or does not answer as the bundle does
    ├── ServiceError           the service cannot start, such as where its port is in use
    └── StorageError           a file could not be read or written: full disk, no permission
"""

from __future__ import annotations

from typing import Literal, get_args

PhotoFault = Literal[
    "not_found",
    "no_permission",
    "empty",
    "not_an_image",
    "unsupported",
    "corrupt",
    "truncated",
    "too_many_pixels",
    "no_pixels",
    "too_many_scans",
    "took_too_long",
    "too_much_memory",
]
"""Why one photo cannot be used."""


class PomonaError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user."""


class OptionError(PomonaError):
    """An option has a value that cannot be used."""


class MissingPackageError(PomonaError):
    """An optional package is not installed.

    Parameters
    ----------
    package : str
        Name of the package that is missing.
    extra : str
        Extra of Pomona that brings it.
    purpose : str
        What it is needed for, as the end of the sentence "... is needed".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed {purpose}, and it is not installed: pip install 'pomona[{extra}]'")
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str, str, str]]:
        return (type(self), (self.package, self.extra, self.purpose))


class DataError(PomonaError):
    """The photos or their list cannot be used."""


class PhotoError(DataError):
    """One photo cannot be used.

    Parameters
    ----------
    fault : PhotoFault
        Machine-readable reason.
    detail : str
        What was wanted and what was found.

    Examples
    --------
    >>> error = PhotoError("empty", "the file has no bytes")
    >>> error.fault, str(error)
    ('empty', 'the file has no bytes')
    """

    def __init__(self, fault: PhotoFault, detail: str) -> None:
        if fault not in get_args(PhotoFault):
            raise ValueError(f"fault: wanted one of {get_args(PhotoFault)}, got {fault!r}")
        super().__init__(detail)
        self.fault: PhotoFault = fault

    def __reduce__(self) -> tuple[type[PhotoError], tuple[PhotoFault, str]]:
        return (type(self), (self.fault, str(self)))


class BackboneError(PomonaError):
    """The pretrained network or its weights cannot be used."""


class NotFiniteError(BackboneError):
    """A network gave NaN or infinity; a quantised one may, and float32 is then the way out."""


class FitError(PomonaError):
    """A head cannot be fitted on these features."""


class TuneError(PomonaError):
    """Gradient training cannot begin, go on or end with something usable."""


class DivergedError(TuneError):
    """The loss became no number before there was anything good to keep."""


class BundleError(PomonaError):
    """A folder is not a usable bundle."""


class BundleDamagedError(BundleError):
    """The files of a bundle do not match the hashes it was written with."""


class BundleFormatError(BundleError):
    """A bundle has a format number that this version does not know."""


class ExportError(PomonaError):
    """An export cannot be made, or does not answer as the bundle does."""


class StorageError(PomonaError):
    """A file could not be read or written: a full disk, no permission, a path in the way."""


class ServiceError(PomonaError):
    """The service cannot start: its port is in use, its processes do not begin."""
