"""What a run asks of classification; see `kinds`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.api import create_model, load_checkpoint
from fourstage.data.formats import find_format
from fourstage.data.labels import imagenet_variants as imagenet
from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.data.transforms.classification import eval_transform, train_transform
from fourstage.data.transforms.mixing import Mixing
from fourstage.recipe import EMBEDDED, Recipe
from fourstage.recipe import Classification as ClassificationRecipe
from fourstage.run.checks import check_same_classes, check_truth
from fourstage.run.report_samples import keep
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import Opened, Record, Records, Scores, Seen, Transform
from fourstage.tasks.classification import Classification, share_within
from fourstage.weights import imagenet22k
from fourstage.weights.load import HEAD, load_state, our_names, unwrap
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

TRUTH = "label"
COLUMNS = (("count", 0), ("top1", 4), ("top5", 4), ("loss", 6))  # per cent, per cent, mean
SHOWN = 24  # right and wrong predictions each whose pictures a run folder keeps


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    give = "a folder with train/<class>/*.jpg"
    check_truth(recipe, dataset, TRUTH, "no class for each image", give)


def about(dataset: Dataset) -> dict[str, Any]:
    return {}


def unusual(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    return ()


def build_task(recipe: Recipe, classes: tuple[str, ...], about: Mapping[str, Any] | None = None) -> Classification:
    own = _own(recipe)
    torch.manual_seed(own.seed)
    network = create_model(own.model, num_classes=len(classes), **{"img_size": own.image_size, **own.model_args})
    _check_logits(network, own, len(classes))
    return Classification(network, classes, smoothing=own.augmentation.smoothing)


def start_from(task: Classification, weights: str) -> str:
    return f"starting from {load_checkpoint(task.network, weights, fresh_head=True)}"


def transforms(recipe: Recipe) -> tuple[Transform, Transform]:
    own = _own(recipe)
    a, e = own.augmentation, own.evaluation
    common: dict[str, Any] = {"mean": own.mean, "std": own.std, "interpolation": own.interpolation}
    train = train_transform(
        own.image_size,
        scale=a.scale,
        ratio=a.ratio,
        hflip=a.hflip,
        color_jitter=a.color_jitter,
        auto_augment=a.auto_augment,
        reprob=a.reprob,
        remode=a.remode,
        recount=a.recount,
        **common,
    )
    return train, eval_transform(own.image_size, crop_pct=e.crop_pct, crop_mode=e.crop_mode, **common)


def for_training(recipe: Recipe, dataset: Dataset) -> Dataset:
    return dataset


def groups(recipe: Recipe, dataset: Dataset) -> bytes:
    return b""


def divisor(recipe: Recipe) -> int:
    return 1


def mixing(recipe: Recipe, classes: int, part: int) -> Callable[[Batch], Batch] | None:
    a = _own(recipe).augmentation
    if not a.mixes:
        return None
    if part % 2:
        raise ValueError(
            f"mixing pairs images, and each process has {part} of them at a time; choose another batch_size, or turn "
            f"mixing off with augmentation.mixup=0 augmentation.cutmix=0"
        )
    return Mixing(
        classes,
        mixup=a.mixup,
        cutmix=a.cutmix,
        prob=a.mixup_prob,
        switch_prob=a.mixup_switch_prob,
        mode=a.mixup_mode,
        smoothing=a.smoothing,
        cutmix_minmax=a.cutmix_minmax,
    )


def repeats(recipe: Recipe) -> int:
    return _own(recipe).augmentation.repeats


def load(task: Classification, weights: str | Path, which: str) -> None:
    file = read_checkpoint(weights)
    load_state(task.network, file.weights(which), source=Path(weights).name)
    check_same_classes(weights, file, task.classes)


def open_evaluation(recipe: Recipe, weights: str | Path, which: str, *, show: bool) -> Opened:
    """The recipe's validation split, or a test set for ImageNet's classes where the checkpoint knows these."""
    variant = _variant(recipe, weights, which)
    if variant is None:
        data, expect = open_split(recipe, "val", show=show), dict(recipe.expect)
        return Opened(data, expect, further=_real(recipe, data))
    check_data(recipe, variant)
    if variant.own_validation:
        return Opened(variant, dict(recipe.expect), _limit_to(variant.among), _real(recipe, variant))
    note = "not ImageNet's own validation images, so no published number stands beside" if recipe.expect else ""
    return Opened(variant, {}, _limit_to(variant.among), notes=(note,) if note else ())


def _limit_to(among: tuple[int, ...] | None) -> Callable[[Classification], None]:
    def limit(task: Classification) -> None:
        task.among = among

    return limit


def _real(recipe: Recipe, data: Dataset) -> Scores:
    """`real`, where the data has ImageNet-ReaL's labels."""
    valid = None if recipe.data in (None, *EMBEDDED) else imagenet.read_real(Path(str(recipe.data)), data)
    if valid is None:
        return lambda records: {}
    return lambda records: {"real": share_within(records, valid)}


