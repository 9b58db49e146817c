"""Dense backbones that return some of their maps compute them as the one that returns all.

In float32 a map is as exact as the network lets it be: the last map of `swin_visformer` with random weights, with a
standard deviation of 28, moves by 2e-3 when the pixels of the image move by their last bit.
"""

import pytest
import torch
from tiny_networks import NETWORKS, tiny_dense

from fourstage.ops import chunks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["plain", "fast"])
@pytest.mark.parametrize("name", NETWORKS)
def test_some_maps_are_those_of_all(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    complete = tiny_dense(name).eval().to(dtype)
    images = torch.randn(2, 3, 64, 96, dtype=dtype)
    with torch.inference_mode():
        maps = complete(images)
        monkeypatch.setattr(chunks, "WIDEST", 1)  # fast paths then compute each image alone
        for kept in ((len(maps) - 2, len(maps) - 1), (len(maps) - 1,), (0,)):
            some = tiny_dense(name, out_indices=kept).eval().to(dtype)
            own = some.state_dict()
            some.load_state_dict({key: value for key, value in complete.state_dict().items() if key in own})
            found = some(images)
            assert len(found) == len(kept)
            for x_BCHW, i in zip(found, kept, strict=True):
                share = 1e-7 if dtype == torch.float64 else 1e-4  # as for the numbers of the original code
                atol = share * maps[i].std().item()
                torch.testing.assert_close(x_BCHW, maps[i], rtol=share, atol=atol)
