"""Tests of oneDNN's products, which some builds of PyTorch lack."""

import platform

import pytest

from fourstage.ops import products


def need_onednn(names: str = "onednn") -> None:
    """Skip the test where products of these names are not built in. On x86 they always are, and nothing is skipped."""
    if products.has_onednn() or not ("onednn" in names or "convolution" in names):
        return
    assert platform.machine().lower() not in ("x86_64", "amd64"), "PyTorch's packages for x86 have oneDNN"
    pytest.skip("this PyTorch was built without oneDNN")
