"""Every weight that the sources publish, with their statements about it. None: unknown or not stated.

A row is named by its network and a tag, as in timm: `smt_large.in22k_ft_in1k`. The bare name of a network means its
first row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

NOT_STATED = "none stated"  # the licence where the source's pages name none


@dataclass(frozen=True)
class Weight:
    """One published file."""

    model: str  # our network; of a detector or segmentor its backbone
    tag: str
    file: str | None  # None: promised, but not published
    address: str | None  # where a program can fetch it
    page: str  # where a person finds it
    origin: str  # the repository of the code that trained it
    data: str  # what it was trained on: in1k, in22k, in22k_in1k, coco, ade20k
    metrics: Mapping[str, float]  # per cent, as published: top1 and top5 on ImageNet-1K, box_map, mask_map, miou_ss
    licence: str = NOT_STATED
    method: str | None = None  # of a detector or segmentor
    img_size: int = 224  # pixels; of a detector the size that its backbone's tables have
    num_classes: int = 1000
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what else the network must be built with
    sha256: str | None = None  # of the file, or the first digits of it

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"

    @property
    def recipe(self) -> str | None:
        """Return the recipe that trains this detector or segmentor; None for a classifier."""
        return self.method and f"{self.method}_{self.model}_{self.tag.removeprefix(f'{self.method}_')}"

    @property
    def top1(self) -> float | None:
        """Per cent of ImageNet-1K's validation images."""
        return self.metrics.get("top1")

    @property
    def network(self) -> dict[str, Any]:
        """Return the arguments with which `model` is the network of this file."""
        classes = {} if self.method else {"num_classes": self.num_classes}
        return {"img_size": self.img_size, **classes, **self.arguments}


SWIN = "https://github.com/microsoft/Swin-Transformer"
SMT = "https://github.com/AFeng-x/SMT"
SCALABLE_VIT = "https://github.com/Yangr116/ScalableViT"
STM = "https://github.com/OpenGVLab/STM-Evaluation"
VISFORMER = "https://github.com/danczs/Visformer"
DETREX = "https://github.com/IDEA-Research/detrex"
MIM_EXAMPLE = "https://github.com/open-mmlab/mim-example"


# ------------------------------------------------------------------------------------------------ microsoft, OpenMMLab


def _swin(model: str, tag: str, release: str, file: str, top1: float | None, top5: float | None) -> Weight:
    return Weight(
        model=model,
        tag=tag,
        file=file,
        address=f"https://github.com/SwinTransformer/storage/releases/download/{release}/{file}",
        page=f"{SWIN}/blob/main/MODELHUB.md",
        origin=SWIN,
        data={"in22k_ft_in1k": "in22k_in1k"}.get(tag, tag),
        metrics=_given(top1=top1, top5=top5),
        licence="MIT",
        img_size=384 if model.endswith("_384") else 224,
        num_classes=21841 if tag == "in22k" else 1000,
    )


def _given(**metrics: float | None) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def _mim_example(schedule: str, file: str, sha256: str, box_map: float, mask_map: float) -> Weight:
    folder = f"https://download.openmmlab.com/mim-example/swin_transformer/swin_mask_rcnn/{file.partition('_2021')[0]}"
    return Weight(
        model="swin_tiny",
        tag=f"mask_rcnn_coco_{schedule}",
        file=file,
        address=f"{folder}/{file}",
        page=f"{MIM_EXAMPLE}/tree/master/swin_transformer",
        origin=MIM_EXAMPLE,
        data="coco",
        metrics={"box_map": box_map, "mask_map": mask_map},
        method="mask_rcnn",
        num_classes=80,
        sha256=sha256,
    )


