"""Errors of data that a run can skip or explain. No torch, so that predictions can do without it."""

from typing import ClassVar


class BadImage(ValueError):
    """An image file, or the truth that comes with it, that cannot be used. The message names it and the reason.

    A run can skip such images. A format with another sentence makes a subclass with another `SENTENCE`.
    """

    SENTENCE: ClassVar[str] = "{path} cannot be read as an image: {reason}"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(self.SENTENCE.format(path=path, reason=reason))
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str]]:  # loader workers send it through a pipe
        return type(self), (self.path, self.reason)


class NoSplitError(ValueError):
    """The data set has no such split: one for evaluation alone has no training images."""
