"""Names of the parameters of timm's feature extractors in timm's classifiers."""

import re
from collections.abc import Container, Iterator


def name_in(names: Container[str], key: str) -> str | None:
    """Return the name, among those of a classifier, of a parameter that is called `key` here; None: there is none."""
    return next((name for name in _names(key) if name in names), None)


def _names(key: str) -> Iterator[str]:
    """Yield the names that the complete classifier may have for a feature extractor's parameter.

    The extractor is in one or two modules called `model`, and timm joins the first two names of a Sequential:
    `layers_0.blocks` is `layers.0.blocks` in the classifier.
    """
    bare = re.sub(r"^(?:model\.){1,2}", "", key)
    yield bare
    first = bare.partition(".")[0]
    for match in re.finditer("_", first):
        yield f"{bare[: match.start()]}.{bare[match.end() :]}"
