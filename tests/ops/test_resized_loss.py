"""The cross-entropy of resized logits by strips is that of the plain form."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.ops import resized_loss
from fourstage.ops.resized_loss import resized_cross_entropy, sum_by_strips

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))
IGNORE = 255


def plain(logits_BChw: Tensor, labels_BHW: Tensor, align_corners: bool) -> Tensor:
    size = labels_BHW.shape[1:]
    logits_BCHW = F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORE, reduction="sum")


def drawn(size: tuple[int, int], to: tuple[int, int], classes: int, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    logits_BChw = 9 * torch.randn(2, classes, *size, dtype=torch.float64)
    labels_BHW = torch.randint(classes, (2, *to)).masked_fill(torch.rand(2, *to) < ignored, IGNORE)
    return logits_BChw.requires_grad_(), labels_BHW


@settings(max_examples=80, deadline=None)
@given(
    size=SIDES,
    to=SIDES,
    classes=st.integers(2, 20),
    strip=st.sampled_from([1, 40, 400, 1 << 19]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    align_corners=st.booleans(),
)
def test_it_is_the_plain_order(
    size: tuple[int, int], to: tuple[int, int], classes: int, strip: int, ignored: float, align_corners: bool
) -> None:
    torch.manual_seed(0)
    logits_BChw, labels_BHW = drawn(size, to, classes, ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resized_loss, "STRIP", strip)
        found = sum_by_strips(logits_BChw, labels_BHW, IGNORE, align_corners)
    wanted = plain(logits_BChw, labels_BHW, align_corners)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad(3 * loss, logits_BChw)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("classes", "to", "strips"), [(16, 9, True), (15, 9, False), (16, 5, False)])
def test_many_classes_go_strip_by_strip_where_the_map_is_resized(
    classes: int, to: int, strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(resized_loss, "sum_by_strips", lambda *args: calls.append(1) or sum_by_strips(*args))
    logits_BChw, labels_BHW = drawn((5, 5), (to, to), classes)
    loss = resized_cross_entropy(logits_BChw.float(), labels_BHW, IGNORE)
    torch.testing.assert_close(loss, plain(logits_BChw, labels_BHW, False).float())
    assert bool(calls) == strips


def test_far_logits_are_exact_and_autocast_changes_nothing() -> None:
    """A class that is 500 below another costs 500, not infinity."""
    logits_BChw, labels_BHW = drawn((3, 3), (6, 6), 16)
    far = (60 * logits_BChw.detach()).float().requires_grad_()
    wanted = plain(far, labels_BHW, False)
    with torch.autocast("cpu", torch.bfloat16):
        found = resized_cross_entropy(far, labels_BHW, IGNORE)
    for loss in (found, resized_cross_entropy(far, labels_BHW, IGNORE), sum_by_strips(far, labels_BHW, IGNORE, False)):
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
        grads = [torch.autograd.grad(x, far, retain_graph=True)[0] for x in (loss, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)  # logits near 1,000 are known to 6e-5


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_BChw, labels_BHW = drawn((3, 3), (6, 6), 16)
    monkeypatch.setattr(resized_loss, "_grad", None)
    with torch.no_grad():
        sum_by_strips(logits_BChw, labels_BHW, IGNORE, False)


@pytest.mark.parametrize("ignore", [3, IGNORE])
def test_labels_may_be_bytes_and_one_of_the_classes_ignored(ignore: int) -> None:
    logits_BChw, labels_BHW = drawn((3, 3), (6, 6), 16, ignored=0)
    logits_BCHW = F.interpolate(logits_BChw, size=(6, 6), mode="bilinear")
    wanted = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=ignore, reduction="sum")
    for logits in (logits_BChw, logits_BChw.float()):  # the plain form and strips
        found = resized_cross_entropy(logits, labels_BHW.byte(), ignore)
        torch.testing.assert_close(found, wanted.to(found.dtype))
        grads = [torch.autograd.grad(loss, logits_BChw, retain_graph=True)[0] for loss in (found, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_one_label_map_for_each_image() -> None:
    logits_BChw, labels_BHW = drawn((3, 3), (6, 6), 16)
    with pytest.raises(ValueError, match="got logits of 2 images and 1 label maps; give one label map per image"):
        resized_cross_entropy(logits_BChw, labels_BHW[:1], IGNORE)


def test_second_derivatives() -> None:
    logits_BChw, labels_BHW = drawn((3, 4), (6, 7), 16)
    probe = torch.randn_like(logits_BChw)

    def second(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(2 * loss, logits_BChw, create_graph=True)
        return torch.autograd.grad((grad * probe).sum(), logits_BChw)[0]

    found, wanted = sum_by_strips(logits_BChw, labels_BHW, IGNORE, False), plain(logits_BChw, labels_BHW, False)
    torch.testing.assert_close(second(found), second(wanted), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_logits_below_ignored_pixels_stay_there(bad: float) -> None:
    logits_BChw, labels_BHW = drawn((8, 8), (32, 32), 16)
    given = logits_BChw.detach().float()
    given[0, :, 0, 0], labels_BHW[0, :8, :8] = bad, IGNORE
    given.requires_grad_()
    losses = resized_cross_entropy(given, labels_BHW, IGNORE), plain(given, labels_BHW, False)
    torch.testing.assert_close(*losses)
    assert losses[0].isfinite()
    torch.testing.assert_close(*(torch.autograd.grad(loss, given)[0] for loss in losses), equal_nan=True)
