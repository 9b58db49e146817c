"""Dense backbones that return some of their maps compute them as the one that returns all."""

import pytest
import torch
from tiny_networks import NETWORKS, tiny_dense


@pytest.mark.parametrize("name", NETWORKS)
def test_some_maps_are_those_of_all(name: str) -> None:
    complete = tiny_dense(name).eval().double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        maps = complete(images)
        for kept in ((len(maps) - 2, len(maps) - 1), (len(maps) - 1,), (0,)):
            some = tiny_dense(name, out_indices=kept).eval().double()
            own = some.state_dict()
            some.load_state_dict({key: value for key, value in complete.state_dict().items() if key in own})
            found = some(images)
            assert len(found) == len(kept)
            for x_BCHW, i in zip(found, kept, strict=True):
                torch.testing.assert_close(x_BCHW, maps[i])
