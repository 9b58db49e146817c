"""Which maps or stages of a network a caller chooses."""

from collections.abc import Iterable, Sequence

from fourstage.backbones.layers import Level


def chosen_stages(indices: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return the stages that timm's `indices` name: some of them, or that many of the last.

    Raises:
        ValueError: there are no such stages.
    """
    if isinstance(indices, int) and not 1 <= indices <= count:
        raise ValueError(f"indices={indices} asks for that many of the last stages; give a number from 1 to {count}")
    return chosen_levels(range(count - indices, count) if isinstance(indices, int) else indices, count, "indices")


def chosen_levels(out_indices: Sequence[int] | None, count: int, argument: str = "out_indices") -> tuple[int, ...]:
    """Return `out_indices` as positions from 0 in ascending order.

    Args:
        out_indices: positions of maps; negative ones count from the end; None: all.
        count: the number of maps.
        argument: its name, for messages.

    Raises:
        ValueError: the list is empty, or has a position twice or one without a map.
    """
    if out_indices is None:
        return tuple(range(count))
    if not isinstance(out_indices, Iterable):
        raise ValueError(f"{argument} must be a sequence of integers, such as ({out_indices},); got {out_indices}")
    if not all(isinstance(i, int) for i in out_indices):
        raise ValueError(f"{argument} must be integers, such as (1, 3); got {out_indices!r}")
    kept = sorted(i + count if i < 0 else i for i in out_indices)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(
            f"{argument} {tuple(out_indices)} must name different maps out of 0 to {count - 1}, at least one; "
            f"{argument}={list(range(count))} are all"
        )
    return tuple(kept)


class ChosenMaps:
    """What networks that return some of their maps have in common, by the names of transformers' backbones."""

    levels: tuple[Level, ...]
    out_indices: tuple[int, ...]

    @property
    def channels(self) -> list[int]:
        """The channels of each returned map."""
        return [level.channels for level in self.levels]

    @property
    def out_features(self) -> list[str]:
        """The stage of each returned map: "stage1" to "stage4"."""
        return [f"stage{i + 1}" for i in self.out_indices]