def _detrex(model: str, schedule: str, file: str, box_map: float) -> Weight:
    """Return a row of DINO; `file` begins with the release."""
    return Weight(
        model=model,
        tag=f"dino_coco_{schedule}",
        file=file.partition("/")[2],
        address=f"https://github.com/IDEA-Research/detrex-storage/releases/download/{file}",
        page=f"{DETREX}/tree/main/projects/dino#pretrained-models",
        origin=DETREX,
        data="coco",
        metrics={"box_map": box_map},
        method="dino",
        img_size=384 if model.endswith("_384") else 224,
        num_classes=80,
        arguments={} if schedule.startswith("5scale") else {"out_indices": (1, 2, 3)},  # the files have no other norms
    )


B384, L384 = "swin_base_patch4_window12_384", "swin_large_patch4_window12_384"
SWIN_WEIGHTS = (
    _swin("swin_tiny", "in1k", "v1.0.0", "swin_tiny_patch4_window7_224.pth", 81.2, 95.5),
    _swin("swin_tiny", "in22k_ft_in1k", "v1.0.8", "swin_tiny_patch4_window7_224_22kto1k_finetune.pth", 80.9, 96.0),
    _swin("swin_tiny", "in22k", "v1.0.8", "swin_tiny_patch4_window7_224_22k.pth", None, None),
    _swin("swin_small", "in1k", "v1.0.0", "swin_small_patch4_window7_224.pth", 83.2, 96.2),
    _swin("swin_small", "in22k_ft_in1k", "v1.0.8", "swin_small_patch4_window7_224_22kto1k_finetune.pth", 83.2, 97.0),
    _swin("swin_small", "in22k", "v1.0.8", "swin_small_patch4_window7_224_22k.pth", None, None),
    _swin("swin_base", "in1k", "v1.0.0", "swin_base_patch4_window7_224.pth", 83.5, 96.5),
    _swin("swin_base", "in22k_ft_in1k", "v1.0.0", "swin_base_patch4_window7_224_22kto1k.pth", 85.2, 97.5),
    _swin("swin_base", "in22k", "v1.0.0", "swin_base_patch4_window7_224_22k.pth", None, None),
    _swin("swin_large", "in22k_ft_in1k", "v1.0.0", "swin_large_patch4_window7_224_22kto1k.pth", 86.3, 97.9),
    _swin("swin_large", "in22k", "v1.0.0", "swin_large_patch4_window7_224_22k.pth", None, None),
    _swin(B384, "in1k", "v1.0.0", "swin_base_patch4_window12_384.pth", 84.5, 97.0),
    _swin(B384, "in22k_ft_in1k", "v1.0.0", "swin_base_patch4_window12_384_22kto1k.pth", 86.4, 98.0),
    _swin(B384, "in22k", "v1.0.0", "swin_base_patch4_window12_384_22k.pth", None, None),
    _swin(L384, "in22k_ft_in1k", "v1.0.0", "swin_large_patch4_window12_384_22kto1k.pth", 87.3, 98.2),
    _swin(L384, "in22k", "v1.0.0", "swin_large_patch4_window12_384_22k.pth", None, None),
    # OpenMMLab's names of files end in the beginning of their sha256
    _mim_example("1x", "mask_rcnn_swim-t-p4-w7_fpn_1x_coco_20210612_135948-bf3d7aa4.pth", "bf3d7aa4", 42.6, 39.5),
    _mim_example(
        "1x_fp16", "mask_rcnn_swim-t-p4-w7_fpn_fp16_1x_coco_20210612_135948-6434d76f.pth", "6434d76f", 42.5, 39.3
    ),
    _detrex("swin_tiny", "4scale_12ep", "v0.1.1/dino_swin_tiny_224_4scale_12ep.pth", 51.3),
    _detrex("swin_tiny", "4scale_12ep_22k", "v0.1.1/dino_swin_tiny_224_22kto1k_finetune_4scale_12ep.pth", 52.5),
    _detrex("swin_small", "4scale_12ep", "v0.1.1/dino_swin_small_224_4scale_12ep.pth", 53.0),
    _detrex("swin_small", "4scale_12ep_22k", "v0.4.0/dino_swin_small_22k_4scale_12ep.pth", 54.5),
    _detrex(B384, "4scale_12ep", "v0.1.1/dino_swin_base_384_4scale_12ep.pth", 55.8),
    _detrex("swin_large", "4scale_12ep", "v0.1.1/dino_swin_large_224_4scale_12ep.pth", 56.9),
    _detrex(L384, "4scale_12ep", "v0.1.1/dino_swin_large_4scale_12ep.pth", 56.9),
    _detrex(L384, "5scale_12ep", "v0.2.1/dino_swin_large_384_5scale_12ep.pth", 57.5),
    _detrex(L384, "4scale_36ep", "v0.2.0/dino_swin_large_384_4scale_36ep.pth", 58.1),
    _detrex(L384, "5scale_36ep", "v0.2.1/dino_swin_large_384_5scale_36ep.pth", 58.5),
    Weight(
        model="swin_tiny",
        tag="upernet_ade20k_160k",
        file=None,
        address=None,
        page=f"{MIM_EXAMPLE}/tree/master/swin_transformer",
        origin=MIM_EXAMPLE,
        data="ade20k",
        metrics={"miou_ss": 44.3},
        method="upernet",
        num_classes=150,
    ),
)


