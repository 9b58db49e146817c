"""Detectors and segmentors by name: one row for each, which says where its pieces are.

Every package may import it. It imports none of them: an address is text, "module:attribute", which is imported when
the attribute is needed.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any, TypeAlias, TypeVar

from fourstage.user_files import BUILT_IN, OWN, Place, name_of, place_of

NETWORKS = {"detection": "detector", "segmentation": "segmentor"}  # task -> what its networks are called
DETECTION, SEGMENTATION = "fourstage.tasks.detection", "fourstage.tasks.segmentation"
FOREIGN = "fourstage.weights.openmmlab"
AUTO = "auto"  # in a recipe, instead of the value of one of these arguments, which then follows from the data
BY_DATA = ("queries", "prior")

Builder: TypeAlias = Callable[..., Any]  # of an nn.Module; this file imports no torch
Build = TypeVar("Build", bound=Builder)


@dataclass(frozen=True)
class Method:
    """How one detector or segmentor is built and recognised.

    Attributes:
        name: what users type, as in `create_detector(name, ...)` and in a recipe's `method`.
        task: "detection" or "segmentation".
        build: called with a backbone, a number of classes and the method's own arguments; or its address.
        names: address of the rules that rename the neck and the heads of foreign checkpoints; None: there are no
            foreign checkpoints, and our checkpoints use the network's own keys.
        keys: a pattern that some key outside the backbone matches in every checkpoint of this method, foreign or ours,
            and in none of the methods below it in the table.
        count_classes: address of a function from the tensors of such a checkpoint to its number of classes, or None
            where the tensors do not show it.
        config_types: names of the network in OpenMMLab's configurations.
        read_config: address of the function that reads such a configuration.
        regular: address of a function from the tensors of a foreign checkpoint and the network's number of classes to
            tensors under names that `names` knows, where rules for single names cannot express it.
        describe: address of a function from the tensors of a foreign checkpoint without a configuration to the
            arguments of the network; it returns None where they do not show them.
        without_masks: name of the method where it is built with `masks=False`; None: it has no such argument.
        auto_queries: address of a function from the objects of the fullest training image to the number that
            `queries=auto` stands for; None: it has no such argument.
        data_notes: address of a function from the method's arguments, the data's name and the objects of its fullest
            image to sentences about what the detector cannot learn of that image.
        query_points: address of a function from a network, a batch of one image and a number of queries to the points
            that the best queries sample, for a picture.
        place: the place of what registered it.
    """

    name: str
    task: str
    build: str | Builder
    names: str | None = None
    keys: str | None = None
    count_classes: str | None = None
    config_types: tuple[str, ...] = ()
    read_config: str | None = None
    regular: str | None = None
    describe: str | None = None
    without_masks: str | None = None
    auto_queries: str | None = None
    data_notes: str | None = None
    query_points: str | None = None
    place: Place = BUILT_IN

    @property
    def builder(self) -> Builder:
        """The class or function that builds the network, imported now."""
        return resolve_name(self.build) if isinstance(self.build, str) else self.build


METHODS = {
    method.name: method
    for method in (
        Method(
            "sparse_rcnn",
            "detection",
            f"{DETECTION}.sparse_rcnn:SparseRCNN",
            names="fourstage.weights.sparse_rcnn:SPARSE_RCNN",
            count_classes="fourstage.weights.sparse_rcnn:count_of_sparse_rcnn",
            keys=r"init_proposal_features\.weight$|^proposal_features\.",
            config_types=("SparseRCNN",),
            read_config=f"{FOREIGN}.sparse_rcnn:sparse_rcnn",
            regular="fourstage.weights.sparse_rcnn:regular",
            describe="fourstage.weights.sparse_rcnn:arguments_of_state",
        ),
        Method(
            "cascade_mask_rcnn",
            "detection",
            f"{DETECTION}.cascade_mask_rcnn:CascadeMaskRCNN",
            names=f"{FOREIGN}.detector_names:HEADS",
            count_classes=f"{FOREIGN}.detector_names:count_of_box_head",
            keys=r"^roi_head\.bbox_head\.0\.|^box_heads\.",
            config_types=("CascadeRCNN",),
            read_config=f"{FOREIGN}.detectors:cascade",
            without_masks="Cascade R-CNN",
        ),
        Method(
            "mask_rcnn",
            "detection",
            f"{DETECTION}.mask_rcnn:MaskRCNN",
            names=f"{FOREIGN}.detector_names:HEADS",
            count_classes=f"{FOREIGN}.detector_names:count_of_box_head",
            keys=r"^roi_head\.|^box_head\.",
            config_types=("MaskRCNN", "FasterRCNN"),
            read_config=f"{FOREIGN}.detectors:mask_rcnn",
            without_masks="Faster R-CNN",
        ),
        Method(
            "atss",
            "detection",
            f"{DETECTION}.atss:ATSS",
            names=f"{FOREIGN}.detector_names:ATSS",
            count_classes=f"{FOREIGN}.detector_names:count_of_atss",
            keys=r"\.atss_cls\.|^dense_head\.centerness\.",
            config_types=("ATSS",),
            read_config=f"{FOREIGN}.detectors:atss",
        ),
        Method(
            "retinanet",
            "detection",
            f"{DETECTION}.retinanet:RetinaNet",
            names=f"{FOREIGN}.detector_names:HEADS",
            count_classes=f"{FOREIGN}.detector_names:count_of_retinanet",
            keys=r"\.retina_cls\.|^dense_head\.",
            config_types=("RetinaNet",),
            read_config=f"{FOREIGN}.detectors:retinanet",
        ),
        Method(
            "dino",
            "detection",
            f"{DETECTION}.dino:DINO",
            names="fourstage.weights.dino:NAMES",
            count_classes="fourstage.weights.dino:count_of_dino",
            keys=r"^dn_query_generator\.|^label_embed\.|^label_enc\.",
            config_types=("DINO",),
            read_config=f"{FOREIGN}.dino:dino",
            regular="fourstage.weights.dino:regular",
            describe="fourstage.weights.dino:arguments_of_state",
            auto_queries=f"{DETECTION}.dino_data:queries_for",
            data_notes=f"{DETECTION}.dino_data:notes_on_objects",
            query_points=f"{DETECTION}.dino_query_points:best_query_points",
        ),
        Method(
            "upernet",
            "segmentation",
            f"{SEGMENTATION}.upernet:upernet",
            names=f"{FOREIGN}.segmentor_names:UPERNET",
            count_classes=f"{FOREIGN}.segmentor_names:count_of_decoder",
            keys=r"^decode_head\.psp_modules\.|^decoder\.pooled\.",
            config_types=("EncoderDecoder",),
            read_config=f"{FOREIGN}.segmentors:segmentor",
        ),
        Method(
            "semantic_fpn",
            "segmentation",
            f"{SEGMENTATION}.semantic_fpn:semantic_fpn",
            names=f"{FOREIGN}.segmentor_names:SEMANTIC_FPN",
            count_classes=f"{FOREIGN}.segmentor_names:count_of_decoder",
            keys=r"^decode_head\.scale_heads\.|^decoder\.scales\.",
            config_types=("EncoderDecoder",),
            read_config=f"{FOREIGN}.segmentors:segmentor",
        ),
    )
}
_registered: dict[str, Method] = {}


def all_methods(task: str | None = None) -> list[Method]:
    """The methods of a task, or of all tasks: built-in ones first, then registered ones."""
    return [method for method in (*METHODS.values(), *_registered.values()) if task in (None, method.task)]


def list_methods(task: str | None = None) -> list[str]:
    """The names of the methods of a task, or of all tasks."""
    return [method.name for method in all_methods(task)]


def find_method(name: str, task: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: the task has no such method; the message offers the nearest name.
    """
    found = next((method for method in all_methods(task) if method.name == name), None)
    if found is None:
        known = list_methods(task)
        close = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"no {NETWORKS[task]} is called {name!r}; {hint}{_boxes_alone(name, task)} ({OWN})")
    return found