def _variant(recipe: Recipe, weights: str | Path, which: str) -> imagenet.Variant | None:
    """The recipe's data as a test set for ImageNet's 1000 classes; None where data or checkpoint are something else."""
    if recipe.data in (None, *EMBEDDED) or _own(recipe).num_classes not in (None, imagenet.CLASSES):
        return None
    folder = imagenet.find_variant(Path(str(recipe.data)))
    if folder is None or find_format(Path(str(recipe.data))).name != "ImageFolder":  # lists say what they are
        return None
    file = read_checkpoint(weights)
    trained_by = file.content.get("recipe")
    if isinstance(trained_by, dict) and trained_by.get("data") == recipe.data:
        return None  # its own data: what it was trained on must not be tested
    if file.classes is not None:
        return imagenet.Variant(folder) if tuple(file.classes) == imagenet.wnids() else None
    known = _classes_of_head(_own(recipe), file, which) in (imagenet.CLASSES, imagenet22k.CLASSES)
    return imagenet.Variant(folder) if known else None


def _classes_of_head(recipe: ClassificationRecipe, file: Checkpoint, which: str) -> int | None:
    """Rows of the head of a checkpoint that does not name its classes; None where no head is found."""
    with torch.device("meta"):  # names without memory
        network = create_model(recipe.model, **{"img_size": recipe.image_size, **recipe.model_args})
    state, _ = unwrap(file.weights(which))
    named = our_names(network, state)
    return next((len(named[0][key]) for key in HEAD if key in named[0]), None) if named else None


def named(model: str, weights: str | Path | None) -> tuple[Recipe, Classification]:
    network: Any = create_model(model, weights is None, checkpoint_path=weights)
    classes = read_checkpoint(weights).classes if weights is not None else None
    config = network.default_cfg
    values = {
        "name": model,
        "model": model,
        "image_size": config["input_size"][-1],
        "mean": config["mean"],
        "std": config["std"],
        "evaluation": {"crop_pct": config["crop_pct"]},
        "optimisation": {"batch_size": 2, "length": "1it", "lr": 1.0},
    }
    return ClassificationRecipe.model_validate(values), Classification(
        network, tuple(classes or _class_names(network.num_classes))
    )


def class_names(task: Classification) -> Sequence[str]:
    return imagenet.readable_names(task.classes)


def keep_samples(folder: Path, task: Classification, recipe: Recipe, val: Dataset, records: Records) -> None:
    """Small pictures of the most confident mistakes and of some right predictions."""

    def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
        return small(image_HW3), dict(records[sample.id])

    keep(folder, val, samples(records), draw)


def small(image_HW3: np.ndarray, side: int = 192) -> "Image":
    """A picture whose longer side has at most `side` pixels."""
    from PIL import Image

    picture = Image.fromarray(image_HW3)
    picture.thumbnail((side, side))
    return picture


def samples(records: Mapping[str, Record]) -> Sequence[str]:
    """The most confident mistakes, and right predictions drawn evenly over the data."""
    wrong = [id for id, record in records.items() if record["top"][0][0] != record["truth"]]
    wrong.sort(key=lambda id: (-records[id]["top"][0][1], id))  # the same ones, whoever gathered the records
    right = [id for id in sorted(records) if records[id]["top"][0][0] == records[id]["truth"]]
    return wrong[:SHOWN] + right[:: max(1, len(right) // SHOWN)][:SHOWN]


def see(task: Classification, recipe: Recipe, sample: Sample, title: str) -> Seen:
    device = next(task.parameters()).device
    [record] = task.predict(collate([transforms(recipe)[1](sample)]).to(device)).values()
    top = [(task.classes[c], p) for c, p in record["top"]]

    def pictures() -> "dict[str, Image]":
        from fourstage.report.pictures import draw_prediction

        assert isinstance(sample.image, np.ndarray), "images come as they were read"
        return {"": draw_prediction(sample.image, top, title)}

    values = {"top": [{"class": name, "probability": probability} for name, probability in top]}
    return Seen("   ".join(f"{name} {probability:.1%}" for name, probability in top), values, pictures)


def _own(recipe: Recipe) -> ClassificationRecipe:
    assert isinstance(recipe, ClassificationRecipe)
    return recipe


def _check_logits(network: object, recipe: ClassificationRecipe, classes: int) -> None:
    """Raise ValueError unless one image becomes one row of logits; networks of one's own may give anything."""
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"{recipe.model} gives a {type(network).__name__}; it must return a torch.nn.Module")
    with torch.inference_mode():
        found = network.eval()(torch.zeros(1, 3, recipe.image_size, recipe.image_size))
    network.train()
    if not isinstance(found, torch.Tensor) or found.shape != (1, classes):
        what = (
            f"a tensor of shape {tuple(found.shape)}"
            if isinstance(found, torch.Tensor)
            else f"a {type(found).__name__}"
        )
        raise ValueError(
            f"a classification recipe needs logits of shape (1, {classes}) for one image, and {recipe.model} gives "
            f"{what}; let its forward return (B, num_classes)"
        )


def _class_names(count: int) -> tuple[str, ...]:
    """ImageNet's names where a network has ImageNet's classes, numbers elsewhere."""
    if count != 1000:
        return tuple(f"class {i}" for i in range(count))
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()  # reads its tables when it is made
    return tuple(info.index_to_description(i) for i in range(count))
