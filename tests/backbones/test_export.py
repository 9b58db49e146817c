"""One exported graph serves every batch and image size, and gives the numbers of the network it came from.

Two limits are PyTorch's own: its stand-in for a convolution asks whether the batch is larger than one and whether a
map has more than one cell a side, so a graph serves batches from 2 and maps from two cells.
"""

from collections.abc import Sequence

import pytest
import torch
import torch.fx.experimental._config as tracing
from forms import FORMS, build
from torch import Tensor

ALIKE = ("official_pvt_v2", "smt", "unified_convnext", "unified_dcn_v3", "unified_pvt_v2", "visformer")  # both forms
EVERY = [
    pytest.param(form, marks=pytest.mark.torture if form.removesuffix("-classifier") in ALIKE else ()) for form in FORMS
]
SMALLEST = {  # pixels a side from which one graph serves every image
    "swin_visformer-classifier": 97,  # above, no window shrinks
}


def outputs(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


@pytest.mark.parametrize("form", EVERY)
@tracing.patch(backed_size_oblivious=True)  # pyright: ignore[reportAttributeAccessIssue]
def test_a_graph_serves_every_batch_height_and_width(form: str) -> None:
    model, least = build(form), SMALLEST.get(form, 65)
    batch, height, width = (
        torch.export.Dim(name, min=low, max=high)
        for name, low, high in (("batch", 2, 64), ("height", least, 1024), ("width", least, 1024))
    )
    with torch.no_grad():
        traced = torch.export.export(
            model,
            (torch.randn(3, 3, least + 69, least + 50),),
            dynamic_shapes={"image_BCHW": {0: batch, 2: height, 3: width}},
        ).module()
        for shape in ((2, 3, least, least), (3, 3, 128, 160), (2, 3, least + 1, least + 94)):
            image_BCHW = torch.randn(shape)
            for ours, plain in zip(outputs(traced(image_BCHW)), outputs(model(image_BCHW)), strict=True):
                torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.std()))
