"""Networks, heads, losses and training steps keep their tensors on the device of their inputs.

`pretend_device` stands in for a GPU: a tensor that stays on the CPU, or a device that is written into the code, raises.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
import torch
from any_device import pretend_device
from any_device.pretend_device import PretendTensor, pretended_device
from backbones.forms import FORMS, build
from tasks.detection.scenes import NAMES, SOME, SmallBackbone, batch, small, with_detections
from torch import Tensor, nn

from fourstage.backbones.layers import resized_position
from fourstage.data.sample import Batch
from fourstage.engine.step import Halt, train_step
from fourstage.engine.training import averaged
from fourstage.ops import attention
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.tasks.segmentation.upernet import upernet

SEGMENTORS: dict[str, Callable[..., Segmentor]] = {"upernet": upernet, "semantic_fpn": semantic_fpn}


@pytest.fixture
def device() -> Generator[torch.device]:
    with pretended_device() as device:
        yield device


def values(tensors: list[Tensor]) -> list[Tensor]:
    """The values of tensors that must all be on the pretended device."""
    assert all(isinstance(x, PretendTensor) for x in tensors)
    return [x.detach().cpu() for x in tensors]


def assert_close(here: list[Tensor], expected: list[Tensor], share: float = 1e-4) -> None:
    """Compare each pair of tensors, up to a share of the largest number of the expected one."""
    for ours, theirs in zip(values(here), expected, strict=True):
        atol = max(1e-6, share * float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=atol)


def outputs(out: Tensor | list[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("form", FORMS)
def test_a_network_and_its_gradients(form: str, device: torch.device) -> None:
    image_BCHW = torch.randn(2, 3, 72, 104)
    results = []
    for place in (torch.device("cpu"), device):
        model = build(form).to(place)
        out = outputs(model(image_BCHW.to(place)))
        torch.stack([x.square().mean() for x in out]).sum().backward()
        assert gradients(model)
        results.append([*out, *gradients(model)])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("shape", [(7, 2), (2, 3, 4)], ids=["images", "windows"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_gets_no_more_images_and_heads_than_a_grid_has_places(
    shape: tuple[int, ...], masked: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST", 3)
    results = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        q, k, v = (torch.randn(*shape, 5, 8).to(place).requires_grad_() for _ in range(3))
        masks = [torch.randn(*shape[1:], 5, 5).to(place).requires_grad_()] if masked else []
        out = attention.by_fused_kernel(q, k, v, masks, None)
        results.append([out, *torch.autograd.grad((out**2).sum(), [q, k, v, *masks])])
    assert_close(results[1], results[0])


def pictures() -> Batch:
    return batch([SOME, [], SOME[:1]])


def losses_on(model: Detector, place: torch.device) -> list[Tensor]:
    model.to(place).train()
    losses = [*model.losses(pictures().to(place), seed=3).values()]
    torch.stack(losses).sum().backward()
    return [*losses, *gradients(model)]


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_learns_and_detects(name: str, device: torch.device) -> None:
    cpu = torch.device("cpu")
    expected, here = losses_on(with_detections(small(name)), cpu), losses_on(with_detections(small(name)), device)
    assert_close(here, expected, share=0.03)  # proposals with nearly the same score may be drawn one for the other
    results = []
    for place in (cpu, device):
        task = Detection(with_detections(small(name)).to(place), ("a", "b", "c")).eval()
        results.append(task.predict(pictures().to(place)))
    for id, record in results[0].items():
        assert len(record["scores"]) > 0
        assert record["labels"] == results[1][id]["labels"]
        assert record["scores"] == pytest.approx(results[1][id]["scores"], abs=1e-5)
        assert len(record.get("masks", ())) == len(results[1][id].get("masks", ()))


@pytest.mark.parametrize("name", SEGMENTORS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_segmentors_losses_under_autocast_are_in_float32(name: str, half: torch.dtype) -> None:
    """On the CPU, whose autocast PyTorch has; tests/tasks/detection asks it of every detector."""
    torch.manual_seed(0)
    network = SEGMENTORS[name](SmallBackbone(), 5, channels=16, dropout=0.0)
    images_BCHW, labels_BHW = torch.randn(2, 3, 96, 128), torch.randint(0, 5, (2, 96, 128)).to(torch.uint8)
    full = network.losses(images_BCHW, labels_BHW)
    with torch.autocast("cpu", half):
        losses = network.losses(images_BCHW, labels_BHW)
    torch.stack([*losses.values()]).sum().backward()
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, full[key], rtol=0.05, atol=0.05)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in gradients(network))


@pytest.mark.parametrize("name", SEGMENTORS)
def test_a_segmentor_learns_and_predicts(name: str, device: torch.device) -> None:
    labelled = replace(
        pictures(), original_sizes=((96, 128),) * 3, label_maps_BHW=torch.randint(0, 5, (3, 96, 128)).to(torch.uint8)
    )
    results = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        network = SEGMENTORS[name](SmallBackbone(), 5, channels=16, dropout=0.0).to(place)
        task = Segmentation(network, tuple("abcde"), mean=(0, 0, 0), std=(1, 1, 1), single=Protocol(scale=None))
        losses = [*task.train()(labelled.to(place)).values()]
        torch.stack(losses).sum().backward()
        results.append(([*losses, *gradients(network)], task.eval().predict(labelled.to(place))))
    assert_close(results[1][0], results[0][0])
    assert results[0][1].keys() == results[1][1].keys()


# PyTorch raises for these on a GPU where only deterministic operators may run; see `torch.use_deterministic_algorithms`
RAISING = {
    "_adaptive_avg_pool2d_backward", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward", "grid_sampler_2d_backward", "histc", "median", "nll_loss2d_forward", "put_",
    "reflection_pad2d_backward", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
}  # fmt: skip


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Generator[set[str]]:
    """Ask for deterministic operators, and return the names of those that raise on a GPU and ran all the same."""
    names: set[str] = set()
    compute = pretend_device._compute

    def spy(func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if name in RAISING or (name == "cumsum" and args[0].is_floating_point()):
            names.add(name)
        return compute(func, args, kwargs)

    monkeypatch.setattr(pretend_device, "_compute", spy)
    torch.use_deterministic_algorithms(True)
    yield names
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_must_repeat_itself(form: str, called: set[str], device: torch.device) -> None:
    image_BCHW = torch.randn(1, 3, 72, 104)
    results = []
    for place in (torch.device("cpu"), device):
        model = build(form).to(place)
        out = outputs(model(image_BCHW.to(place)))
        torch.stack([x.square().mean() for x in out]).sum().backward()
        results.append([*out, *gradients(model)])
    assert_close(results[1], results[0])
    assert not called


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_that_must_repeat_itself(name: str, called: set[str], device: torch.device) -> None:
    losses_on(with_detections(small(name)), device)
    assert not called


@pytest.mark.parametrize("name", SEGMENTORS)
def test_a_segmentor_that_must_repeat_itself(name: str, called: set[str], device: torch.device) -> None:
    images_BCHW, labels_BHW = torch.randn(2, 3, 96, 128), torch.randint(0, 5, (2, 96, 128)).to(torch.uint8)
    results = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        network = SEGMENTORS[name](SmallBackbone(), 5, channels=16, dropout=0.0).to(place)
        losses = [*network.losses(images_BCHW.to(place), labels_BHW.to(place)).values()]
        torch.stack(losses).sum().backward()
        results.append([*losses, *gradients(network)])
    assert_close(results[1], results[0])
    assert not called


@pytest.mark.parametrize("size", [(3, 4), (9, 5), (6, 8)])
def test_a_position_embedding_that_must_repeat_itself(
    size: tuple[int, int], called: set[str], device: torch.device
) -> None:
    position_1CHW = torch.randn(1, 3, 6, 8, requires_grad=True)
    results = []
    for place in (torch.device("cpu"), device):
        here = position_1CHW.detach().to(place).requires_grad_()
        out = resized_position(here, *size)
        results.append([out, *torch.autograd.grad((out**2).sum(), here)])
    assert_close(results[1], results[0])
    assert not called


def test_a_training_step_with_mixing_clipping_and_an_average(device: torch.device) -> None:
    task = Classification(build("swin-classifier"), tuple(map(str, range(1000)))).to(device).train()
    images = replace(pictures().to(device), labels_B=torch.tensor([1, 2, 3]).to(device), objects=None)
    optimizer = torch.optim.AdamW(task.parameters())
    average = averaged(task, 0.9)
    assert average is not None
    autocast = torch.autocast("cpu", enabled=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    logged = train_step(
        task, [images, images], optimizer, scaler, autocast=autocast, grad_clip=1.0, halt=Halt(device, 0)
    )
    average.update_parameters(task)
    assert all(isinstance(x, PretendTensor) for x in logged.values())
    records = task.eval().predict(images)
    assert len(records) == 3


READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of operators for which the host waits for a GPU: their results, or copies between the two."""
    names: list[str] = []
    compute = pretend_device._compute

    def spy(func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        here = [isinstance(x, PretendTensor) for x in args if isinstance(x, Tensor)]
        leaves = name == "_to_copy" and kwargs.get("device") is not None
        if leaves or (name == "copy_" and len(set(here)) > 1) or (name in READING and any(here)):
            names.append(name)
        return compute(func, args, kwargs)

    monkeypatch.setattr(pretend_device, "_compute", spy)
    return names


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_a_classifier_does_not_wait_for_the_device(
    form: str, waited: list[str], device: torch.device
) -> None:
    """While a GPU computes a step, the host prepares the next one."""
    task = Classification(nn.Sequential(build(form), Pooled()), tuple(map(str, range(1000)))).to(device).train()
    images = replace(pictures().to(device), labels_B=torch.tensor([1, 2, 3]).to(device), objects=None)
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)
    average, halt = averaged(task, 0.9), Halt(device, 0)
    assert average is not None
    autocast, scaler = torch.autocast("cpu", enabled=False), torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(2):
        waited.clear()
        train_step(task, [images, images], optimizer, scaler, autocast=autocast, grad_clip=1.0, halt=halt)
        average.update_parameters(task)
    assert not waited


class Pooled(nn.Module):
    """Logits from whatever a network returns."""

    def forward(self, out: Tensor | list[Tensor]) -> Tensor:
        x_BC = out if isinstance(out, Tensor) else out[-1].mean((2, 3))
        return x_BC if x_BC.shape[1] == 1000 else x_BC.repeat(1, 1000)[:, :1000]


def test_the_pretended_device_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    x = torch.ones(2, 3, device=device)
    with pytest.raises(RuntimeError, match=r"two devices: \(2, 3\) on pretend, \(2, 3\) on cpu"):
        torch.add(x, torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).device == device
    assert x.cpu().device.type == "cpu"
