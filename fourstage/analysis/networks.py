"""The networks to analyse: by name, from a file, from the folder of a run, or as a module. B images, C channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fourstage.api import CHECKPOINT_ENDINGS, create_backbone, create_model, fresh_network, from_checkpoint
from fourstage.backbones.base import MEAN, STD, crop_mode_of
from fourstage.extras import install
from fourstage.files import is_hub_name
from fourstage.registry import find
from fourstage.run_folders import no_run
from fourstage.weights import saved
from fourstage.weights.description import describe_network
from fourstage.weights.load import head_classes
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint
from fourstage.weights.rules import check_real

Form = Literal["maps", "logits"]
Triple = tuple[float, float, float]
CROP_PCT = 0.875  # also where images are squashed: views of invariance need a margin
RUN_FILES = ("checkpoints/best.pt", "checkpoints/last.pt")


@dataclass(frozen=True)
class Preparation:
    """How images reach a network.

    Attributes:
        mean, std: of pixel values in [0, 1], by channel.
        image_size: height and width of the network's images, pixels.
        crop_pct: share of the resized short side that the centre crop keeps.
        crop_mode: "squash" evaluates images that were resized straight to the square; see `images.evaluated`.
        interpolation: of the resize.
    """

    mean: Triple = MEAN
    std: Triple = STD
    image_size: tuple[int, int] = (224, 224)
    crop_pct: float = CROP_PCT
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode, and what an analysis must know about it.

    Attributes:
        name: as the user gave it.
        trained: whether its weights come from a file or a download.
        preparation: how images reach it.
        classes: names in the order of the logits; () where there are none.
        rebuild: builds the same network with fresh weights; None where that is not known.
    """

    name: str
    network: nn.Module
    trained: bool
    preparation: Preparation = Preparation()
    classes: tuple[str, ...] = ()
    rebuild: Callable[[], nn.Module] | None = None

    @property
    def weights(self) -> str:
        return "trained" if self.trained else "untrained"


def load_network(
    source: str | Path | nn.Module,
    *,
    form: Form = "maps",
    pretrained: bool = False,
    which: str = "model",
    seed: int = 0,
    name: str | None = None,
) -> LoadedNetwork:
    """Return a network to analyse.

    Args:
        source: the name of a model, `timm/NAME`, `NAME=FILE` for a model with the weights of a file, a checkpoint that
            describes its network, the folder of a run or of `save_pretrained`, `hf-hub:user/name`, or a module.
        form: what the analysis needs of a network given by name: its feature maps, or its logits.
        pretrained: give a model by name its published weights; they are downloaded once.
        which: "model", or "ema" for the averaged weights of a checkpoint.
        seed: of fresh weights.
        name: for tables and figures; None: `source`, or the class of a module.

    Raises:
        ValueError, OSError: there is no such model, file or run, or it cannot be built.
    """
    if isinstance(source, nn.Module):
        return _of_module(source, name or type(source).__name__)
    text = str(source)
    path = Path(source)
    if path.is_dir() and not saved.is_folder(path):
        return _of_file(_checkpoint_of_run(path, which), which, seed, name or _short(text))
    if path.exists() or is_hub_name(text):
        return _of_file(source, which, seed, name or _short(text))
    model, equals, file = text.partition("=")
    if equals:
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file} for the weights of {model}; write NAME=FILE")
        return _of_name(model, form, file, pretrained=False, seed=seed, shown=name or f"{model}={Path(file).name}")
    if path.suffix in CHECKPOINT_ENDINGS or len(path.parts) > 2 or text.startswith((".", "/")):
        raise ValueError(f"there is no checkpoint or run folder {text}; give an existing one, or the name of a model")
    if len(path.parts) == 2 and path.parts[0] != "timm":
        raise FileNotFoundError(no_run(path))
    return _of_name(text, form, None, pretrained=pretrained, seed=seed, shown=name or text)


def untrained_twin(loaded: LoadedNetwork, seed: int = 0) -> LoadedNetwork:
    """Return the same network with fresh weights.

    Raises:
        ValueError: it is not known how the network is built.
    """
    if loaded.rebuild is None:
        raise ValueError(
            f"{loaded.name} was given as a module, which cannot be built again; build an untrained one yourself, and "
            "analyse it beside the first"
        )
    torch.manual_seed(seed)
    return replace(loaded, network=loaded.rebuild().eval(), trained=False)


def preparation_of(network: nn.Module) -> Preparation:
    """Return what a network's `default_cfg` or `pretrained_cfg` says about its images, else ImageNet's values."""
    inner: Any = getattr(network, "model", network)
    cfg: Any = None
    for one in (network, inner, getattr(network, "backbone", None)):
        cfg = cfg or getattr(one, "default_cfg", None) or getattr(one, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping):
        return Preparation()
    size = cfg.get("input_size") or (3, 224, 224)
    mode = crop_mode_of(cfg)
    return Preparation(
        mean=_triple(cfg.get("mean"), MEAN),
        std=_triple(cfg.get("std"), STD),
        image_size=(int(size[-2]), int(size[-1])),
        crop_pct=CROP_PCT if mode == "squash" else float(cfg.get("crop_pct") or CROP_PCT),
        crop_mode=mode,
        interpolation=str(cfg.get("interpolation") or "bicubic"),
    )


