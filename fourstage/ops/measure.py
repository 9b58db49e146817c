"""Measuring which products are the fastest on this machine.

Networks measure when the first one is built in a process, so that no forward pass does: not under a tracer or a
transform, and not in a loop that somebody times. One measurement takes about a tenth of a second.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fourstage.ops import attention, matmul, products
from fourstage.ops.eager import is_compiling, is_recorded, is_transformed, switched_on
from fourstage.ops.products import Products

TURNS = 4  # of which the first warms up
MARGIN = 0.95  # a product replaces PyTorch's own only if it takes at most this share of its time


def choose_products() -> Products:
    """Return the products that this process uses, and measure them if nothing chose them before.

    Nothing is measured where no fast path runs (`FOURSTAGE_OPS=plain`), nor while operators are recorded or
    transformed. The next network measures then.

    Raises:
        ValueError: the environment's `FOURSTAGE_PRODUCTS` names products that this machine lacks.
    """
    if is_compiling() or not switched_on():
        return products.current()
    chosen = products.chosen()
    if chosen is None and (is_recorded() or is_transformed()):
        return products.current()
    return chosen or products.use(measured())


def measured() -> Products:
    """Return the products that a short measurement finds to be the fastest, on real tensors whatever mode is active."""
    with (
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
    ):
        x_NC, weight_DC, bias_D = _filled(784, 384), _filled(384, 384), _filled(384)
        q, k, v = _filled(3, 64, 3, 49, 32).unbind(0)  # an image in windows
        mask = _filled(3, 49, 49)
        linear, attend = matmul.PRODUCTS, attention.PRODUCTS
        return Products(
            training=_quickest(products.TRAINING, lambda name: _train(linear[name], x_NC, weight_DC, bias_D)),
            inference=_quickest(
                products.for_inference(), lambda name: _infer(lambda: linear[name](x_NC, weight_DC, bias_D, True))
            ),
            attention=_quickest(products.ATTENTION, lambda name: _infer(lambda: attend[name](q, k, v, [mask], None))),
        )


def _filled(*shape: int) -> Tensor:
    """Return numbers that leave the random generators alone."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=torch.float32, device="cpu").view(shape)


def _quickest(names: Sequence[str], run: Callable[[str], None]) -> str:
    """Return the name with the shortest of several runs, taken in turns; the first name keeps a margin."""
    best = dict.fromkeys(names, float("inf"))
    for turn in range(TURNS):
        for name in names:
            start = perf_counter()
            run(name)
            if turn:
                best[name] = min(best[name], perf_counter() - start)
    return min(names, key=lambda name: best[name] * (MARGIN if name != names[0] else 1.0))


def _train(product: matmul.Product, x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor) -> None:
    with torch.enable_grad():
        leaves = x, weight, bias = [tensor.detach().requires_grad_() for tensor in (x_NC, weight_DC, bias_D)]
        torch.autograd.grad(product(x, weight, bias, False).sum(), leaves)


def _infer(run: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        run()
