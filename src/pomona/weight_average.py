"""Averages of the weights that a training run went through.

In: the weights after a step or an epoch. Out: averaged weights; a state in tensors that a stopped run goes on from.
Why: an average is flatter, and mostly better, than the last weights, whose noise is that of the last few batches. It
knows no network: tensors by name go in and come out. torch is imported by the functions that compute with it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pomona.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Average:
    """Moving average of weights over the steps of a run: flatter, and mostly better, than the last ones.

    Each update counts `decay` times as much as the one after it. The first ones are not drawn to where the weights
    began: after t updates the average is that of these t, as Adam corrects its moments.

    Parameters
    ----------
    decay : float
        0-1; about the last ``1 / (1 - decay)`` updates count. `choose_decay` gives one.

    Raises
    ------
    OptionError
        If the decay cannot be used.

    References
    ----------
    Polyak and Juditsky, SIAM J. Control Optim. 1992; Kingma and Ba, ICLR 2015, section 7.2.

    Examples
    --------
    >>> torch = __import__("torch")
    >>> average = Average(0.5)
    >>> for value in (1.0, 4.0):
    ...     average.update({"w": torch.tensor([value])})
    >>> average.tensors()["w"].tolist()  # (0.5 * 1 + 4) / 1.5
    [3.0]
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise OptionError(f"average: wanted a decay from 0, below 1, got {decay:g}")
        self.decay = decay
        self.n_updates = 0
        self._means: dict[str, Tensor] = {}
        self._kinds: dict[str, Tensor] = {}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of another step in; numbers that are not fractions, as counts, are kept as they are."""
        self.n_updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.n_updates)
        for name, tensor in tensors.items():
            now = tensor.detach()
            if self.n_updates == 1 or not now.is_floating_point():
                self._means[name] = now.float().clone() if now.is_floating_point() else now.clone()
                self._kinds[name] = now.new_empty(0)
            else:
                self._means[name].lerp_(now.float(), share)

    def tensors(self) -> dict[str, Tensor]:
        """Averaged weights, new tensors of the types that came in."""
        return {name: mean.to(self._kinds[name].dtype, copy=True) for name, mean in self._means.items()}

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` needs to go on, fit for safetensors."""
        import torch

        counted = {"n_updates": torch.tensor(self.n_updates)}
        kinds = {f"kind.{name}": kind for name, kind in self._kinds.items()}
        return counted | kinds | {f"mean.{name}": mean.clone() for name, mean in self._means.items()}

    def restore(self, state: Mapping[str, Tensor], *, device: str = "cpu") -> None:
        """Go on from a `state`, on the device of the weights that are to come."""
        self.n_updates = int(state["n_updates"])
        self._means, self._kinds = (_pick_tensors(state, kind, device) for kind in ("mean", "kind"))


class LastAverage:
    """Mean of the weights at the end of each of the last epochs; `Average` is the better default.

    Parameters
    ----------
    n_kept : int
        Updates that count, 1 or more; as many copies of the weights are held.

    Raises
    ------
    OptionError
        If the number is below 1.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.
    """

    def __init__(self, n_kept: int = 5) -> None:
        if n_kept < 1:
            raise OptionError(f"average: wanted 1 epoch or more, got {n_kept}")
        self._kept: deque[dict[str, Tensor]] = deque(maxlen=n_kept)

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of another epoch in; the oldest beyond `n_kept` drop out."""
        self._kept.append({name: tensor.detach().clone() for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Averaged weights, new tensors of the types that came in; what is no fraction is the newest."""
        return {name: self._average(name) for name in (self._kept[-1] if self._kept else ())}

    def _average(self, name: str) -> Tensor:
        import torch

        newest = self._kept[-1][name]
        if not newest.is_floating_point():
            return newest.clone()
        return torch.stack([kept[name].float() for kept in self._kept]).mean(dim=0).to(newest.dtype)

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` needs to go on, fit for safetensors."""
        return {f"{at}.{name}": tensor.clone() for at, kept in enumerate(self._kept) for name, tensor in kept.items()}

    def restore(self, state: Mapping[str, Tensor], *, device: str = "cpu") -> None:
        """Go on from a `state`, on the device of the weights that are to come."""
        self._kept.clear()
        for at in sorted({int(key.split(".", 1)[0]) for key in state}):
            self._kept.append(_pick_tensors(state, str(at), device))


def _pick_tensors(state: Mapping[str, Tensor], prefix: str, device: str) -> dict[str, Tensor]:
    """Those whose name begins so, by the rest of it; new ones."""
    start = f"{prefix}."
    return {key.removeprefix(start): one.to(device, copy=True) for key, one in state.items() if key.startswith(start)}


def choose_decay(n_steps: int, share: float = 0.1) -> float:
    """Decay at which an `Average` forgets within a share 0-1 of a run.

    Examples
    --------
    >>> choose_decay(1000)
    0.99
    """
    return 1 - 1 / max(share * n_steps, 1.0)