# -------------------------------------------------------------------------------------------------- SMT, ScalableViT


def _smt(model: str, tag: str, file: str, top1: float | None, top5: float | None) -> Weight:
    return Weight(
        model=model,
        tag=tag,
        file=file,
        address=f"{SMT}/releases/download/v1.0.0/{file}",
        page=f"{SMT}#main-results-on-imagenet-with-pretrained-models",
        origin=SMT,
        data="in22k_in1k" if "ft" in tag else tag,
        metrics=_given(top1=top1, top5=top5),
        img_size=384 if tag.endswith("_384") else 224,
        num_classes=21841 if tag == "in22k" else 1000,
    )


def _scalable_vit(model: str, drive: str, top1: float) -> Weight:
    return Weight(
        model=model,
        tag="in1k",
        file=f"{model}.pth",  # a name of ours: the source gives none
        address=None,  # Google Drive serves browsers alone
        page=f"https://drive.google.com/file/d/{drive}/view",
        origin=SCALABLE_VIT,
        data="in1k",
        metrics={"top1": top1},
    )


SMT_WEIGHTS = (
    _smt("smt_tiny", "in1k", "smt_tiny.pth", 82.2, 96.0),
    _smt("smt_small", "in1k", "smt_small.pth", 83.7, 96.5),
    _smt("smt_base", "in1k", "smt_base.pth", 84.3, 96.9),
    _smt("smt_large", "in22k_ft_in1k", "smt_large_22k_224_ft.pth", 87.1, 98.1),
    _smt("smt_large", "in22k_ft_in1k_384", "smt_large_22k_384_ft.pth", 88.1, 98.4),
    _smt("smt_large", "in22k", "smt_large_22k.pth", None, None),
)
SCALABLE_VIT_WEIGHTS = (
    _scalable_vit("scalable_vit_small", "1gCWsATBJmW3xwJaoCcxGO1Wbg51cPtzk", 83.1),
    _scalable_vit("scalable_vit_base", "16MVmK4BGQpRH3Wz2VCOVzhTh2PFUFozH", 84.1),
    _scalable_vit("scalable_vit_large", "17LLK5PSssMpepxeAt6-uKSd4aaV99u5X", 84.4),
)


# ------------------------------------------------------------------------------------------- STM, the unified networks

