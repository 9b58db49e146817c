"""Labels of a data set in the classes of a classifier."""

from pathlib import Path

from fourstage.analysis.networks import LoadedNetwork
from fourstage.data.labels.imagenet_variants import wnids
from fourstage.data.mapped_classes import KnownClasses, map_classes
from fourstage.data.sample import Dataset
from fourstage.run.checkpoint_classes import in_imagenet

IMAGENET = 1000


def labelled_for(dataset: Dataset, loaded: LoadedNetwork, data: str | Path) -> tuple[Dataset | None, str]:
    """Return the data set with its labels in the classes of a network, and a remark.

    Classes are matched by name where the network has names, and ImageNet's by their WordNet ids. Without labels of the
    network's classes the result is None: accuracy then cannot be measured.
    """
    if "label" not in dataset.truths:
        return None, f"{data} has no label for each image, so accuracy is not measured."
    names, own = loaded.classes, tuple(dataset.classes)
    named = bool(names) and not all(name == f"class {i}" for i, name in enumerate(names))
    if own == names or (len(own) == len(names) and not named):
        return dataset, ""
    if named and set(own) <= set(names):
        return map_classes(dataset, f"the validation split of {data}", KnownClasses(names, loaded.name)), ""
    if len(names) == IMAGENET and (set(own) <= set(wnids()) or len(own) == IMAGENET):
        return in_imagenet(dataset, str(data)), ""
    return None, (
        f"{loaded.name} has {len(names)} classes and {data} has {len(own)} others, so accuracy is not measured."
    )
