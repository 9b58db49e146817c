"""Counts with their nouns, for messages. Any package may import this module."""


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return `1 image` or `1,797 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
