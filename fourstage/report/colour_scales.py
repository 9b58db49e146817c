"""Colours for values, which readers with any colour vision can tell apart, also in print. H x W cells."""

import numpy as np

# viridis of matplotlib (CC0), 16 evenly spaced colours
VIRIDIS = (
    *("440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e", "23888e", "1f988b"),
    *("22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b", "fde725"),
)
MISSING = (190, 190, 190)  # for values that are not finite
SERIES = 8  # colours of lines in the page's style: .s0 to .s7


def coloured(values_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return (H, W, 3) uint8 colours of values; those beyond `low` and `high` get the colours of the ends."""
    anchors_K3 = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in VIRIDIS], float)
    finite_HW = np.isfinite(values_HW)
    span = high - low if high > low else 1.0
    place_HW = np.clip((np.where(finite_HW, values_HW, low) - low) / span, 0, 1) * (len(anchors_K3) - 1)
    known = np.arange(len(anchors_K3))
    out_HW3 = np.stack([np.interp(place_HW, known, anchors_K3[:, c]) for c in range(3)], axis=-1)
    out_HW3[~finite_HW] = MISSING
    return np.rint(out_HW3).astype(np.uint8)


def css(value: float, low: float, high: float) -> tuple[str, str]:
    """Return the colour of a value as #rrggbb, and black or white for text on it."""
    red, green, blue = (int(v) for v in coloured(np.array([[value]]), low, high)[0, 0])
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return f"#{red:02x}{green:02x}{blue:02x}", "#000" if light else "#fff"