def _of_module(network: nn.Module, name: str) -> LoadedNetwork:
    classes = tuple(map(str, getattr(network, "class_names", ())))
    return LoadedNetwork(name, network.eval(), trained=True, preparation=preparation_of(network), classes=classes)


def _of_name(name: str, form: Form, file: str | None, *, pretrained: bool, seed: int, shown: str) -> LoadedNetwork:
    def build(*, filled: bool = False) -> nn.Module:
        start: dict[str, Any] = {"pretrained": pretrained, "checkpoint_path": file} if filled else {}
        if not name.startswith("timm/"):
            return create_model(name, **start, **classes)
        return create_backbone(name, **start) if form == "maps" else _classifier_of_timm(name, **start)

    if not name.startswith("timm/"):
        find(name.partition(".")[0])  # raises the sentence with the closest name
    classes: dict[str, Any] = {} if file is None or name.startswith("timm/") else _classes_in(file, name)
    torch.manual_seed(seed)
    network = build(filled=True).eval()
    return LoadedNetwork(
        shown, network, pretrained or file is not None, preparation_of(network), _class_names(network), build
    )


def _classes_in(file: str, name: str) -> dict[str, Any]:
    """Return the number of classes of a file's head, as an argument of the model; nothing where there is no head."""
    with torch.device("meta"):  # names without memory
        network = create_model(name)
    count = head_classes(network, read_checkpoint(file).weights())
    return {"num_classes": count} if count else {}


def _classifier_of_timm(name: str, pretrained: bool = False, checkpoint_path: str | Path | None = None) -> nn.Module:
    """Return a classifier of timm; unlike `create_backbone`, with its head."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{name} needs timm; type: {install('train')}") from error
    base = name.removeprefix("timm/")
    if not timm.is_model(base):
        raise ValueError(f"timm has no model called {base!r}; timm.list_models('*{base[:8]}*') lists similar ones")
    model = timm.create_model(base, pretrained=pretrained)
    if checkpoint_path is not None:
        state, own = read_checkpoint(checkpoint_path).weights(), model.state_dict()
        if keys := sorted(set(state) ^ set(own)):
            raise ValueError(f"{checkpoint_path} does not fit {name}: {keys[0]} is in one of the two only")
        if shapes := [key for key in own if own[key].shape != state[key].shape]:
            file, here = (tuple(one[shapes[0]].shape) for one in (state, own))
            raise ValueError(f"{checkpoint_path} does not fit {name}: {shapes[0]} is {file} there and {here} here")
        check_real(state, own, str(checkpoint_path))
        model.load_state_dict(state)
    return model


def _checkpoint_of_run(folder: Path, which: str) -> Path:
    """Return the best checkpoint of a run, or its last one where only that has the averaged weights."""
    best, last = (folder / file for file in RUN_FILES)
    if not best.is_file():
        raise ValueError(
            f"{folder} has no checkpoints/best.pt; give the folder of a run that was evaluated at least once"
        )
    if which == "ema" and read_checkpoint(best).content.get("which") != "ema" and last.is_file():
        return last
    return best


def _of_file(source: str | Path, which: str, seed: int, name: str) -> LoadedNetwork:
    file = read_checkpoint(source)
    network: Any = from_checkpoint(file.path, which=which)
    description = describe_network(file)
    assert description is not None, "from_checkpoint has built it"
    preparation = _preparation_of_file(file, network)

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return fresh_network(description)

    return LoadedNetwork(name, network.eval(), True, preparation, tuple(network.class_names), build)


def _preparation_of_file(file: Checkpoint, network: nn.Module) -> Preparation:
    """Return the preparation by the recipe in a file, by a foreign configuration, else by the network."""
    known = preparation_of(network)
    recipe = saved.stored_recipe(file)
    if isinstance(recipe, Mapping):
        evaluation = recipe.get("evaluation")
        evaluation = evaluation if isinstance(evaluation, Mapping) else {}
        crop = evaluation.get("crop_pct")
        side = recipe.get("image_size")
        return Preparation(
            mean=_triple(recipe.get("mean"), known.mean),
            std=_triple(recipe.get("std"), known.std),
            image_size=(side, side) if isinstance(side, int) else known.image_size,
            crop_pct=float(crop) if isinstance(crop, int | float) else known.crop_pct,
            crop_mode=crop_mode_of(evaluation) if "crop_mode" in evaluation else known.crop_mode,
            interpolation=str(recipe.get("interpolation") or known.interpolation),
        )
    description = describe_network(file)
    if description is None or description.mean is None:
        return known
    return replace(known, mean=_triple(description.mean, MEAN), std=_triple(description.std, STD))


def _triple(value: object, otherwise: Triple) -> Triple:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return otherwise
    first, second, third = (float(number) for number in value)
    return first, second, third


def _class_names(network: Any) -> tuple[str, ...]:
    count = getattr(network, "num_classes", 0)
    return tuple(f"class {i}" for i in range(count)) if isinstance(count, int) else ()


def _short(path: str) -> str:
    """Return the last component of a path that tells runs apart: of `runs/mine/checkpoints/best.pt` it is `mine`."""
    parts = [part for part in Path(path).parts if part not in ("checkpoints", "best.pt", "last.pt")]
    return parts[-1] if parts else path
