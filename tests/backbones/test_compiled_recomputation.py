"""Activations are recomputed under torch.compile as well, and batch statistics move once."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import _dynamo as dynamo

from fourstage.backbones.recomputation import recomputed


class Recomputed(nn.Module):
    def __init__(self, *, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recompute = recompute
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.block, x) if self.recompute else self.block(x)


@pytest.fixture(autouse=True)
def apart() -> Generator[None]:
    """What was compiled before does not count."""
    dynamo.reset()
    yield
    dynamo.reset()


def test_compiled_recomputation_is_the_plain_block() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, compiled = Recomputed(recompute=False), Recomputed(recompute=True)
    compiled.compile(fullgraph=True, backend="aot_eager")
    for module in (plain, compiled):
        for _ in range(2):
            module(x).square().sum().backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(compiled.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_graph_says_what_is_computed_again(*, recompute: bool) -> None:
    operators = list[str]()

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    module = Recomputed(recompute=recompute)
    module.compile(fullgraph=True, backend=record)
    module(torch.randn(2, 3, 8, 8))
    assert any("activation_checkpoint" in operator for operator in operators) is recompute
