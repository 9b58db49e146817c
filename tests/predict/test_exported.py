"""The predictors of exported files: the same results as those of the networks that the files hold."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exported.networks import DESCRIPTIONS, InTorch, in_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predict.networks import predictor

from fourstage.exported.description import Views
from fourstage.predict.base import Tiling
from fourstage.predict.exported import exported_predictor
from fourstage.predict.predictor import Predictor
from fourstage.predict.tasks import image_predictor
from fourstage.tasks.segmentation.protocol import Protocol

TASKS = ("classification", "detection", "segmentation")
SIZES = ((64, 96), (96, 64), (70, 110), (33, 200), (40, 40), (1, 7))


def image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_same(task: str, want: Any, got: Any) -> None:
    assert want.class_names == got.class_names
    if task == "segmentation":
        assert (want.label_map == got.label_map).mean() > 0.999  # of equal scores, either class
        return
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
    np.testing.assert_array_equal(got.labels, want.labels)
    if task == "detection":
        assert len(want.labels) > 10
        np.testing.assert_allclose(got.boxes, want.boxes, atol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_of_any_size_predicts_what_its_network_predicts(task: str) -> None:
    network, runtime = in_torch(task)
    lowest = 0.0 if task == "detection" else None
    file = Predictor(exported_predictor(runtime, lowest), batch_size=4)
    images = [image(size, i) for i, size in enumerate(SIZES) if task != "detection" or min(size) > 1]
    for want, got in zip(network(images), file(images), strict=True):  # pyright: ignore[reportArgumentType]
        check_same(task, want, got)


@pytest.mark.parametrize("task", TASKS)
def test_normalisation_inside_of_the_graph(task: str) -> None:
    network, runtime = in_torch(task, input={"normalised": False, "divisor": 32})
    mean, std = (
        torch.tensor(x)[:, None, None] * 255 for x in (runtime.description.input.mean, runtime.description.input.std)
    )
    inner = runtime.graph
    runtime.graph = lambda images_BCHW: inner((images_BCHW - mean) / std)
    lowest = 0.0 if task == "detection" else None
    one = image((64, 96 if task == "segmentation" else 93))  # a segmentor sees what fills an image up
    check_same(task, network(one), Predictor(exported_predictor(runtime, lowest))(one))


@pytest.mark.parametrize("task", TASKS)
def test_a_fixed_batch_is_filled_up(task: str) -> None:
    network, runtime = in_torch(task, input={"batch": 2})
    lowest = 0.0 if task == "detection" else None
    file = Predictor(exported_predictor(runtime, lowest), batch_size=3)
    images = [image((64, 96), i) for i in range(3)]
    for want, got in zip(network(images), file(images), strict=True):  # pyright: ignore[reportArgumentType]
        check_same(task, want, got)
    assert {shape[0] for shape in runtime.shapes} == {2}


def test_a_graph_that_leaves_padding_out_reads_the_sizes_of_images() -> None:
    network, runtime = in_torch("detection", input={"divisor": 32, "sizes": "sizes", "batch": 2})
    file = Predictor(exported_predictor(runtime, threshold=0.0), batch_size=2)
    check_same("detection", network(image((50, 96))), file(image((50, 96))))
    assert runtime.shapes[-1] == (2, 3, 64, 96)
    assert [sizes.tolist() for sizes in runtime.sizes] == [[[50, 96], [50, 96]]]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize(("smallest", "said"), [(96, 1), (64, 0)])
def test_images_below_the_smallest_sides_are_reported_once(
    task: str, smallest: int, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _, runtime = in_torch(task, input={"smallest": smallest, "divisor": 32})
    file = Predictor(exported_predictor(runtime, 0.0 if task == "detection" else None))
    file(image((64, 96)))  # the rule keeps this size
    file(image((64, 96), 1))
    assert {shape[2:] for shape in runtime.shapes} == {(max(64, smallest), 96)}
    assert capsys.readouterr().err.count("reads sides of 96 pixels and more: smaller images are filled up") == said


def test_what_the_network_fills_up_itself_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    _, runtime = in_torch("detection", input={"smallest": 64, "divisor": 32})
    Predictor(exported_predictor(runtime, 0.0))(image((50, 96)))
    assert runtime.shapes[-1][2:] == (64, 96)
    assert not capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- fixed sides


def test_a_detector_of_fixed_sides_fills_up_images_and_shrinks_those_that_do_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network, runtime = in_torch("detection", input={"height": 64, "width": 96})
    file = Predictor(exported_predictor(runtime, threshold=0.0))
    check_same("detection", network(image((64, 96))), file(image((64, 96))))
    assert not capsys.readouterr().err
    file(image((96, 64)))
    upright: Any = file(image((90, 60)))  # the rule gives 96 x 64, and the file has room for 64 x 43
    assert {shape[2:] for shape in runtime.shapes} == {(64, 96)}
    assert upright.boxes[:, 2].max() <= 60.01
    assert upright.boxes[:, 3].max() <= 90.01
    assert capsys.readouterr().err.count("reads 64 x 96 pixels alone: images that do not fit are shrunk") == 1
    assert upright.boxes[:, 2].max() > 50  # boxes are in pixels of the image, and not of the 43 columns


def test_a_segmentor_of_fixed_sides_reads_windows_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    network, runtime = in_torch("segmentation", input={"height": 64, "width": 96})
    file = Predictor(exported_predictor(runtime))
    check_same("segmentation", network(image((64, 96))), file(image((64, 96))))
    upright: Any = file(image((90, 60)))  # the rule gives 96 x 64: two windows down, filled up on the right
    assert upright.label_map.shape == (90, 60)
    assert {shape[2:] for shape in runtime.shapes} == {(64, 96)}
    assert sum(shape[0] for shape in runtime.shapes) == 1 + 2
    assert "reads 64 x 96 pixels alone: larger images are read in windows" in capsys.readouterr().err


def test_a_small_view_is_filled_up_to_fixed_sides() -> None:
    """Beyond the view there are zeros, and what the graph returns there is cut off."""
    _, runtime = in_torch("segmentation", input={"height": 128, "width": 128})
    seen: list[torch.Tensor] = []
    inner = runtime.graph
    runtime.graph = lambda images_BCHW: (seen.append(images_BCHW), inner(images_BCHW))[1]
    result: Any = Predictor(exported_predictor(runtime))(image((64, 96)))
    assert result.label_map.shape == (64, 96)
    assert not seen[0][:, :, 64:].any()
    assert not seen[0][:, :, :, 96:].any()
    assert seen[0][:, :, 63, 95].any()


# ---------------------------------------------------------------------------------------------------- tiles and windows


def test_tiles_of_a_detector() -> None:
    network, runtime = in_torch("detection")
    tiling = Tiling(64, 0.25)
    task: Any = network.task
    want = Predictor(image_predictor(task.task, task.transform, 0.0, tiling))(image((100, 150)))
    got = Predictor(exported_predictor(runtime, 0.0, tiling))(image((100, 150)))
    check_same("detection", want, got)


@pytest.mark.parametrize("aligned", [False, True])
def test_windows_of_a_segmentor(aligned: bool) -> None:
    network, runtime = in_torch("segmentation", align_corners=aligned)
    network.network.align_corners = aligned
    task: Any = network.task
    want = Predictor(image_predictor(task.task, task.transform, None, Tiling(64, 0.3)))(image((150, 230)))
    file = exported_predictor(runtime, None, Tiling(64, 0.3))
    steps: list[float] = []
    file.progress = lambda done, total: steps.append(done / total)
    check_same("segmentation", want, Predictor(file)(image((150, 230))))
    assert steps[-1] == 1


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    scale=st.sampled_from([None, (80, 48), (33, 32)]),
    window=st.sampled_from([None, (32, 48), (40, 40)]),
    divisor=st.sampled_from([1, 8, 32]),
    strip=st.sampled_from([2**23, 3000]),
)
def test_views_are_those_of_the_torch_inference(
    height: int, width: int, scale: Any, window: Any, divisor: int, strip: int
) -> None:
    stride = window and (window[0] * 2 // 3, window[1] * 2 // 3)
    rule = Views(scale, window=window, stride=stride, divisor=divisor)
    network, runtime = NETWORKS
    runtime = InTorch(replace(runtime.description, resize=rule), runtime.graph)
    task: Any = network.task
    task.protocol = Protocol(scale, window=window, stride=stride, divisor=divisor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fourstage.exported.label_maps.STRIP", strip)
        got = Predictor(exported_predictor(runtime))(image((height, width)))
    check_same("segmentation", network(image((height, width))), got)


NETWORKS = in_torch("segmentation")

# ------------------------------------------------------------------------------------------------------------- refusals


def test_tiles_that_a_file_of_fixed_sides_cannot_have() -> None:
    _, runtime = in_torch("segmentation", input={"height": 64, "width": 64})
    exported_predictor(runtime, None, Tiling(64))
    with pytest.raises(ValueError, match=r"64 x 64 pixels alone; .*tile=64, or export it with --dynamic"):
        exported_predictor(runtime, None, Tiling(96))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (None, 32), (96, None)])
def test_a_tile_is_offered_only_where_it_fits(height: int | None, width: int | None) -> None:
    _, runtime = in_torch("segmentation", input={"height": height, "width": width})
    sides = f"{height or 'any height'} x {width or 'any width'} pixels alone"
    with pytest.raises(ValueError, match=sides) as refusal:
        exported_predictor(runtime, None, Tiling(80))
    assert ("give tile=96" in str(refusal.value)) == (height == 96)
    assert ("give tile" in str(refusal.value)) == (height == 96)


def test_label_maps_are_not_averaged() -> None:
    network, runtime = in_torch("segmentation", kind="label_map", outputs=("label_map",))
    inner = runtime.graph
    full = network.network
    runtime.graph = lambda images_BCHW: (full(images_BCHW).argmax(dim=1),)
    del inner
    check_same("segmentation", network(image((64, 96))), Predictor(exported_predictor(runtime))(image((64, 96))))
    with pytest.raises(ValueError, match="windows average scores"):
        exported_predictor(runtime, None, Tiling(64))
    fixed = InTorch(
        replace(runtime.description, input=replace(runtime.description.input, height=64, width=64)), runtime.graph
    )
    with pytest.raises(ValueError, match="several windows"):
        Predictor(exported_predictor(fixed))(image((64, 96)))


def test_options_of_another_task_are_refused_as_for_networks() -> None:
    for task in TASKS:
        _, runtime = in_torch(task)
        if task != "detection":
            with pytest.raises(ValueError, match="threshold is for the scores of a detector"):
                exported_predictor(runtime, 0.5)
    with pytest.raises(ValueError, match="tile is for detectors and segmentors"):
        exported_predictor(InTorch(DESCRIPTIONS["classification"], lambda x: [x]), None, Tiling(64))


def test_a_backbone_predicts_nothing() -> None:
    one = DESCRIPTIONS["classification"]
    backbone = replace(one, task="backbone", kind="maps", outputs=("map_0",), classes=(), resize=None, strides=(4,))
    with pytest.raises(ValueError, match="feature maps and predicts nothing"):
        exported_predictor(InTorch(backbone, lambda x: [x]))


def test_a_file_has_no_network_of_torch() -> None:
    _, runtime = in_torch("classification")
    file = Predictor(exported_predictor(runtime))
    assert repr(file) == "Predictor(visformer_digits by torch, 3 classes, cpu, float32)"
    with pytest.raises(ValueError, match="no torch network"):
        _ = file.network
    assert predictor("classification").network is not None
