"""Tensors of a torch weights file, read without torch.

In: a file that `torch.save` wrote before torch 1.6, and its hash. Out: its float32 tensors by name, as arrays.
Why: torch takes two seconds to import and 700 MB to install, and all that is wanted of it is a table of numbers. Such a
file is five pickles and then raw storages. The first four may name four things; whatever else they name is an error,
and nothing is unpickled before the content's hash is that of the pinned file.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.errors import BackboneError
from pomona.files import hash_bytes, storage_errors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""What the unpickler raises on bytes that are no pickle, or that end early."""


class _Storage(NamedTuple):
    """A run of numbers that follows the pickles."""

    key: str
    dtype: np.dtype[Any]
    n_numbers: int


class _View(NamedTuple):
    """A tensor: a storage, and where in it each element stands; the fields of `torch._utils._rebuild_tensor_v2`."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any

    def read(self, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Copy the tensor out of its storage; a tensor that does not lie inside it is a ValueError."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or last >= self.storage.n_numbers:
            raise ValueError(f"a tensor of shape {self.shape} does not lie inside its {self.storage.n_numbers} numbers")
        run = storages[self.storage.key][self.offset :]
        steps = [step * run.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(run, self.shape, steps, writeable=False).copy(order="C")


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("torch._utils", "_rebuild_tensor_v2"): _View,
}
"""All that a pickle in such a file may name, and what stands in for it; none of it can do anything but hold values."""


class _TensorUnpickler(pickle.Unpickler):
    """Reads the pickles of a weights file, and refuses any other."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which weights have no use for")
        return _NAMES[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _place, n_numbers, whole = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or whole is not None:
            raise pickle.UnpicklingError(f"wanted a whole storage, got {kind!r}")
        return _Storage(str(key), dtype, int(n_numbers))


def read_weights(path: Path, sha256: str) -> dict[str, NDArray[np.float32]]:
    """Read the float32 tensors of a weights file in the format of torch before 1.6.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        Content hash that it must have; it is not parsed otherwise.

    Returns
    -------
    dict of str to ndarray, float32
        Tensors by name, in the file's order, C-contiguous. Tensors of integers (counts of batches) are left out.

    Raises
    ------
    BackboneError
        If the content is another, or is not such a file.
    StorageError
        If it cannot be read.

    References
    ----------
    .. [1] PyTorch, ``torch/serialization.py``, ``_legacy_save`` and ``_legacy_load``.
    """
    with storage_errors(f"read the weights {path}"):
        content = path.read_bytes()
    found = hash_bytes(content)
    if found != sha256:
        raise BackboneError(
            f"the weights are not the pinned ones: wanted sha256 {sha256}, got {found} in {path}; "
            "install the package again"
        )
    try:
        return _parse(content)
    except _MALFORMED as error:
        reason = str(error) or type(error).__name__
        raise BackboneError(
            f"the weights {path} are not a file of torch before 1.6 with tensors alone: {reason}"
        ) from error


def _parse(content: bytes) -> dict[str, NDArray[np.float32]]:
    stream = io.BytesIO(content)
    magic, protocol, system, views, keys = (_TensorUnpickler(stream).load() for _ in range(5))
    if (magic, protocol, system["little_endian"]) != (_MAGIC, _PROTOCOL, True):
        raise ValueError(f"wanted magic number {_MAGIC:#x}, protocol {_PROTOCOL}, little endian")
    views = {name: view for name, view in views.items() if isinstance(view, _View)}
    wanted = {view.storage.key: view.storage for view in views.values()}
    storages = {}
    position = stream.tell()
    for key in keys:
        storage = wanted[key]
        n_numbers = int.from_bytes(content[position : position + 8], "little")
        if n_numbers != storage.n_numbers:
            raise ValueError(f"wanted {storage.n_numbers} numbers in storage {key}, got {n_numbers}")
        storages[key] = np.frombuffer(content, storage.dtype, n_numbers, position + 8)
        position += 8 + n_numbers * storage.dtype.itemsize
    return {name: view.read(storages) for name, view in views.items() if view.storage.dtype.kind == "f"}