def get_method(name: str) -> Method | None:
    """Return the method of this name, of any task; None if there is none."""
    return METHODS.get(name) or _registered.get(name)


def _boxes_alone(name: str, task: str) -> str:
    """Return a hint on R-CNNs without masks, for a name such as faster_rcnn."""
    maskable = [method.name for method in all_methods(task) if method.without_masks]
    return f"; for boxes alone take {' or '.join(maskable)} with masks=False" if "rcnn" in name and maskable else ""


def recognise(keys: Iterable[str]) -> Method | None:
    """Return the method of a complete checkpoint by the keys outside its backbone; None if no method matches."""
    keys = list(keys)
    named = ((method, method.keys) for method in all_methods() if method.keys is not None)
    return next((method for method, pattern in named if any(re.search(pattern, key) for key in keys)), None)


def register_detector(build: Build) -> Build:
    """Make your own detector reachable by its name: `create_detector(build.__name__, ...)`, `method:` in a recipe.

    `build` is a class or a function that takes a backbone, the number of classes and arguments of its own, and gives a
    `Detector`; CONTRIBUTING.md shows one.

    Raises:
        ValueError: the name is taken.
    """
    return _register(build, "detection")


def register_segmentor(build: Build) -> Build:
    """Make your own segmentor reachable by its name: `create_segmentor(build.__name__, ...)`, `method:` in a recipe.

    `build` is a class or a function that takes a backbone, the number of classes and arguments of its own, and gives a
    `Segmentor`; CONTRIBUTING.md shows one.

    Raises:
        ValueError: the name is taken.
    """
    return _register(build, "segmentation")


def _register(build: Build, task: str) -> Build:
    name, place = name_of(build, NETWORKS[task]), place_of(build)
    taken = get_method(name)
    if taken is not None and taken.place != place:
        raise ValueError(f"there is a {NETWORKS[taken.task]} called {name!r} already; give the new one another name")
    _registered[name] = Method(name, task, build, place=place)
    return build
