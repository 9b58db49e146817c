import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.tasks.parts.resized_conv import conv_of_resized

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def plain(conv: nn.Conv2d, maps: list[Tensor], align_corners: bool) -> Tensor:
    size = maps[0].shape[2:]
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners) for x in maps]
    return conv(torch.cat(resized, dim=1))


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    others=st.lists(st.tuples(SIDES, st.integers(1, 4)), max_size=3),
    align_corners=st.booleans(),
    bias=st.booleans(),
)
def test_it_is_the_plain_order(
    first: tuple[int, int], others: list[tuple[tuple[int, int], int]], align_corners: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    shapes = [(first, 3), *others]
    maps = [torch.randn(2, width, *size, dtype=torch.float64, requires_grad=True) for size, width in shapes]
    conv = nn.Conv2d(sum(width for _, width in shapes), 5, 3, padding=1, bias=bias, dtype=torch.float64)
    wanted, found = plain(conv, maps, align_corners), conv_of_resized(conv, maps, align_corners)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)
    weight = torch.randn_like(wanted)
    leaves = [*maps, *conv.parameters()]
    expected = torch.autograd.grad((weight * wanted).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((weight * found).sum(), leaves), expected, rtol=1e-9, atol=1e-10)


def test_it_exports_and_compiles_with_any_size() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
            return conv_of_resized(self.conv, [fine, coarse])

    height, width = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    network = Two().eval()
    inputs = (torch.randn(2, 2, 12, 16), torch.randn(2, 4, 6, 8))
    program = torch.export.export(network, inputs, dynamic_shapes=({2: height, 3: width}, {2: rows, 3: columns}))
    other = (torch.randn(2, 2, 10, 20), torch.randn(2, 4, 5, 7))
    torch.testing.assert_close(program.module()(*other), network(*other))
