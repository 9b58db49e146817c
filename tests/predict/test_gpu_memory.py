"""The memory that counts as free on a GPU, which stands in as three numbers."""

import pytest
import torch

from fourstage.predict.memory import check_memory


def test_memory_that_torch_keeps_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an image, PyTorch keeps its memory, and the driver calls that memory taken."""
    numbers = {"mem_get_info": (2**20, 2**34), "memory_reserved": 2**33, "memory_allocated": 2**32}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    gpu = torch.device("cuda", 0)
    check_memory("a.png", 2**24, 256.0, gpu)  # 4 GiB, which are kept and unused
    with pytest.raises(ValueError, match=r"needs about .* are free; add tile=640"):
        check_memory("a.png", 2**24, 260.0, gpu)
