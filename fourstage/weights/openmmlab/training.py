"""From a configuration file to the values of a recipe: the network, its data, and how it is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fourstage.plurals import plural
from fourstage.weights.description import NetworkDescription
from fourstage.weights.openmmlab.config_files import ConfigFile, read_config_file, unread_values
from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.findings import Findings, rounded
from fourstage.weights.openmmlab.network import network_of_config
from fourstage.weights.openmmlab.optimisers import accumulation, average, optimiser, precision
from fourstage.weights.openmmlab.schedules import length_of_mmcv, length_of_mmengine, rates_of_mmcv, rates_of_mmengine
from fourstage.weights.openmmlab.section import ConfigSection, Values, mapping, name_of
from fourstage.weights.openmmlab.train_data import TrainData, detection_augmentation, segmentation_augmentation
from fourstage.weights.openmmlab.train_methods import is_fixed, training_arguments
from fourstage.weights.openmmlab.watched import Watched

GPUS = 8  # where nothing says how many: OpenMMLab's usual number
BEFORE_PAIRS, PAIRS = "2.11.0", "2.19.0"  # versions of MMDetection around the change of RetinaNet's candidates
SINCE_PAIRS = ("auto_scale_lr", "opencv_num_threads", "mp_start_method")  # keys that only later versions have
MANY = 3  # values of a section, from which on they are listed in one line
DATA, FOLLOWS, NO_EFFECT = "--data PATH", "the data decide", "no effect on results"
FILE = "give the file with weights=FILE"
REASONS = {  # pattern of a path -> why it has no place in a recipe
    "model.backbone.init_cfg.*": FILE,
    "model.init_cfg.*": FILE,
    "model.backbone.pretrained": FILE,
    "model.pretrained": FILE,
    "load_from": FILE,
    "work_dir": "--out RUN",
    **dict.fromkeys(("data*.ann_file", "data*.img_prefix", "data*.seg_prefix", "data*.img_dir", "data*.ann_dir"), DATA),
    **dict.fromkeys(("data_root", "data*.data_root", "*dataloader.dataset*.data_root"), DATA),
    **dict.fromkeys(("*dataloader.dataset*.ann_file", "*dataloader.dataset*.data_prefix*"), DATA),
    **dict.fromkeys(("*.classes", "classes", "*metainfo*", "*.palette"), FOLLOWS),
    **dict.fromkeys(("data.train.type", "data.train.dataset.type", "data.test.type", "dataset_type"), FOLLOWS),
    "*dataloader.dataset*.type": FOLLOWS,
    "*workers*": "as many as the cores allow",
    "train_dataloader.sampler*": "images are shuffled in each epoch",
    "custom_imports*": "no code is imported",
    "plugin*": "no code is imported",
}
SECTIONS = {  # a value of the top level, or of `data`, that is listed in one line -> why it has no place in a recipe
    **dict.fromkeys(("data.val", "val_dataloader", "val_pipeline"), "validation images are prepared as test images"),
    **dict.fromkeys(("evaluation", "val_evaluator", "test_evaluator"), "all metrics are always computed"),
    **dict.fromkeys(("resume", "resume_from", "auto_resume"), "the same command continues a run"),
    **dict.fromkeys(("log_config", "log_level", "log_processor", "visualizer", "vis_backends"), NO_EFFECT),
    **dict.fromkeys(("checkpoint_config", "default_hooks", "dist_params", "env_cfg", "workflow"), NO_EFFECT),
    **dict.fromkeys(("cudnn_benchmark", "opencv_num_threads", "mp_start_method", "gpu_ids", "device"), NO_EFFECT),
    **dict.fromkeys(("default_scope", "val_cfg", "test_cfg", "find_unused_parameters", "tta_model"), NO_EFFECT),
}


@dataclass(frozen=True)
class ImportedConfig:
    """The values of a recipe, and what is beside them.

    Attributes:
        left_out: lines `path.to.key = value` of what has no counterpart here, with what is used instead.
        assumed: sentences about what the configuration does not say.
    """

    network: NetworkDescription
    values: Values
    left_out: tuple[str, ...]
    assumed: tuple[str, ...]


def import_config(
    path: Path, *, gpus: int | None = None, version: str | None = None, folders: Sequence[Path] = ()
) -> ImportedConfig:
    """Return what a configuration file means for a recipe.

    Args:
        gpus: the number of devices of its training.
        version: of MMDetection, as "2.11".
        folders: see `read_config_file`.

    Raises:
        ValueError: the file is no configuration, or describes what cannot be built here; the sentence says what.
        OSError: a file is missing or cannot be read.
    """
    file = read_config_file(path, folders)
    watched = Watched(file.values, str(path))
    config, findings = ConfigSection(watched, "config", str(path)), Findings()
    data = TrainData(config, findings)
    version = version or _version(config, data, findings)
    network = network_of_config(watched, str(path), meta={"mmdet_version": version})
    values = _values(config, data, network, findings, gpus)
    return ImportedConfig(network, values, _left_out(file, watched, network, findings), tuple(findings.assumed))


def _version(config: ConfigSection, data: TrainData, findings: Findings) -> str:
    """Return a version of MMDetection that has the keys of this configuration."""
    if data.is_engine or any(key in config.values for key in SINCE_PAIRS):
        return PAIRS
    if config.section("model").type_name in ("RetinaNet", "ATSS"):
        findings.assume("candidates are selected as before MMDetection 2.19; if it is newer, add --mmdet 2.19")
    return BEFORE_PAIRS


def _values(
    config: ConfigSection, data: TrainData, network: NetworkDescription, findings: Findings, gpus: int | None
) -> Values:
    optimisation = optimiser(config, findings, network)
    scaled = _batch(config, data, findings, gpus, optimisation["lr"])
    optimisation |= scaled
    if data.is_engine:
        values = length_of_mmengine(config, findings, data.passes)
        rates = rates_of_mmengine(config, findings, optimisation["lr"], data.passes)
    else:
        values = length_of_mmcv(config, data.passes)
        rates = rates_of_mmcv(config, findings, optimisation["lr"], data.passes)
    values["optimisation"] |= optimisation | rates
    values |= precision(config, findings) | average(config, findings)
    values["evaluation_batch_size"] = _test_batch(config, data)
    values["sync_batchnorm"] = _has_synchronised_norms(mapping(config.values.get("model")))
    values |= _logging(config) | _backbone_settings(config, network, findings)
    values["method_args"] = _joined(network.method_args, training_arguments(config, network, findings))
    if network.task == "segmentation":
        return values | _segmentation(config, data, network, findings)
    values["augmentation"] = detection_augmentation(data)
    per_image = _detections(network)
    limits = {"limits": [100, 300, 1000]} if per_image > 100 else {}  # MMDetection's, which change nothing below that
    return values | data.filters() | {"evaluation": {**network.evaluation, **limits}}


def _batch(config: ConfigSection, data: TrainData, findings: Findings, gpus: int | None, lr: float) -> dict[str, Any]:
    """Return the images of one update over all devices, and the rate for them."""
    scaling = config.section("auto_scale_lr")
    base, count = scaling.integer("base_batch_size", 0), data.per_device()
    follows = scaling.flag("enable", False)
    if gpus is None and base:
        batch = base
        findings.assume(f"a batch has auto_scale_lr.base_batch_size={base} images; for another one, add --gpus N")
    else:
        batch = count * (gpus or GPUS)
        if gpus is None:
            findings.assume(
                f"{GPUS} GPUs with {plural(count, 'image')} each, a batch of {batch}; for another number, add --gpus N"
            )
    batch *= accumulation(config)
    rate = rounded(lr * batch / base) if follows and base else lr
    return {"batch_size": batch, "lr": rate} | ({"lr_scaling": "peak"} if follows else {})


def _test_batch(config: ConfigSection, data: TrainData) -> int:
    if data.is_engine:
        return max(1, config.section("test_dataloader").integer("batch_size", 1))
    section = config.section("data")
    own = section.section("test_dataloader").integer("samples_per_gpu", 1)
    return max(1, section.section("test").integer("samples_per_gpu", own))


def _has_synchronised_norms(model: object) -> bool:
    """Return whether some norm of the heads is SyncBN."""
    if isinstance(model, Mapping):
        if name_of(model) in ("SyncBN", "MMSyncBN", "NaiveSyncBN"):
            return True
        return any(_has_synchronised_norms(model[key]) for key in model if key in HOLD_NORMS)
    return isinstance(model, list | tuple) and any(map(_has_synchronised_norms, model))


HOLD_NORMS = ("norm_cfg", "neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "decode_head", "auxiliary_head")


def _logging(config: ConfigSection) -> Values:
    hooks = config.section("default_hooks").section("logger")
    every = hooks.integer("interval", config.section("log_config").integer("interval", 50))
    seed = config.section("randomness").get("seed", config.get("seed"))
    out: Values = {"log_every": max(1, every)}
    return out | ({"seed": seed} if type(seed) is int and 0 <= seed < 2**63 else {})


def _backbone_settings(config: ConfigSection, network: NetworkDescription, findings: Findings) -> Values:
    """Return what a recipe says of the backbone beside its arguments."""
    backbone = config.section("model").section("backbone")
    out: Values = {"backbone_args": dict(network.backbone_args)}
    if backbone.type_name == "SwinTransformer" and backbone.get("drop_path_rate") is None:
        # mmdet's and mmseg's own class defaults to 0.1; that of Microsoft's forks 0.2
        out["backbone_args"]["drop_path_rate"] = 0.1 if "embed_dims" in backbone.values else 0.2
    for name in ("drop_rate", "attn_drop_rate"):
        findings.expect(backbone, name, 0.0)
    if backbone.get("with_cp") is True or backbone.get("use_checkpoint") is True:
        out["grad_checkpointing"] = True
    backbone.section("norm_cfg").get("type")
    frozen = backbone.get("frozen_stages", -1)
    stages = frozen - 1 if isinstance(frozen, int) and "embed_dim" in backbone.values else frozen  # Microsoft's count
    if isinstance(stages, int) and stages > 0:
        out["frozen_stages"] = int(stages)
    elif frozen != -1:
        findings.differs(backbone, "frozen_stages", "nothing is frozen here")
    return out


def _segmentation(config: ConfigSection, data: TrainData, network: NetworkDescription, findings: Findings) -> Values:
    evaluation: Values = dict(network.evaluation)
    if ratios := _ratios(config, data):
        evaluation["ratios"] = ratios
    evaluation["ratios_of"] = "image" if data.is_engine else "scale"
    first = config.section("model").section("data_preprocessor")
    augmentation = segmentation_augmentation(data)
    for name, usual in (("pad_val", 0), ("seg_pad_val", 255)):
        findings.expect(first, name, usual)
    if "size" in first.values and "crop" in augmentation:
        findings.expect(first, "size", list(augmentation["crop"]))
    return {"over_valid": network.over_valid, "augmentation": augmentation, "evaluation": evaluation}


def _ratios(config: ConfigSection, data: TrainData) -> list[float]:
    """Return the scales of the multi-scale test, where the configuration has some."""
    pipeline: Any = config.get("tta_pipeline", [])
    steps: list[Any] = list(pipeline) if isinstance(pipeline, list | tuple) else []
    if not data.is_engine:
        steps = EvaluationPipeline(config.values, config.section("model")).outer_steps()
    for step in steps:
        old: Any = mapping(step).get("img_ratios")
        found = old if isinstance(old, list | tuple) else []
        for branch in mapping(step).get("transforms") or []:
            for one in branch if isinstance(branch, list | tuple) else []:
                ratio = mapping(one).get("scale_factor")
                found = [*found, ratio] if ratio is not None else found
        if found and all(isinstance(one, int | float) and 0 < one <= 100 for one in found):
            return list(found)
    return []


def _detections(network: NetworkDescription) -> int:
    selecting = network.method_args.get("selecting") or {}
    return int(network.method_args.get("per_image") or selecting.get("per_image") or 100)


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    """Return two mappings as one, with mappings inside them joined too."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _joined(out[key], value) if both else value
    return out


