"""A detector's backbone and neck compile for changing image sizes, not once for each. B images, H x W pixels."""

from collections.abc import Generator

import pytest
import torch
from torch import _dynamo as dynamo

from fourstage import create_detector
from fourstage.data.sample import Batch
from fourstage.tasks.detection.detector import Detector

# Below 20,480 numbers a map's convolution takes another way on CPU, which is one more graph; these maps are larger.
KNOWN = ((320, 352), (352, 320))
NEW = ((416, 320), (320, 544), (448, 480), (384, 352))


@pytest.fixture(autouse=True)
def apart() -> Generator[None]:
    """What was compiled before does not count."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def one_image(size: tuple[int, int]) -> Batch:
    images_BCHW = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0] * size[1]))
    return Batch(ids=("a",), images_BCHW=images_BCHW, sizes=(size,), original_sizes=(size,))


@pytest.mark.torture  # tracing alone takes ten seconds
@pytest.mark.parametrize("backbone", ["swin_tiny", "smt_tiny", "unified_convnext_micro"])
def test_new_sizes_need_no_new_graph(backbone: str) -> None:
    """What is traced does not depend on what makes code of it, so nothing does here."""
    detector = create_detector("mask_rcnn", backbone, 5, fc_channels=32, mask_channels=16).eval()
    assert isinstance(detector, Detector)
    with torch.inference_mode():
        plain = [detector.maps(one_image(size)) for size in (*KNOWN, *NEW)]
        for part in (detector.backbone, detector.neck):
            part.compile(dynamic=True, backend="eager")
        compiled = [detector.maps(one_image(size)) for size in KNOWN]
        before = dynamo.utils.counters["stats"]["unique_graphs"]
        assert before == 2  # the backbone's and the neck's
        compiled += [detector.maps(one_image(size)) for size in NEW]
    assert dynamo.utils.counters["stats"]["unique_graphs"] == before
    for ours, theirs in zip(compiled, plain, strict=True):
        for our_BCHW, their_BCHW in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our_BCHW, their_BCHW, rtol=1e-4, atol=1e-4)
