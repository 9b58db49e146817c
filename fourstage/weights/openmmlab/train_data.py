"""The training data of a configuration: batch, filters, and the steps that augment an image."""

from collections.abc import Sequence
from typing import Any

from fourstage.weights.openmmlab.findings import Findings
from fourstage.weights.openmmlab.section import ConfigSection, Values, is_count, is_number, mapping

MOST_SIDES = 2000  # different sides that a range of sizes stands for
WITHOUT_EFFECT = {  # steps that say how arrays are passed on -> their entries without effect on what is computed
    "LoadImageFromFile": ("file_client_args", "backend_args", "color_type", "imdecode_backend"),
    "LoadAnnotations": ("with_bbox", "with_mask", "with_seg", "with_label", "backend_args", "file_client_args"),
    "DefaultFormatBundle": (),
    "Collect": ("keys", "meta_keys"),
    "PackDetInputs": ("meta_keys",),
    "PackSegInputs": ("meta_keys",),
    "ImageToTensor": ("keys",),
    "FilterAnnotations": ("min_gt_bbox_wh", "keep_empty", "by_mask"),
    "LoadImageFromNDArray": (),
}


class TrainData:
    """The training section of a configuration.

    Attributes:
        passes: over the data in what the configuration calls an epoch.
        dataset: the innermost data set.
        steps: of its pipeline.
    """

    def __init__(self, config: ConfigSection, findings: Findings) -> None:
        self.config, self.findings, self.passes = config, findings, 1
        self.loader = config.section("train_dataloader")
        self.data = config.section("data")
        self.is_engine = bool(self.loader.values)
        outer = self.loader.section("dataset") if self.is_engine else self.data.section("train")
        if isinstance(self.data.get("train"), list | tuple):
            outer = self.data.sections("train")[0]
            findings.assume("the training data are a list, and the first of them says how images are augmented")
        self.dataset = self._inner(outer)
        found: Any = self.dataset.get("pipeline", config.get("train_pipeline", []))
        path = f"{self.dataset.path}.pipeline"
        listed = found if isinstance(found, list | tuple) else []
        self.steps = [ConfigSection(one, f"{path}.{i}", config.source) for i, one in enumerate(listed)]

    def _inner(self, section: ConfigSection) -> ConfigSection:
        """Return the data set inside its wrappers."""
        for _ in range(10):
            if not mapping(section.get("dataset")) and not isinstance(section.get("datasets"), list | tuple):
                break
            if section.type_name == "RepeatDataset":
                self.passes *= max(1, section.integer("times", 1))
            elif section.type_name:
                self.findings.differs(section, "type", "the data set inside it alone here")
            inside = "dataset" if mapping(section.get("dataset")) else "datasets"
            section = section.sections(inside)[0]
        return section

    def per_device(self) -> int:
        """Return the images of a batch on one device."""
        if self.is_engine:
            return max(1, self.loader.integer("batch_size", 1))
        loader = self.data.section("train_dataloader")
        usual = self.data.integer("samples_per_gpu", self.data.integer("imgs_per_gpu", 1))
        return max(1, loader.integer("samples_per_gpu", usual))

    def filters(self) -> Values:
        """Return which images train, and which share a batch."""
        if self.is_engine:
            filters, sampler = self.dataset.section("filter_cfg"), self.loader.section("batch_sampler")
            if filters.values:
                self.findings.expect(filters, "min_size", 32)
            grouped = sampler.type_name == "AspectRatioBatchSampler"
            return {"filter_empty": filters.flag("filter_empty_gt", False), "group_by_aspect": grouped}
        return {"filter_empty": self.dataset.flag("filter_empty_gt", True)}


def detection_augmentation(data: TrainData) -> Values:
    """Return `augmentation` of a detection recipe."""
    out: Values = {}
    resizes: list[ConfigSection] = []
    findings = data.findings
    for step in data.steps:
        match step.type_name:
            case "Resize" | "RandomResize" | "RandomChoiceResize":
                resizes.append(step)
            case "RandomFlip":
                out["hflip"] = _flip(step, findings)
            case "AutoAugment" | "RandomChoice":
                out |= _either(step, findings)
            case "RandomCrop" if resizes and _ratios(resizes[-1]):
                _check_jitter(step, resizes[-1], findings)
            case "CopyPaste":
                out["copy_paste"] = True
                findings.expect(step, "max_num_pasted", 100)
            case _:
                _other(step, findings, divisor=32)
    for more in resizes[1:]:
        findings.differs(more, "type", "one resize here")
    if resizes:
        out |= _resize(resizes[0], findings)
    return out