# our mixer, its name in the files, size: top-1; box and mask AP of Mask R-CNN, 12 epochs on COCO
UNIFIED = (
    ("halo", "halonet", "micro", 75.8, 40.3, 37.3),
    ("halo", "halonet", "tiny", 83.0, 46.9, 42.4),
    ("halo", "halonet", "small", 84.0, 48.2, 43.3),
    ("halo", "halonet", "base", 84.6, 49.0, 43.8),
    ("pvt", "pvt", "micro", 72.8, 35.9, 34.2),
    ("pvt", "pvt", "tiny", 82.1, 44.2, 40.6),
    ("pvt", "pvt", "small", 83.2, 46.1, 41.9),
    ("pvt", "pvt", "base", 83.4, 46.4, 42.3),
    ("swin", "swin", "micro", 74.4, 36.6, 34.6),
    ("swin", "swin", "tiny", 82.3, 44.3, 40.5),
    ("swin", "swin", "small", 83.3, 46.4, 42.1),
    ("swin", "swin", "base", 83.7, 47.0, 42.2),
    ("convnext", "convnext", "micro", 75.1, 39.2, 36.4),
    ("convnext", "convnext", "tiny", 82.2, 44.3, 40.5),
    ("convnext", "convnext", "small", 83.1, 45.6, 41.2),
    ("convnext", "convnext", "base", 83.7, 46.7, 42.2),
    ("dcn_v3", "internimage", "micro", 75.3, 39.5, 36.6),
    ("dcn_v3", "internimage", "tiny", 83.3, 47.2, 42.5),
    ("dcn_v3", "internimage", "small", 84.1, 47.8, 43.0),
    ("dcn_v3", "internimage", "base", 84.5, 48.7, 43.8),
)


def _unified(mixer: str, theirs: str, size: str, top1: float) -> Weight:
    file = f"unified_{theirs}_{size}.pth"
    return Weight(
        model=f"unified_{mixer}_{size}",
        tag="in1k",
        file=file,
        address=f"{STM}/releases/download/cls-ckpt/{file}",
        page=f"{STM}#all-models",
        origin=STM,
        data="in1k",
        metrics={"top1": top1},
    )


def _unified_detector(mixer: str, theirs: str, size: str, box_map: float, mask_map: float) -> Weight:
    file = f"mask_rcnn_unified_{theirs}_{size}_1x.pth"
    return Weight(
        model=f"unified_{mixer}_{size}",
        tag="mask_rcnn_coco_1x",
        file=file,
        address=f"{STM}/releases/download/det-ckpt/{file}",
        page=f"{STM}/blob/main/detection/readme.md",
        origin=STM,
        data="coco",
        metrics={"box_map": box_map, "mask_map": mask_map},
        method="mask_rcnn",
        num_classes=80,
    )


STM_WEIGHTS = (
    *(_unified(mixer, theirs, size, top1) for mixer, theirs, size, top1, _, _ in UNIFIED),
    *(_unified_detector(mixer, theirs, size, box, mask) for mixer, theirs, size, _, box, mask in UNIFIED),
)


# --------------------------------------------------------------------------------------------------------- Visformer


def _visformer(model: str, file: str | None, top1: float, **arguments: Any) -> Weight:
    return Weight(
        model=model,
        tag="in1k",
        file=file,
        address=file and f"{VISFORMER}/releases/download/v1.0.0/{file}",
        page=f"{VISFORMER}#pre-trained-model",
        origin=VISFORMER,
        data="in1k",
        metrics={"top1": top1},
        arguments=arguments,
    )


VISFORMER_WEIGHTS = (
    _visformer("visformer_tiny", None, 78.6),
    _visformer("visformer_small", "visformer_small.pth", 82.2),
    # the accuracies of V2 belong to the recipe with -0.5; of the first version with window attention the source says it
    # in the configurations of the detectors that start from this file
    _visformer("swin_visformer_tiny_v2", None, 79.6, qk_scale_factor=-0.5),
    _visformer("swin_visformer_small_v2", "swin_visformer_small_v2.pth", 83.0, qk_scale_factor=-0.5),
    _visformer("swin_visformer_medium_v2", "swin_visofrmer_medium.pth", 83.6, qk_scale_factor=-0.5),  # sic
    _visformer("swin_visformer_small", "swin_visformer_small.pth", 82.34, qk_scale_factor=-0.5),
)

WEIGHTS = (*SWIN_WEIGHTS, *SMT_WEIGHTS, *SCALABLE_VIT_WEIGHTS, *STM_WEIGHTS, *VISFORMER_WEIGHTS)


# ------------------------------------------------------------------------------------------------------------ finding


