"""How a configuration prepares test images, and its limits on what a network predicts."""

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourstage.weights.openmmlab.section import ConfigSection, Values, is_count, is_number, mapping, name_of

Triple = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class EvaluationPipeline:
    """The test pipeline of a configuration.

    Attributes:
        config: the configuration.
        model: its section `model`.
    """

    config: Mapping[str, Any]
    model: ConfigSection

    def limits(self) -> ConfigSection:
        """Return `test_cfg`, which older configurations have beside the model."""
        own = self.model.get("test_cfg") or self.config.get("test_cfg")
        return ConfigSection(own if isinstance(own, Mapping) else {}, "test_cfg", self.model.source)

    def steps(self) -> list[Mapping[str, Any]]:
        """Return the steps for a test image, unwrapped; empty where the configuration does not say."""
        out: list[Mapping[str, Any]] = []
        for step in self.outer_steps():
            inner = step.get("transforms")
            out.append(step)
            if name_of(step) == "MultiScaleFlipAug" and isinstance(inner, list | tuple):
                out += [ChainMap(mapping(one), {"img_scale": step.get("img_scale")}) for one in inner]  # pyright: ignore
        return out

    def outer_steps(self) -> list[Mapping[str, Any]]:
        """Return the steps for a test image as they are written."""
        data, loader = self.config.get("data"), self.config.get("test_dataloader")
        test = mapping(mapping(data).get("test")) or mapping(mapping(loader).get("dataset"))
        while isinstance(test.get("dataset"), Mapping):  # wrapped
            test = mapping(test["dataset"])
        steps = test.get("pipeline") or self.config.get("test_pipeline") or []
        return [mapping(step) for step in steps] if isinstance(steps, list | tuple) else []

    def scale(self) -> list[int] | None:
        """Return the two limits on a test image's sides in pixels; None where the configuration does not say.

        Raises:
            ValueError: a scale that is not two numbers of pixels, or a step that is not supported.
        """
        self._check_steps()
        resize = self.step("Resize")
        if resize is None or resize.get("scale_factor") == 1:
            return None
        section = ConfigSection(resize, "test pipeline's Resize", self.model.source)
        section.require("keep_ratio", [True], default="img_scale" in resize)
        scale = section.get("scale", section.get("img_scale"))
        if isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple):
            scale = scale[0]  # of several, the first is for a single view
        if not isinstance(scale, list | tuple) or len(scale) != 2 or not all(is_count(side) for side in scale):
            raise section.error(f"has the scale {scale!r:.60}, and two numbers of pixels are needed")
        return [int(side) for side in scale]

    def step(self, name: str) -> Mapping[str, Any] | None:
        """Return the first step of this name."""
        return next((step for step in self.steps() if name_of(step) == name), None)

    def _check_steps(self) -> None:
        """Raise ValueError for a step that gives other sizes than the transforms here."""
        known = ("Resize", "Pad")
        for step in self.steps():
            if re.search("Resize|Crop|Pad", name_of(step)) and name_of(step) not in known:
                raise ConfigSection(step, "test pipeline", self.model.source).error(
                    f"has the step {name_of(step)}, and images here go through {' and '.join(known)}"
                )

    def divisor(self) -> int:
        """Return the number whose multiples the sides of a segmentor's test image are.

        Raises:
            ValueError: images are padded before they are normalised.
        """
        own = mapping(self.model.get("data_preprocessor")) or mapping(self.config.get("data_preprocessor"))
        places = [ConfigSection(own.get("test_cfg"), "data_preprocessor.test_cfg", self.model.source)]
        if (pad := self.step("Pad")) is not None:
            names = [name_of(step) for step in self.steps()]
            if "Normalize" not in names[: names.index("Pad")]:
                raise ConfigSection(pad, "test pipeline's Pad", self.model.source).error(
                    "comes before images are normalised, and here it comes after"
                )
            places.append(ConfigSection(pad, "test pipeline's Pad", self.model.source))
        for place in places:
            place.require("size", [None], default=None)
            for name in ("pad_val", "pad_to_square"):
                place.require(name, [0, False, {"img": 0, "seg": 255}], default=0)
        return max(1, *(place.integer("size_divisor", 1) for place in places))

    def protocol(self) -> Values:
        """Return the sizes and windows with which a segmentor predicts a test image."""
        limits = self.limits()
        limits.require("mode", ["whole", "slide"], default="whole")
        scale = self.scale()
        values: Values = {"scale": scale} if scale or self.steps() else {}
        if (divisor := self.divisor()) > 1:
            values["divisor"] = divisor
        if limits.get("mode") == "slide":
            values |= {"window": list(limits.integers("crop_size")), "stride": list(limits.integers("stride"))}
        return values

    def normalisation(self) -> tuple[Triple | None, Triple | None]:
        """Return mean and standard deviation of pixels from 0 to 1; None where the configuration does not say."""
        config, model = self.config, self.model
        first = (model.get("data_preprocessor"), config.get("data_preprocessor"))
        places = (*first, self.step("Normalize"), config.get("img_norm_cfg"))
        found = next((place for place in places if mapping(place).get("mean") is not None), None)
        if found is None:
            return None, None
        section = ConfigSection(found, "normalisation", model.source)
        if any(found is place for place in first):  # MMEngine keeps the order of the file that is read, blue first
            section.require("bgr_to_rgb", [True], default=False)
        else:
            section.require("to_rgb", [True], default=True)
        return _triple(section, "mean"), _triple(section, "std")


def _triple(section: ConfigSection, name: str) -> Triple:
    """Return three numbers from 0 to 255 as numbers from 0 to 1."""
    found: Any = section.get(name)
    if not isinstance(found, list | tuple) or len(found) != 3 or not all(is_number(one) for one in found):
        raise section.error(f"has the {name} {found!r:.60}, and three numbers are needed")
    red, green, blue = found
    return red / 255, green / 255, blue / 255