def _flip(step: ConfigSection, findings: Findings) -> float:
    found = step.get("flip_ratio", step.get("prob", 0.0))
    findings.expect(step, "direction", "horizontal")
    if not is_number(found) or not 0 <= found <= 1:
        findings.differs(step, "flip_ratio" if "flip_ratio" in step.values else "prob", "0.5 here")
        return 0.5
    return found


def _other(step: ConfigSection, findings: Findings, divisor: int) -> None:
    """Note what a step does that is neither done here nor without effect."""
    if step.type_name == "Normalize":  # read with the test pipeline
        for name in ("mean", "std", "to_rgb"):
            step.get(name)
    elif step.type_name == "Pad":
        step.get("pad_val")
        if step.get("size") is None:
            findings.expect(step, "size_divisor", divisor)
        else:
            step.get("size")
    elif step.type_name in WITHOUT_EFFECT:
        for name in WITHOUT_EFFECT[step.type_name]:
            step.get(name)
    else:
        findings.differs(step, "type", "no such step here")


def _resize(step: ConfigSection, findings: Findings) -> Values:
    """Return the policy of one resize: to one size, to one of several, or by a random factor."""
    _check_ratio_is_kept(step, findings)
    if (ratios := _ratios(step)) is not None:
        scale = _sizes(step)[0]
        return {"policy": "large_scale_jitter", "scale": [max(scale), min(scale)], "jitter": list(ratios)}
    longest, sides = _sides(step, findings)
    if len(sides) == 1:
        return {"policy": "resize", "scale": [longest, sides[0]]}
    return {"policy": "multi_scale", "scale": [longest, max(sides)], "short_sides": sides, "crop_prob": 0.0}


def _check_ratio_is_kept(step: ConfigSection, findings: Findings) -> None:
    """Note a resize that changes the aspect ratio. MMDetection 3 does so by default."""
    usual = "img_scale" in step.values or step.type_name != "Resize"
    if not step.flag("keep_ratio", usual):
        if "keep_ratio" in step.values:
            findings.differs(step, "keep_ratio", "True here")
        else:
            findings.assume(f"{step.path} changes the aspect ratio of images, and here it is kept")


def _ratios(step: ConfigSection) -> tuple[float, float] | None:
    found: Any = step.get("ratio_range")
    if found is None:
        return None
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(map(is_number, found)):
        raise step.error(f"has ratio_range={found!r:.60}, and two numbers are needed")
    return found[0], found[1]


def _check_jitter(crop: ConfigSection, resize: ConfigSection, findings: Findings) -> None:
    """Note where the crop after a resize by a random factor is not as here: to the size of factor 1."""
    findings.expect(crop, "crop_type", "absolute")
    scale, size = _sizes(resize)[0], crop.get("crop_size")
    if not isinstance(size, list | tuple) or sorted(size) != sorted(scale):
        findings.differs(crop, "crop_size", f"{tuple(scale)} here")
    for name in ("recompute_bbox", "allow_negative_crop"):
        crop.get(name)


def _either(step: ConfigSection, findings: Findings) -> Values:
    """Return the policy of a choice between a resize, and a resize, a crop and the resize."""
    name = "policies" if "policies" in step.values else "transforms"
    found: Any = step.get(name)
    branches = [list(one) for one in found if isinstance(one, list | tuple)] if isinstance(found, list | tuple) else []
    branches.sort(key=len)
    if [len(one) for one in branches] != [1, 3]:
        findings.differs(step, "type", "no such choice here")
        return {}
    (only,), (first, crop, last) = (
        [ConfigSection(one, f"{step.path}.{name}", step.source) for one in branch] for branch in branches
    )
    if "Resize" not in only.type_name or "Resize" not in first.type_name or crop.type_name != "RandomCrop":
        findings.differs(step, "type", "no such choice here")
        return {}
    if step.get("prob") is not None:
        findings.differs(step, "prob", "equally likely here")
    longest, sides = _sides(only, findings)
    first_longest, first_sides = _sides(first, findings)
    if _sides(last, findings) != (longest, sides):
        findings.differs(last, _scale_name(last), "as without a crop here")
    if first_longest != longest:
        findings.differs(first, _scale_name(first), f"{longest} here for the longer side")
    for one in (only, first, last):
        _check_ratio_is_kept(one, findings)
        for name in ("override", "type"):
            one.get(name)
    findings.expect(crop, "crop_type", "absolute_range")
    findings.expect(crop, "allow_negative_crop", True)
    sizes: Any = crop.get("crop_size")
    if not isinstance(sizes, list | tuple) or len(sizes) != 2 or not all(map(is_count, sizes)):
        raise crop.error(f"has crop_size={sizes!r:.60}, and two numbers of pixels are needed")
    out: Values = {"policy": "multi_scale", "scale": [longest, max(sides)], "short_sides": sides}
    return out | {"first_sides": first_sides, "crop": sorted(sizes)}


