"""What a network of another library must have to be a backbone here."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class WrappedBackbone(nn.Module, ABC):
    """A network of another library as a dense backbone, for the loader of checkpoints."""

    name: str

    @abstractmethod
    def classifier_names(self) -> frozenset[str]:
        """Return the names of all parameters and buffers of the library's classifier."""

    @abstractmethod
    def stem_names(self) -> tuple[str, ...]:
        """Return the names of the weights in the library's classifier that read the image."""

    def resized(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a classifier's file, its positions resized by the library; empty where it does not."""
        return {}