def _left_out(file: ConfigFile, config: Watched, network: NetworkDescription, findings: Findings) -> tuple[str, ...]:
    """Return a line for everything without a counterpart: first what may change numbers, then the rest."""
    lines = [_line(path, value, instead) for path, (value, instead) in findings.differing.items()]
    sections: dict[str, list[str]] = {}
    rest: list[str] = []
    code = dict(unread_values(file.values))
    for path, value in config.unseen().items():
        top, _, below = path.partition(".")
        section = f"data.{below.partition('.')[0]}" if top == "data" else top
        if top in file.helpers or path in findings.differing:
            continue
        if path not in code and is_fixed(path, value, str(network.method)):
            continue
        if section in SECTIONS:
            sections.setdefault(section, []).append(_line(path, value, SECTIONS[section]))
        elif reason := next((why for pattern, why in REASONS.items() if fnmatchcase(path, pattern)), ""):
            rest.append(_line(path, value, reason))
        else:
            lines.append(_line(path, value, ""))
    for section, found in sections.items():
        top, _, below = section.partition(".")
        whole = file.values[top][below] if below else file.values[top]
        rest += found if len(found) < MANY else [_line(section, whole, SECTIONS[section])]
    return (*lines, *rest, *(f"code that was not run: {one}" for one in file.statements))


def _line(path: str, value: object, reason: str) -> str:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{path} = {shown}" + (f"  ({reason})" if reason else "")