def _scale_name(step: ConfigSection) -> str:
    return next((name for name in ("img_scale", "scales", "scale") if name in step.values), "type")


def _sizes(step: ConfigSection) -> list[Sequence[int]]:
    """Return the pairs of sides, in pixels, that a resize has."""
    found: Any = step.get(_scale_name(step))
    several = found if isinstance(found, list | tuple) and found and isinstance(found[0], list | tuple) else [found]
    for one in several:
        if not isinstance(one, list | tuple) or len(one) != 2 or not all(is_count(side) and side for side in one):
            raise step.error(f"has the size {one!r:.60}, and two numbers of pixels are needed")
    return list(several)


def _sides(step: ConfigSection, findings: Findings) -> tuple[int, list[int]]:
    """Return the limit on the longer side, and the shorter sides that are drawn from."""
    sizes = _sizes(step)
    longest, shorter = [max(size) for size in sizes], [min(size) for size in sizes]
    if len(set(longest)) > 1:
        findings.differs(step, _scale_name(step), f"{max(longest)} here for the longer side")
    by_range = step.get("multiscale_mode", "range") == "range" and step.type_name == "Resize"
    if len(sizes) == 2 and (by_range or step.type_name == "RandomResize"):
        low, high = min(shorter), max(shorter)
        if high - low >= MOST_SIDES:
            raise step.error(f"draws from {high - low + 1:,} sides, and at most {MOST_SIDES:,} are read")
        return max(longest), list(range(low, high + 1))
    return max(longest), list(dict.fromkeys(shorter))


def segmentation_augmentation(data: TrainData) -> Values:
    """Return `augmentation` of a segmentation recipe."""
    findings = data.findings
    out: Values = {"scale": None, "ratio": [1.0, 1.0], "hflip": 0.0, "photometric": False, "most_of_one": 1.0}
    for step in data.steps:
        match step.type_name:
            case "Resize" | "RandomResize":
                out |= _segmentation_resize(step, findings)
            case "RandomCrop":
                size: Any = step.get("crop_size")
                out["crop"] = list(size) if isinstance(size, list | tuple) else [size, size]
                out["most_of_one"] = step.fraction("cat_max_ratio", 1.0)
                findings.expect(step, "ignore_index", 255)
            case "RandomFlip":
                out["hflip"] = _flip(step, findings)
            case "PhotoMetricDistortion":
                out["photometric"] = True
                for name, usual in (
                    ("brightness_delta", 32),
                    ("contrast_range", [0.5, 1.5]),
                    ("saturation_range", [0.5, 1.5]),
                    ("hue_delta", 18),
                ):
                    findings.expect(step, name, usual)
            case "LoadAnnotations" if step.get("reduce_zero_label") is not None:
                _zero_label(step, data)
            case "Pad":
                _check_padding(step, findings)
            case _:
                _other(step, findings, divisor=1)
    if "crop" not in out:
        findings.assume("the training has no crop, and here images are cropped to 512 x 512 pixels")
    return out


def _segmentation_resize(step: ConfigSection, findings: Findings) -> Values:
    _check_ratio_is_kept(step, findings)
    sizes = _sizes(step)
    if len(sizes) > 1:
        findings.differs(step, _scale_name(step), f"{tuple(sizes[0])} here")
    return {"scale": list(sizes[0]), "ratio": list(_ratios(step) or (1.0, 1.0))}


def _zero_label(step: ConfigSection, data: TrainData) -> None:
    if data.dataset.type_name == "ADE20KDataset":
        data.findings.expect(step, "reduce_zero_label", True)  # as in the layout of ADE20K
    elif step.get("reduce_zero_label"):
        data.findings.differs(step, "reduce_zero_label", "the format of the data decides")


def _check_padding(step: ConfigSection, findings: Findings) -> None:
    for name, usual in (("pad_val", 0), ("seg_pad_val", 255)):
        findings.expect(step, name, usual)
    step.get("size")
