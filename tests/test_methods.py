"""The table of detectors and segmentors, and what users add to it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
from torch import nn

import fourstage
from fourstage import methods
from fourstage.methods import METHODS, all_methods, find_method, list_methods, recognise
from fourstage.recipe import Detection, Recipe, Segmentation
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.user_files import import_files, module_name

FILE = """
import fourstage
from torch import nn


@fourstage.register_detector
class Mine(nn.Module):
    pass
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, methods.Method]]:
    """What a test registers is gone after it."""
    table: dict[str, methods.Method] = {}
    monkeypatch.setattr(methods, "_registered", table)
    yield table
    for name in [name for name in sys.modules if name.startswith("fourstage_import_")]:
        del sys.modules[name]


def test_methods_are_found_by_name() -> None:
    assert find_method("retinanet", "detection").builder is RetinaNet
    assert all(issubclass(method.builder, Detector) for method in all_methods("detection"))  # pyright: ignore
    assert list_methods("segmentation") == ["upernet", "semantic_fpn"]
    with pytest.raises(ValueError, match=r"did you mean mask_rcnn.*masks=False"):
        find_method("faster_rcnn", "detection")
    with pytest.raises(ValueError, match=r"there are .*cascade_mask_rcnn"):
        find_method("yolo", "detection")
    with pytest.raises(
        ValueError,
        match=r"no segmentor is called 'uperne'; did you mean upernet\? \(if it is your own",
    ):
        find_method("uperne", "segmentation")


@pytest.mark.parametrize("name", METHODS)
def test_every_address_of_a_row_exists(name: str) -> None:
    method = METHODS[name]
    for address in (method.build, method.names, method.count_classes, method.read_config):
        assert isinstance(address, str)
        assert resolve_name(address) is not None
    for address in (method.regular, method.describe):
        assert address is None or callable(resolve_name(address))
    assert method.keys is not None
    assert method.config_types


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("roi_head.bbox_head.0.fc_cls.weight", "cascade_mask_rcnn"),
        ("box_heads.2.classify.bias", "cascade_mask_rcnn"),
        ("roi_head.bbox_head.fc_cls.weight", "mask_rcnn"),
        ("bbox_head.retina_cls.bias", "retinanet"),
        ("dense_head.classify.bias", "retinanet"),
        ("bbox_head.atss_cls.weight", "atss"),
        ("rpn_head.init_proposal_features.weight", "sparse_rcnn"),
        ("init_proposal_features.weight", "sparse_rcnn"),
        ("proposal_features.weight", "sparse_rcnn"),
        ("dense_head.centerness.bias", "atss"),
        ("decode_head.psp_modules.0.1.conv.weight", "upernet"),
        ("decoder.scales.0.convs.0.conv.weight", "semantic_fpn"),
        ("query_embed.weight", None),
    ],
)
def test_a_complete_checkpoint_is_recognised_by_its_keys(key: str, name: str | None) -> None:
    found = recognise(["neck.laterals.0.weight", key])
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("create", "task"), [(fourstage.create_detector, "detection"), (fourstage.create_segmentor, "segmentation")]
)
def test_the_docstring_of_a_builder_names_all_methods(create: Callable[..., nn.Module], task: str) -> None:
    words = create.__doc__ or ""
    assert [name for name in list_methods(task) if f'"{name}"' not in words] == []


def test_a_registered_method_is_known_by_its_name() -> None:
    @fourstage.register_detector
    def tiny_detector(backbone: nn.Module, num_classes: int) -> nn.Module:
        return nn.Identity()

    assert find_method("tiny_detector", "detection").builder is tiny_detector
    assert list_methods("detection")[-1] == "tiny_detector"
    with pytest.raises(ValueError, match=r"no segmentor is called 'tiny_detector'"):
        find_method("tiny_detector", "segmentation")


def test_a_name_is_given_once() -> None:
    def upernet(backbone: nn.Module, num_classes: int) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match="there is a segmentor called 'upernet' already"):
        fourstage.register_detector(upernet)
    with pytest.raises(ValueError, match="by the name of its class or function"):
        fourstage.register_segmentor(nn.Identity())  # pyright: ignore


def test_a_file_may_be_run_again_and_another_may_not_take_its_name(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(FILE)
    recipe = {"name": "mine", "method": "Mine", "backbone": "swin_tiny", "optimisation": OPTIMISATION}

    def run(*files: str) -> None:
        own = Detection.model_validate({**recipe, "imports": [str(tmp_path / file) for file in files]})
        import_files(own.imports)

    run("a.py")
    first = find_method("Mine", "detection").builder
    del sys.modules[module_name(tmp_path / "a.py")]
    run("a.py")
    assert find_method("Mine", "detection").builder is not first
    with pytest.raises(ValueError, match=r"b\.py, line 6: ValueError: there is a detector called 'Mine' already"):
        run("b.py")


OPTIMISATION = {"batch_size": 2, "length": "1ep", "lr": 0.1}


@pytest.mark.parametrize(("schema", "task"), [(Detection, "detection"), (Segmentation, "segmentation")])
def test_a_recipe_checks_its_method_unless_imports_may_register_it(schema: type[Recipe], task: str) -> None:
    values = {"name": "mine", "method": "retina_net_", "backbone": "swin_tiny", "optimisation": OPTIMISATION}
    with pytest.raises(ValueError, match=f"no {methods.NETWORKS[task]} is called 'retina_net_'"):
        schema.model_validate(values)
    assert schema.model_validate({**values, "imports": ["mine.py"]}).network_name == "retina_net_ over swin_tiny"