def split(name: str) -> tuple[str, str | None]:
    """Return the network and the tag of a name such as `smt_large.in22k`; None without a tag."""
    model, dot, tag = name.partition(".")
    return model, tag if dot else None


def published(model: str) -> list[Weight]:
    """Return the rows of a model, by its own name (not an alias); the bare name means the first."""
    return [weight for weight in WEIGHTS if weight.model == model]


def find(model: str, tag: str | None = None) -> Weight:
    """Return the row of a model with this tag; without a tag, its first row.

    Raises:
        ValueError: there is no such row; the message lists the existing ones.
    """
    rows = published(model)
    if not rows:
        raise ValueError(
            f"no weights of {model} are published; build it with pretrained=False, or give a file: checkpoint_path="
        )
    found = next((weight for weight in rows if tag in (None, weight.tag)), None)
    if found is None:
        tags = [weight.tag for weight in rows]
        close = get_close_matches(tag or "", tags, n=1)
        hint = f"did you mean {model}.{close[0]}?" if close else f"it has {', '.join(tags)}"
        raise ValueError(f"{model} has no published weights called {tag!r}; {hint}")
    return found


def of_task(model: str, method: str | None, tag: str | None = None) -> Weight:
    """Return the row that a recipe starts from: of its method over `model` where one is published, else of `model`.

    Args:
        method: of a detector or segmentor; None: a classifier, which starts from the file of a classifier.
        tag: of the row; None: the first one that suits.

    Raises:
        ValueError: there is no such row; the message lists the existing ones.
    """
    if tag is not None:
        return find(model, tag)
    rows = [weight for weight in published(model) if weight.method in (method, None)]
    suiting = [weight for weight in rows if weight.method == method and weight.address] or rows
    if not suiting:
        raise ValueError(f"no weights of {model} are published")
    return suiting[0]


def of_recipe(name: str) -> Weight | None:
    """Return the row of the detector or segmentor that a recipe of this name trains."""
    return next((weight for weight in WEIGHTS if weight.recipe == name), None)


def recognise(model: str, file: str, sha256: str) -> Weight | None:
    """Return the row of a model that a file is: by its hash where that is known, else by its name."""
    for weight in published(model):
        if weight.sha256 and sha256.startswith(weight.sha256):
            return weight
        if weight.sha256 is None and weight.file == file:
            return weight
    return None


def of_file(file: str, sha256: str) -> tuple[Weight, str] | None:
    """Return the row that a file of any network is, and how it was recognised: by its hash, else by its name."""
    for weight in WEIGHTS:
        if weight.sha256 and sha256.startswith(weight.sha256):
            return weight, "sha256"
    found = next((weight for weight in WEIGHTS if weight.file == file), None)
    return None if found is None else (found, "file name")


def by_hand(weight: Weight, call: str = "create_model") -> str:
    """Return the end of a sentence: how to get a file without `pretrained=True`, and what to type then."""
    return f"download it in a browser from {weight.page}, then type {_typed(weight, call)}"


def no_address(weight: Weight, call: str = "create_model") -> str:
    """Return a sentence for a row that no program can fetch."""
    if weight.file is None:
        return (
            f"no file of {weight.name} is published: if you find one, {weight.page} may help, type "
            f"{_typed(weight, call)}"
        )
    return f"no program can download {weight.name}: {by_hand(weight, call)}"


def _typed(weight: Weight, call: str) -> str:
    """Return a call with the file of a row; for commands, what they take."""
    file = weight.file or f"{weight.model}.pth"
    if call == "train":
        return f"weights={file}, or weights=none to train from scratch"
    if call == "evaluate":
        return f"--weights {file}"
    if call == "verify":
        return f"fourstage verify {file}"
    if call == "analyze":
        return f"{weight.model}={file} in place of its name"
    if call == "predict":
        name = weight.recipe or weight.name  # `export` and `fourstage.load` take the same
        return f"--weights {file} behind {name}, as in fourstage predict {name} IMAGE --weights {file}"
    return f"{call}({weight.name!r}, checkpoint_path='{file}')"
