"""The check of the losses that a network returns, which may be a user's own."""

from torch import Tensor, nn


def check_losses(losses: object, network: nn.Module) -> dict[str, Tensor]:
    """Return the losses as they are.

    Raises:
        ValueError: they are not named scalar tensors.
    """
    if not isinstance(losses, dict) or not losses:
        came = "no losses" if isinstance(losses, dict) else f"a {type(losses).__name__}"
        raise ValueError(_sentence(network, came))
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            came = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise ValueError(_sentence(network, f"{came} as {name!r}"))
    return losses


def _sentence(network: nn.Module, came: str) -> str:
    return f"{type(network).__name__}.losses returned {came}; return a dict from names to scalar tensors"
