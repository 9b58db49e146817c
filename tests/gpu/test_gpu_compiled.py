"""Compiled networks on the device. A group of its own: compiling one network takes most of a minute."""

import pytest
import torch
from backbones.forms import FORMS, build


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_network_serves_several_sizes(form: str, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/backbones/test_export.py compiles on the CPU")
    torch.compiler.reset()  # the graphs of other networks count towards the limit for the code that all share
    model = build(form).to(device)
    compiled = torch.compile(model, dynamic=True)
    with torch.inference_mode():
        for size in ((96, 128), (128, 96), (72, 104)):
            image_BCHW = torch.randn(2, 3, *size, device=device)
            torch.testing.assert_close(compiled(image_BCHW), model(image_BCHW), rtol=1e-3, atol=1e-3)
