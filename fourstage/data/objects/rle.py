"""Masks in the forms of COCO: polygons, and run lengths as numbers or as a compressed string.

H x W pixels, N masks in windows of h x w pixels. Run lengths count pixels column by column.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fourstage.extras import MissingLibrary, install_package
from fourstage.files import RAISE, limit

OUTLINE = 4_000_000  # pixels along the polygons of one mask; the library takes 60 bytes for each, wherever it is


def encode_mask(mask_HW: np.ndarray) -> dict[str, Any]:
    """Return a boolean mask in COCO's compressed run-length form, ready for json."""
    rle = _library().encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(mask_HW.shape), "counts": _text(rle["counts"])}


def encode_windows(windows_Nhw: np.ndarray, top_N: np.ndarray, left_N: np.ndarray, size: tuple[int, int]) -> list[str]:
    """Return the compressed strings of masks that are empty outside of a window; no mask of the full size is made.

    Args:
        windows_Nhw: bool.
        top_N, left_N: int64, the row and the column in the image where each window begins.
        size: (H, W) of the image, which holds all windows.
    """
    if not len(windows_Nhw):
        return []
    height, width = size
    edged_Nwh = np.pad(windows_Nhw.transpose(0, 2, 1), ((0, 0), (0, 0), (1, 1)))
    mask_K, column_K, row_K = np.nonzero(edged_Nwh[:, :, 1:] != edged_Nwh[:, :, :-1])  # where a run begins or ends
    place_K = (left_N[mask_K] + column_K) * height + top_N[mask_K] + row_K
    # A run from the last row of a column into the next column ends and begins in the same place, and is one run.
    same_K = (place_K[1:] == place_K[:-1]) & (mask_K[1:] == mask_K[:-1])
    kept_K = (place_K < height * width) & ~(np.append(same_K, False) | np.append(False, same_K))  # the end is no change
    mask_K, place_K = mask_K[kept_K], place_K[kept_K]
    masks = np.split(place_K, np.searchsorted(mask_K, np.arange(1, len(windows_Nhw))))
    runs = [np.diff(places, prepend=0, append=height * width).tolist() for places in masks]
    encoded = _library().frPyObjects([{"size": list(size), "counts": counts} for counts in runs], height, width)
    return [_text(one["counts"]) for one in encoded]


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Return the mask of one object.

    Args:
        segmentation: polygons (lists of x, y, x, y ... in pixels), or a mapping with `size` and `counts`, where counts
            are numbers or COCO's compressed string.
        size: (H, W) of the image.

    Returns:
        (H, W) bool. None when no polygon has three points or all have a coordinate too many.

    Raises:
        ValueError: neither form, or a mask of another size.
    """
    return _run_lengths(segmentation, size, decode=True)


def mask_area(segmentation: Any, size: tuple[int, int]) -> float:
    """Return the number of pixels of a mask in any form, 0 without a valid polygon; polygons are not decoded.

    Args and errors as `decode_mask`.
    """
    if isinstance(segmentation, dict):  # the library finds run lengths that are too short when it decodes them
        mask_HW = decode_mask(segmentation, size)
        return 0.0 if mask_HW is None else float(mask_HW.sum())
    rle = _run_lengths(segmentation, size)
    return 0.0 if rle is None else float(_library().area(rle))


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> str:
    """Return the compressed string of a mask in any form; that of an empty mask for None or without a valid polygon.

    Args and errors as `decode_mask`.
    """
    rle = _run_lengths(segmentation, size) if segmentation else None
    return encode_mask(np.zeros(size, dtype=bool))["counts"] if rle is None else _text(rle["counts"])


def merge_masks(counts: Sequence[str], size: tuple[int, int]) -> str:
    """Return the compressed string of the union of masks in that form, of one image of `size` (H, W)."""
    return _text(_library().merge([{"size": list(size), "counts": one} for one in counts])["counts"])


def area_of(counts: str, size: tuple[int, int]) -> float:
    """Return the number of pixels of a mask in compressed run lengths."""
    return float(_library().area({"size": list(size), "counts": counts}))


def _run_lengths(segmentation: Any, size: tuple[int, int], *, decode: bool = False) -> Any:
    """Return the library's form, or None without a valid polygon; with `decode`, the mask."""
    if isinstance(segmentation, dict) and segmentation.get("size") not in (list(size), size):
        raise ValueError(f"its mask is of size {segmentation.get('size')!r:.60}, the image of {list(size)}")
    polygons = [] if isinstance(segmentation, dict) else _polygons(segmentation)
    if not polygons and not isinstance(segmentation, dict):
        return None
    library = _library()
    try:
        if polygons:
            rle = library.merge(library.frPyObjects(polygons, *size))
        else:
            in_numbers = isinstance(segmentation["counts"], list)
            rle = library.frPyObjects(segmentation, *size) if in_numbers else segmentation
        # Run lengths that are too short are found when they are decoded; polygons are always sound.
        mask_HW = library.decode(rle) if decode or not polygons else None
    except (KeyError, TypeError, RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise _neither(error) from error  # the library raises any of them on a broken mask
    return mask_HW.astype(bool) if decode and mask_HW is not None else rle


def _polygons(segmentation: Any) -> list[Any]:
    """Return the polygons of three points or more.

    Raises:
        ValueError: not polygons, a number that is not finite, or points so far away that to draw them takes minutes.
    """
    length = 0.0
    try:
        polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
        for polygon in polygons:
            points_N2 = np.array(polygon, dtype=np.float64).reshape(-1, 2)
            with np.errstate(over="ignore", invalid="ignore"):
                length += float(np.abs(points_N2 - np.roll(points_N2, 1, axis=0)).max(axis=1).sum())
    except (TypeError, ValueError, OverflowError) as error:
        raise _neither(error) from error
    if not np.isfinite(length):
        raise ValueError("its mask has a polygon with a number that is not finite or far too large; correct it")
    if length > limit(OUTLINE):
        raise ValueError(
            f"its mask has polygons of {length:,.0f} pixels, and at most {limit(OUTLINE):,} are drawn; {RAISE}"
        )
    return polygons


def _neither(error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return ValueError(f"its mask is neither polygons nor run lengths of the image ({reason:.200})")


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _library() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise MissingLibrary(
            f"masks need faster-coco-eval, which is missing: {install_package('faster-coco-eval')}"
        ) from error
    return mask
