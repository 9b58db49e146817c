"""A network's tensors get the memory of those of the pass before, without new pages."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
import fourstage

torch.set_num_threads(1)
network = fourstage.create_model("official_pvt_v2_b0").eval()
image_BCHW = torch.zeros(8, 3, 224, 224)
with torch.no_grad():
    for passes in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(image_BCHW)
        last = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(last)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_a_pass_needs_no_new_pages() -> None:
    """Without the higher threshold, 56,000."""
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "FOURSTAGE_"))
    }
    asked = {"FOURSTAGE_PRODUCTS": "blas,blas,fused"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**variables, **asked}
    )
    assert int(done.stdout) < 5000
