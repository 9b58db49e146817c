"""Write swin_transformers.json.gz: the outputs of a tiny Swin of Hugging Face's transformers, under fixed weights.

Made with transformers 5.24.0 and torch 2.15.0, by `python tests/golden/foreign/make_swin_transformers.py`. Names and
shapes are those of the files that `save_pretrained` writes. Values come from `fill`, so that none is stored. Version 5
has other names in memory; `names_in_memory` has those of the same tensors for the classifier.
"""

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from golden.fill import fill, image  # noqa: E402

CONFIG = transformers.SwinConfig(
    image_size=64,
    embed_dim=8,
    depths=[1, 2, 1, 2],
    num_heads=[1, 2, 4, 8],
    window_size=2,
    num_labels=7,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)


def kind_of(key: str, shape: list[int]) -> str:
    if key.endswith("relative_position_bias_table"):
        return "scale"  # large enough that a table in another order shows
    if key.endswith("weight"):
        return "weight" if len(shape) > 1 else "norm_weight"
    return "scale"


def filled(network: Any) -> tuple[Any, dict[str, list[int]]]:
    """Return a network from a folder whose weights are filled by name, and the shapes in that folder."""
    with tempfile.TemporaryDirectory() as folder:
        network(CONFIG).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        shapes = {key: list(value.shape) for key, value in load_file(path).items()}
        state = {key: torch.from_numpy(fill(key, tuple(shape), kind_of(key, shape))) for key, shape in shapes.items()}
        save_file(state, path, metadata={"format": "pt"})
        return network.from_pretrained(folder).eval(), shapes


def main() -> None:
    out: dict[str, object] = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    classifier, shapes = filled(transformers.SwinForImageClassification)
    backbone, dense_shapes = filled(transformers.SwinBackbone)
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(image((2, 3, 64, 64)))).logits
        maps = {size: backbone(torch.from_numpy(image((1, 3, *size)))).feature_maps for size in ((64, 64), (70, 90))}
    out["classifier"] = {key: [shape, kind_of(key, shape)] for key, shape in shapes.items()}
    out["backbone"] = {key: [shape, kind_of(key, shape)] for key, shape in dense_shapes.items()}
    out["names_in_memory"] = list(classifier.state_dict())
    out["logits"] = logits.tolist()
    out["maps"] = {
        f"{h}x{w}": [x.flatten()[:: max(1, x.numel() // 50)].tolist() for x in found] for (h, w), found in maps.items()
    }
    with gzip.GzipFile(HERE / "swin_transformers.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(out).encode())


if __name__ == "__main__":
    main()
