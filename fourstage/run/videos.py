"""Videos in and out, by OpenCV. H x W pixels."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.transforms.resizing import opencv
from fourstage.run.outputs import set_aside

EXTENSIONS = (".mp4", ".avi", ".mov", ".m4v", ".mkv", ".webm", ".mpg", ".mpeg")
USUAL_RATE = 25.0  # frames a second, where a file does not say


@dataclass(frozen=True)
class Video:
    """What a file says about itself."""

    path: Path
    frames: int  # as announced; 0 where it does not say
    rate: float  # frames a second


def is_video_name(name: str) -> bool:
    """Whether a file of this name should hold a video."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def look_at(path: Path) -> Video:
    """What a video says about itself. Its first frame is decoded, to see that there is one.

    Raises:
        ValueError: it cannot be read.
    """
    capture = _open(path)
    try:
        whole, _ = capture.read()
        cv2 = opencv()
        frames, rate = (capture.get(what) for what in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    if not whole:
        raise _unreadable(path)
    rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else USUAL_RATE
    return Video(path, int(frames) if math.isfinite(frames) and frames > 0 else 0, rate)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """Each frame as (H, W, 3) uint8 RGB, as far as the file can be read.

    Raises:
        ValueError: not even the first one can.
    """
    cv2, capture = opencv(), _open(path)
    try:
        while True:
            whole, frame_HW3 = capture.read()
            if not whole:
                return
            yield cv2.cvtColor(frame_HW3, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


@contextmanager
def _quiet() -> Iterator[Any]:
    """OpenCV, which keeps its complaints to itself: they are ours to put into words."""
    cv2 = opencv()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once in a process
    log = cv2.utils.logging
    before = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield cv2
    finally:
        log.setLogLevel(before)


def _open(path: Path) -> Any:
    with _quiet() as cv2:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise _unreadable(path)
    return capture


def _unreadable(path: Path) -> ValueError:
    return ValueError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as a video; see whether a player opens it, or convert "
        f"it: ffmpeg -i {path.name} new.mp4"
    )


class Writer:
    """Frames to a video of MPEG-4 part 2, all of the size of the first one, less one pixel where a side is odd."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.frames = path, rate, 0
        self._writer: Any = None
        self._size = (0, 0)

    def add(self, frame_HW3: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame."""
        cv2 = opencv()
        if self._writer is None:
            height, width = frame_HW3.shape[:2]
            self._size = max(2, width // 2 * 2), max(2, height // 2 * 2)
            with _quiet():
                code = cv2.VideoWriter.fourcc(*"mp4v")
                self._writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, code, self.rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self.path.parent} cannot take a video; choose another --out")
        width, height = self._size
        part_HW3 = frame_HW3[:height, :width]
        if part_HW3.shape[:2] != (height, width):
            part_HW3 = cv2.resize(frame_HW3, self._size)
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(part_HW3), cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


@contextmanager
def writer(path: Path, rate: float) -> Iterator[Writer]:
    """A video that gets its name when it is whole.

    Raises:
        OSError: it could not be written; nothing has the name then.
    """
    with set_aside(path) as aside:
        video = Writer(aside, rate)
        try:
            yield video
        finally:
            video.close()
        if not aside.is_file() or look_at_count(aside) < video.frames:  # the library itself says nothing
            raise OSError(f"{path} could not be written whole; free space, or choose another --out")


def look_at_count(path: Path) -> int:
    """How many frames a file announces; 0 if it cannot be read."""
    try:
        return look_at(path).frames
    except ValueError:
        return 0
