"""Parameter groups and optimisers."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


def param_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    spared: Callable[[str, nn.Parameter], bool],
    lr_multipliers: Mapping[str, float] | None = None,
    layer_scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Group parameters by weight decay and rate.

    Args:
        spared: whether a parameter is never decayed.
        lr_multipliers: prefix of a name -> factor on the rate; the longest matching prefix wins.
        layer_scales: name -> further factor on the rate, by default 1; see `decayed_rates`.

    Returns:
        Groups for an optimiser. `lr_scale` is the factor on the schedule's rate; `names` lists the parameters.
    """
    multipliers = sorted((lr_multipliers or {}).items(), key=lambda item: -len(item[0]))
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if spared(name, parameter) else weight_decay
        scale = next((factor for prefix, factor in multipliers if name.startswith(prefix)), 1.0)
        scale *= (layer_scales or {}).get(name, 1.0)
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def norm_or_bias(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a vector, that is a gain or a bias: nearly every recipe spares these from decay."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def build_optimizer(
    groups: list[dict], *, name: str, lr: float, betas: tuple[float, float], eps: float, momentum: float
) -> Optimizer:
    """Return an optimiser in torch's fused form where there is one: one kernel for all parameters, on CPUs and GPUs."""
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if name == "lamb":
        from timm.optim.lamb import Lamb

        return Lamb(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=None)  # the training loop clips
    assert name == "sgd", name
    sharded = any(hasattr(parameter, "placements") for group in groups for parameter in group["params"])
    optimizer = SGD(groups, lr=lr, momentum=momentum, fused=not sharded)  # torch has no fused form for shards
    if momentum:  # torch allocates them without a value, which they keep where the first step is skipped
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def decayed_rates(layers: Mapping[str, int], decay: float) -> dict[str, float]:
    """Return name -> factor on the rate: `decay` to the power of the parameter's distance from the last layer.

    Args:
        layers: name -> layer, counted from 0 at the image.
    """
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def set_lr(optimizer: Optimizer, lr: float, weight_decay: float | None = None) -> None:
    """Set the rate of every group, times its own factor, and the weight decay of the groups that decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if weight_decay is not None and group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay
