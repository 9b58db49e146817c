"""Four-stage vision backbones on today's PyTorch: train, evaluate, fine-tune and compare them.

The names below are imported when they are first used, so that `import fourstage` does not even import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourstage.api import (
        create_backbone,
        create_detector,
        create_model,
        create_segmentor,
        from_checkpoint,
        load_checkpoint,
    )
    from fourstage.backbones.layers import Level
    from fourstage.data.formats import register_format
    from fourstage.methods import register_detector, register_segmentor
    from fourstage.registry import list_models, register, register_mixer
    from fourstage.run.export import export_network
    from fourstage.run.open import load
    from fourstage.run.pretrained.push import push_to_hub
    from fourstage.run.pretrained.save import save_pretrained

    __version__: str

__all__ = [
    "Level",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmentor",
    "export_network",
    "from_checkpoint",
    "list_models",
    "load",
    "load_checkpoint",
    "push_to_hub",
    "register",
    "register_detector",
    "register_format",
    "register_mixer",
    "register_segmentor",
    "save_pretrained",
]

_HOMES = {
    "Level": "fourstage.backbones.layers",
    "create_backbone": "fourstage.api",
    "create_detector": "fourstage.api",
    "create_model": "fourstage.api",
    "create_segmentor": "fourstage.api",
    "export_network": "fourstage.run.export",
    "from_checkpoint": "fourstage.api",
    "load_checkpoint": "fourstage.api",
    "list_models": "fourstage.registry",
    "load": "fourstage.run.open",
    "push_to_hub": "fourstage.run.pretrained.push",
    "register": "fourstage.registry",
    "register_detector": "fourstage.methods",
    "register_format": "fourstage.data.formats",
    "register_mixer": "fourstage.registry",
    "register_segmentor": "fourstage.methods",
    "save_pretrained": "fourstage.run.pretrained.save",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fourstage")
    if name not in _HOMES:
        raise AttributeError(f"module 'fourstage' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
