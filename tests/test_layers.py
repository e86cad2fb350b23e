"""Any module becomes a flat graph that computes the same, and its parts leave what they are given as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pomona.errors import BackboneError
from pomona.layers import Layer, count_tokens_before, group_by_block

torch = pytest.importorskip("torch", reason="networks of other packages need torch")

if TYPE_CHECKING:
    from pomona.layers import Trace


def _trace(module: Any) -> Trace:
    from pomona.layers import trace

    torch.manual_seed(0)
    return trace(module.eval(), 16)


class _Odd(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    """Writes over its input, makes a table as it goes, and has its channels last for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.turned = torch.nn.LayerNorm(8)
        self.last = torch.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        x.relu_()
        mask = x.new_zeros((8, 8))
        mask[2:6, 2:6] = 1
        x = x * mask
        x += 1
        x = self.turned(x.permute(0, 2, 3, 1))
        return self.last(x.mean(dim=(1, 2)))


def test_what_is_written_over_stays_out_of_the_parts() -> None:
    module = _Odd()
    traced = _trace(module)
    layers = {layer.name: layer for layer in traced.layers}
    assert layers["first"] == Layer("first", "map", (8, 8, 8), is_cut=True)
    assert layers["turned"] == Layer("turned", "map", (8, 8, 8), is_cut=True)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        wanted = module(x)
        for name in ("first", "turned"):
            activations = traced.part(None, name)(x)
            before = activations.clone()
            torch.testing.assert_close(traced.part(name)(activations), wanted)
            assert torch.equal(activations, before), name
        torch.testing.assert_close(traced.part(None, "first")(x), module.first(x))
    assert traced.count_multiplications() == 8 * 8 * 8 * 27 + 40
    assert traced.count_multiplications("first") == 8 * 8 * 8 * 27


def test_the_made_table_moves_with_the_module() -> None:
    tail = _trace(_Odd()).part("first")
    assert any(name.startswith("constant") for name, _ in tail.named_buffers())
    assert {name for name, _ in tail.named_parameters()} == {
        *("turned.weight", "turned.bias", "last.weight", "last.bias"),
    }


def test_what_depends_on_the_photo_cannot_be_written_down() -> None:
    class Fickle(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))

    with pytest.raises(BackboneError, match="cannot be written down for photos of 16 pixels"):
        _trace(Fickle())


@pytest.mark.parametrize(("n_tokens", "wanted"), [(196, 0), (197, 1), (198, 2), (261, 5), (1, 0), (8, 0), (50, 1)])
def test_tokens_before_the_patches(n_tokens: int, wanted: int) -> None:
    assert count_tokens_before(n_tokens) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("emb layer.0.q layer.0.mlp.0 layer.0.mlp.1 layer.1.q layer.1.mlp.0 layer.1.mlp.1", "1 3 3"),  # transformers
        ("l.encoder_layer_0.q l.encoder_layer_0.k l.encoder_layer_1.q l.encoder_layer_1.k", "2 2"),  # torchvision
        ("s.0.l.0.l.0.c s.0.l.0.l.1.c s.0.l.1.l.0.c s.0.l.1.l.1.c s.1.l.0.l.0.c s.1.l.0.l.1.c", "2 2 2"),  # a ResNet
        ("conv1 layer1.0.conv1 layer1.0.conv2 layer1.1.conv1 layer1.1.conv2 layer1.1.downsample.0 fc", "1 2 3 1"),
        ("f.0.0 f.1.b.0.0 f.1.b.1.0 f.2.b.0.0 f.2.b.1.fc1 f.2.b.1.fc2 f.2.b.2.0 f.3.0", "1 2 4 1"),  # a MobileNet
        ("f.0.0 f.1.0.b.0 f.1.0.b.3 f.1.1.b.0 f.1.1.b.3 f.2.1 f.3.0.b.0 f.3.0.b.3 f.3.1.b.0 f.3.1.b.3", "1 2 2 1 2 2"),
        ("f.0 f.3 f.6 c.0 c.3", "1 1 1 1 1"),  # a VGG has no blocks
    ],
)
def test_a_block_is_one_group(names: str, wanted: str) -> None:
    kernels = [f"{name}.weight" for name in names.split()]
    groups = group_by_block(dict.fromkeys(kernels, (4, 4)))
    assert [name for group in groups for name in group] == kernels
    assert " ".join(str(len(group)) for group in groups) == wanted
    shapes = {part: shape for name in kernels for part, shape in ((name, (4, 4)), (f"{name[:-6]}bias", (4,)))}
    assert [len(group) for group in group_by_block(shapes)] == [2 * len(group) for group in groups]


def test_blocks_stand_in_the_order_in_which_they_are_used() -> None:
    class Turned(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(4)
            self.layer = torch.nn.ModuleList(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in "ab")) for _ in "ab")
            self.first = torch.nn.Conv2d(3, 4, 4, stride=4)

        def forward(self, x: Any) -> Any:
            x = self.first(x).flatten(2).transpose(1, 2)
            for layer in self.layer[::-1]:
                x = layer(x)
            return self.norm(x)

    kinds = [sorted({name.rpartition(".")[0] for name in block}) for block in _trace(Turned()).blocks]
    assert kinds == [["first"], ["layer.1.0", "layer.1.1"], ["layer.0.0", "layer.0.1"], ["norm"]]


def test_a_network_of_one_size_says_so() -> None:
    class Fixed(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            torch._assert(x.shape[2] == 32, "Wrong image height! Expected 32 but got 16!")
            return x.mean(dim=(2, 3))

    with pytest.raises(BackboneError, match="for photos of 16 pixels: Wrong image height! Expected 32"):
        _trace(Fixed())
