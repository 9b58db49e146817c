"""What must hold of predictions whatever the image's size, the windows and the memory that is allowed."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from heads import Patches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.bench import memory
from fourstage.data.sample import Batch, Sample, collate
from fourstage.data.transforms.resizing import Normalise, resize_image
from fourstage.data.transforms.segmentation import evaluation_transform, normalised
from fourstage.ops.resized_crop import crop_of_resized, input_span
from fourstage.tasks.segmentation import inference as inference_module
from fourstage.tasks.segmentation.inference import Inference
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.upernet import upernet

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
NORMALISE = Normalise.of((0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
side = st.integers(32, 90)
CASES = {
    "whole": Protocol(scale=None),
    "resized": Protocol(scale=(100, 50)),
    "windows": Protocol(scale=(120, 60), window=(48, 40), stride=(32, 40)),
    "flip": Protocol(scale=None, flip=True),
    "scales": Protocol(scale=(96, 48), ratios=(0.5, 1.0, 1.75), flip=True, window=(40, 48), stride=(30, 31)),
    "image": Protocol(ratios=(0.5, 1.25), ratios_of="image", flip=True),
}


@pytest.fixture(scope="module")
def network() -> Segmentor:
    torch.manual_seed(0)
    return upernet(Patches((4, 6, 8, 10)), 7, channels=8, pool_scales=(1, 2), auxiliary_channels=4).eval()


def images(*sizes: tuple[int, int], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    samples = [Sample(str(i), rng.integers(0, 256, (*s, 3), np.uint8), s) for i, s in enumerate(sizes)]
    return collate([evaluation_transform()(sample) for sample in samples])


def plainly(network: Segmentor, image_3HW: Tensor, protocol: Protocol) -> Tensor:
    """The same without strips, columns and batches: everything at once, each step as it reads."""
    size = (int(image_3HW.shape[1]), int(image_3HW.shape[2]))
    total = torch.zeros(network.num_classes, *size)
    for view in protocol.sizes(size):
        pixels = torch.from_numpy(resize_image(image_3HW.movedim(0, -1).numpy().copy(), view)).movedim(-1, 0)
        for mirrored in (False, True)[: 1 + protocol.flip]:
            seen = normalised(pixels.flip(-1) if mirrored else pixels, NORMALISE)
            sums, counts = torch.zeros(network.num_classes, *view), torch.zeros(view)
            height, width = protocol.window or view
            for y, x in protocol.windows(view):
                window = seen[None, :, y : y + height, x : x + width]
                h, w = window.shape[2:]
                padded = F.pad(window, (0, max(0, 32 - w), 0, max(0, 32 - h)))
                sums[:, y : y + h, x : x + w] += network(padded)[0, :, :h, :w]
                counts[y : y + h, x : x + w] += 1
            logits = sums / counts
            logits = F.interpolate((logits.flip(-1) if mirrored else logits)[None], size=size, mode="bilinear")[0]
            total += logits.softmax(dim=0) if protocol.views > 1 else logits
    return total / protocol.views


@pytest.mark.parametrize("name", CASES)
@given(height=side, width=side, strip=st.sampled_from([1, 2000, 2**23]), kept=st.sampled_from([1, 2**29]))
@settings(max_examples=8, deadline=None)
def test_strips_columns_and_batches_change_nothing(
    name: str, height: int, width: int, strip: int, kept: int, network: Segmentor
) -> None:
    batch, protocol = images((height, width)), CASES[name]
    with torch.no_grad():
        expected = plainly(network, batch.images_BCHW[0], protocol)
    [actual] = Inference(network, NORMALISE, at_once=5000, strip=strip, kept=kept).scores(batch, protocol)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 2**29])
def test_wide_images_are_done_in_columns(kept: int, network: Segmentor) -> None:
    batch, protocol = images((40, 700)), Protocol(scale=None, window=(40, 64), stride=(32, 60), flip=True)
    inference = Inference(network, NORMALISE, strip=7 * 300 * 9, kept=kept)
    strips, most = [], 0
    for picture in inference._pictures(batch, protocol):
        for _, columns, _ in inference._strips(picture):
            strips.append(columns)
            most = max(most, len(picture.views[0].coarse))
    windows = len(protocol.windows((40, 700)))
    assert most == windows if kept > 1 else most < 0.6 * windows  # those of other columns are forgotten
    assert (len(set(strips)) > 1) == (kept == 1)
    with torch.no_grad():
        expected = plainly(network, batch.images_BCHW[0], protocol)
    torch.testing.assert_close(inference.scores(batch, protocol)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_images_one_by_one(name: str, network: Segmentor) -> None:
    sizes = [(64, 80), (40, 95), (80, 64), (32, 33)]
    inference, together = Inference(network, NORMALISE), images(*sizes)
    found = inference.label_maps(together, CASES[name])
    for i, (height, width) in enumerate(sizes):
        alone = Batch(
            ("a",), together.images_BCHW[i : i + 1, :, :height, :width], ((height, width),), ((height, width),)
        )
        [expected] = inference.label_maps(alone, CASES[name])
        assert found[i].shape == (height, width)
        assert (found[i] != expected).float().mean() < 0.001  # rounding, where two classes tie


def test_one_window_is_the_whole_image(network: Segmentor) -> None:
    batch, inference = images((60, 80)), Inference(network, NORMALISE)
    whole = inference.scores(batch, Protocol(scale=None))
    for window in ((60, 80), (200, 300)):
        one = inference.scores(batch, Protocol(scale=None, window=window, stride=(30, 40)))
        torch.testing.assert_close(one, whole, rtol=0, atol=0)


def test_a_mirrored_image_gives_the_mirrored_map(network: Segmentor) -> None:
    batch, inference = images((64, 80)), Inference(network, NORMALISE)
    mirrored = Batch(batch.ids, batch.images_BCHW.flip(-1), batch.sizes, batch.original_sizes)
    for protocol in (CASES["flip"], Protocol(scale=(120, 90), flip=True, window=(40, 40), stride=(40, 40))):
        [a], [b] = inference.scores(batch, protocol), inference.scores(mirrored, protocol)
        torch.testing.assert_close(a.flip(-1), b, rtol=1e-4, atol=1e-5)


@given(side=st.integers(1, 3000), window=st.integers(32, 600), share=st.floats(0.01, 1))
@settings(max_examples=200, deadline=None)
def test_windows_cover_every_pixel_and_stay_inside(side: int, window: int, share: float) -> None:
    stride = max(1, int(share * window))
    corners = Protocol(window=(window, window), stride=(stride, window)).windows((side, window))
    tops = [top for top, left in corners]
    assert tops[0] == 0
    assert tops == sorted(set(tops))
    assert tops[-1] == max(0, side - window)
    assert all(b - a <= stride for a, b in pairwise(tops))


@given(
    old=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    new=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    aligned=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_part_of_a_resized_map_is_the_part_of_the_resized_map(
    old: tuple[int, int], new: tuple[int, int], aligned: bool, data: st.DataObject
) -> None:
    spans = []
    for n in new:
        first = data.draw(st.integers(0, n - 1))
        spans.append((first, data.draw(st.integers(first + 1, n))))
    (r0, r1), (c0, c1) = spans
    x_CHW = torch.randn(3, *old)
    expected = F.interpolate(x_CHW[None], size=new, mode="bilinear", align_corners=aligned)[0, :, r0:r1, c0:c1]
    part = crop_of_resized(x_CHW, old, new, *spans, aligned=aligned)
    torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)
    (y0, y1), (x0, x1) = (input_span(o, n, span, aligned) for o, n, span in zip(old, new, spans, strict=True))
    cut = crop_of_resized(x_CHW[:, y0:y1, x0:x1], old, new, *spans, origin=(y0, x0), aligned=aligned)
    torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-5)


def test_padding_beyond_an_image_is_not_seen_where_it_comes_as_bytes(network: Segmentor) -> None:
    batch = images((40, 50), (90, 90))
    noisy = batch.images_BCHW.clone()
    noisy[0, :, 40:], noisy[0, :, :, 50:] = 99, 77
    inference = Inference(network, NORMALISE)
    a = inference.label_maps(batch, CASES["scales"])[0]
    b = inference.label_maps(Batch(batch.ids, noisy, batch.sizes, batch.original_sizes), CASES["scales"])[0]
    assert torch.equal(a, b)


def test_double_precision_stays_double(network: Segmentor) -> None:
    double = upernet(Patches((4, 6, 8, 10)), 7, channels=8, pool_scales=(1, 2)).double().eval()
    [scores] = Inference(double, NORMALISE).scores(images((40, 50)), CASES["windows"])
    assert scores.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Protocol(window=(64, 64)), "belong together"),
        (lambda: Protocol(window=(64, 64), stride=(65, 64)), "leaves gaps between windows"),
        (lambda: Protocol(window=(16, 64), stride=(8, 8)), "32 pixels"),
        (lambda: Protocol(ratios=()), "at least one"),
        (lambda: Protocol(scale=(512, 20)), "at least 32"),
    ],
)
def test_impossible_protocols_are_refused(make: Callable[[], Protocol], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_a_protocol_says_what_is_done() -> None:
    assert str(Protocol()) == "complete images, at most 2048 x 512"
    text = (
        "windows of 512 x 512, stride 341 x 341, in images at their original size x 0.5, 0.75, 1, 1.25, 1.5, 1.75, "
        "each also mirrored"
    )
    protocol = Protocol(window=(512, 512), stride=(341, 341), ratios=RATIOS, ratios_of="image", flip=True)
    assert str(protocol) == text
    assert protocol.views == 12


class _Cheap(nn.Module):
    """A segmentor's maps without the work: four levels of the image's mean colours."""

    levels = tuple(Level(3, stride) for stride in (4, 8, 16, 32))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image_BCHW, level.stride, ceil_mode=True) for level in self.levels]


def peak_of_a_very_large_image(flip: bool) -> int:
    """Bytes that this process has ever held."""
    network = upernet(_Cheap(), 150, channels=8, auxiliary_channels=8).eval()
    protocol = Protocol(scale=None, flip=flip, window=(512, 512), stride=(341, 341))
    [labels_HW] = Inference(network, NORMALISE).label_maps(images((4000, 6000)), protocol)
    assert labels_HW.shape == (4000, 6000)
    peak = memory._highest()  # not what a parent that started it had held
    assert peak is not None
    return peak


@pytest.mark.torture
@pytest.mark.parametrize("flip", [False, True])
def test_a_very_large_image_needs_little_memory(flip: bool) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = (
        f"import sys; sys.path[:0] = {folders}; from test_inference import *; print(peak_of_a_very_large_image({flip}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3e9


def test_strips_in_pieces_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = upernet(Patches((4, 6, 8, 10)), 24, channels=8, pool_scales=(1, 2), auxiliary_channels=4).eval()
    batch, spans = images((90, 300)), list[int]()
    windows = Protocol(scale=None, window=(60, 140), stride=(40, 100))  # wider than 128: see `resized_crop.NARROW`
    for protocol in (Protocol(scale=(400, 100)), windows, CASES["flip"], Protocol(ratios=(0.5, 1.5), scale=(500, 150))):
        results = []
        for cached in (2**23, 24 * 300 * 4):
            monkeypatch.setattr(inference_module, "CACHED", cached)
            inference = Inference(network, NORMALISE, strip=24 * 300 * 20)
            with torch.inference_mode():
                [parts] = [list(inference._strips(picture)) for picture in inference._pictures(batch, protocol)]
            spans.append(len(parts))
            results.append(torch.cat([values_CRK for _, _, values_CRK in parts], dim=1))
        # PyTorch's softmax of several views rounds by the place of a value in memory, and by the number of threads
        torch.testing.assert_close(*results, rtol=0, atol=0 if protocol.views == 1 else 1e-7)
    assert spans[1] > 3 * spans[0]  # so that there was something to compare
