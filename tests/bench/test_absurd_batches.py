"""A batch that no memory holds is refused at once, and torch's overflow of sizes means the same."""

import pytest
import torch

from fourstage.bench.options import Options
from fourstage.resources import is_out_of_memory


def test_a_batch_that_no_machine_holds() -> None:
    message = (
        "1,048,576 images of 16384 x 16384 pixels have .* of numbers, more than any memory; give a smaller --batch"
    )
    with pytest.raises(ValueError, match=message):
        Options(batch_size=2**20, img_size=(2**14, 2**14))
    Options(batch_size=2**12, img_size=(2**14, 2**14))


def test_an_overflow_of_sizes_is_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**40, 2**40)
    assert is_out_of_memory(error.value)
