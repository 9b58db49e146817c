"""Makes `fourstage/weights/golden_numbers.json.gz` of the complete numbers here: `python -m golden.pack` in tests/."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.weights.golden import FILE, KEPT
from golden.fill import read_manifest, sampled

HERE = Path(__file__).parent
PACKED = HERE.parents[1] / "fourstage" / "weights" / FILE
OURS: dict[str, tuple[str, dict[str, Any]]] = {  # the original's names of configurations, and ours
    "smt_t_det_backbone": ("smt_tiny", {}),
    "smt_t_seg_backbone": ("smt_tiny", {}),
    "smt_tiny_224": ("smt_tiny", {}),
    "smt_small_224": ("smt_small", {}),
    "swin_tiny_patch4_window7_224": ("swin_tiny", {}),
    "net4": ("visformer_net4", {}),
    "swin_visformer_tiny_v2_qk05": ("swin_visformer_tiny_v2", {"qk_scale_factor": -0.5}),
    "swin_visformer_tiny_v2_det_backbone": ("swin_visformer_tiny_v2", {"qk_scale_factor": -0.5}),
    "visformer_tiny_qk05": ("visformer_tiny", {"qk_scale_factor": -0.5}),
}
ALIASES = {f"swin_{size}_patch4_window7_224": f"swin_{size}" for size in ("tiny", "small", "base")}


def packed() -> dict[str, Any]:
    """Return the content of the file."""
    networks = [_network(path) for path in sorted((HERE / "backbones").rglob("*.npz"))]
    rows = json.loads((HERE / "published.json").read_text())["rows"]
    counts = [
        {key: ALIASES.get(row[key], row[key]) if key == "model" else row[key] for key in KEYS}
        for row in rows
        if row["model"]
    ]
    return {"networks": networks, "parameters": counts}


KEYS = ("model", "arguments", "dense", "params")


def _network(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path.with_suffix(".json.gz"))
    dense = manifest["kind"] != "cls"
    name, arguments = OURS.get(path.stem, (manifest["model"].removesuffix("_det_backbone"), {}))
    with np.load(path) as golden:
        if dense:
            tags = [f"out{i}" for i in range(4) if f"out{i}" in golden]
            outputs = [
                [manifest["tensors"][tag]["n"], golden[tag][:KEPT], manifest["tensors"][tag]["std"]] for tag in tags
            ]
        else:
            outputs = [[KEPT, sampled(golden["logits"], KEPT), float(golden["logits"].std())]]
    state = [[key, shape, kind] for key, (shape, _, kind) in manifest["state"].items() if kind != "keep"]
    return {
        "model": name,
        "arguments": arguments,
        "dense": dense,
        "source": path.parent.name,
        "shape": manifest["input_shape"],
        "state": state,
        "outputs": [
            [drawn, [float(f"{x:.7g}") for x in numbers], float(f"{std:.6g}")] for drawn, numbers, std in outputs
        ],
    }


if __name__ == "__main__":
    PACKED.write_bytes(gzip.compress(json.dumps(packed(), separators=(",", ":")).encode(), mtime=0))
    print(PACKED, PACKED.stat().st_size)
