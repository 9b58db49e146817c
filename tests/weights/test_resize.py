"""Tables at another size: the laws of each way. What the originals make of theirs is in test_resize_goldens.py."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fourstage import create_model
from fourstage.weights.load import load_state
from fourstage.weights.resize import (
    POSITION,
    POSITION_BY_CORNERS,
    ROWS,
    SQUARE_TABLE,
    ResizeRule,
    resize_position,
    resize_position_by_corners,
    resize_rows,
    resize_rule,
    resize_table,
)


def test_a_table_keeps_constants_axes_and_itself() -> None:
    table = torch.randn(49, 3)
    torch.testing.assert_close(resize_table(table, 49), table)
    torch.testing.assert_close(resize_table(torch.ones(49, 3), 169), torch.ones(169, 3))
    rising = torch.arange(7.0).repeat(7, 1).reshape(49, 1)  # grows along the second side of the square
    square = resize_table(rising, 169).reshape(13, 13)
    torch.testing.assert_close(square, square[:1].expand(13, -1))
    assert bool((square[0].diff() > 0)[1:-1].all())


def test_rows_are_interpolated_between_the_first_and_the_last() -> None:
    table = torch.randn(25, 4)
    torch.testing.assert_close(resize_rows(table, 25), table)
    at = np.linspace(0, 24, 31)
    columns = [np.interp(at, np.arange(25), table[:, c].numpy()) for c in range(4)]
    torch.testing.assert_close(resize_rows(table, 31), torch.from_numpy(np.stack(columns, 1)).float())


def test_positions_keep_their_type_and_corners() -> None:
    position = torch.randn(1, 4, 6, 5, dtype=torch.float16)
    for change in (resize_position, resize_position_by_corners):
        assert torch.equal(change(position, 6, 5), position)
        assert change(position, 9, 7).dtype == torch.float16
        assert change(position, 9, 7).shape == (1, 4, 9, 7)
    larger = resize_position_by_corners(position, 9, 7)
    assert torch.equal(larger[..., [0, 0, -1, -1], [0, -1, 0, -1]], position[..., [0, 0, -1, -1], [0, -1, 0, -1]])


@pytest.mark.parametrize(
    ("family", "key", "expected"),
    [
        ("swin", "stages.0.blocks.1.attn.table", SQUARE_TABLE),
        ("swin", "stages.0.embed.position", POSITION),
        ("visformer", "stages.2.position", POSITION),
        ("unified", "stages.0.blocks.0.position", POSITION_BY_CORNERS),
        ("unified", "stages.0.blocks.0.mixer.table", SQUARE_TABLE),
        ("unified", "stages.0.blocks.0.mixer.height_rel", ROWS),
        ("unified", "stages.0.blocks.0.mixer.width_rel", ROWS),
        ("", "mine.table", SQUARE_TABLE),
        ("swin", "stages.0.blocks.1.attn.qkv.weight", None),
        ("swin", "table.weight", None),
    ],
)
def test_the_name_says_which_way(family: str, key: str, expected: ResizeRule | None) -> None:
    assert resize_rule(family, key) is expected


@pytest.mark.parametrize(
    ("kind", "theirs", "ours", "fits"),
    [
        (SQUARE_TABLE, (49, 3), (169, 3), True),
        (SQUARE_TABLE, (49, 3), (169, 6), False),
        (SQUARE_TABLE, (50, 3), (169, 3), False),
        (SQUARE_TABLE, (49, 3), (65, 3), False),
        (SQUARE_TABLE, (49,), (169, 3), False),
        (POSITION, (1, 8, 7, 7), (1, 8, 9, 4), True),
        (POSITION, (1, 8, 7, 7), (1, 16, 7, 7), False),
        (POSITION, (1, 49, 8), (1, 8, 7, 7), False),
        (ROWS, (25, 32), (31, 32), True),
        (ROWS, (25, 32), (31, 16), False),
        (SQUARE_TABLE, (0, 3), (169, 3), False),
        (POSITION, (1, 8, 0, 0), (1, 8, 7, 7), False),
        (ROWS, (0, 32), (31, 32), False),
    ],
)
def test_what_differs_in_more_than_size_is_another_network(
    kind: ResizeRule, theirs: tuple, ours: tuple, fits: bool
) -> None:
    file, network = torch.zeros(theirs), torch.zeros(ours)
    assert kind.fits(file, network) is fits
    if fits:
        resized: Tensor = kind.change(file, network)
        assert resized.shape == network.shape
        assert resized.is_contiguous()


def test_a_file_with_a_table_without_rows_is_a_misfit() -> None:
    network = create_model("unified_pico", mixer="swin")
    state = {key: x[:0] if key.endswith("mixer.table") else x for key, x in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"table is .* in the file"):
        load_state(network, state, source="damaged.pth")
