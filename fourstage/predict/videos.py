"""Read and write videos with OpenCV. H x W pixels."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.transforms.resizing import opencv
from fourstage.files import atomic_path
from fourstage.predict.outputs import make_folder
from fourstage.resources import free_text

EXTENSIONS = (".mp4", ".avi", ".mov", ".m4v", ".mkv", ".webm", ".mpg", ".mpeg")
USUAL_RATE = 25.0  # frames per second, for files that do not state their rate


@dataclass(frozen=True)
class Video:
    """The properties that a video file states."""

    path: Path
    frames: int  # 0 where the file does not state it
    rate: float  # frames per second


class BadVideo(ValueError):
    """A file that cannot be read as a video."""


def is_video_name(name: str) -> bool:
    """Return whether a file name is that of a video."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def read_properties(path: Path) -> Video:
    """Return the properties of a video. The first frame is decoded, to be sure that there is one.

    Raises:
        BadVideo: the file cannot be read as a video.
    """
    capture = _open(path)
    try:
        decoded, _ = capture.read()
        cv2 = opencv()
        frames, rate = (capture.get(name) for name in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    if not decoded:
        raise _unreadable(path)
    rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else USUAL_RATE
    return Video(path, int(frames) if math.isfinite(frames) and frames > 0 else 0, rate)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """Yield each frame as (H, W, 3) uint8 RGB, as far as the file can be read.

    Raises:
        BadVideo: the file cannot be opened as a video.
    """
    cv2, capture = opencv(), _open(path)
    try:
        while True:
            decoded, frame_HW3 = capture.read()
            if not decoded:
                return
            yield cv2.cvtColor(frame_HW3, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


@contextmanager
def _quiet() -> Iterator[Any]:
    """Yield OpenCV with its own messages silenced: the caller raises errors in its own words."""
    cv2 = opencv()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it once per process
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


def _unreadable(path: Path) -> BadVideo:
    return BadVideo(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as a video; check whether a player opens it, or "
        f"convert it: ffmpeg -i {path.name} new.mp4"
    )


class Writer:
    """Writes frames to an MPEG-4 part 2 video of the size of the first frame, minus one pixel where a side is odd."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.frames = path, rate, 0
        self._writer: Any = None
        self._size = (0, 0)

    def add(self, frame_HW3: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame.

        Raises:
            OSError: no video can be written there.
        """
        cv2 = opencv()
        if self._writer is None:
            height, width = frame_HW3.shape[:2]
            self._size = max(2, width // 2 * 2), max(2, height // 2 * 2)
            with _quiet():
                code = cv2.VideoWriter.fourcc(*"mp4v")
                self._writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, code, self.rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self.path.parent} cannot hold a video; choose another --out")
        width, height = self._size
        cropped_HW3 = frame_HW3[:height, :width]
        if cropped_HW3.shape[:2] != (height, width):
            cropped_HW3 = cv2.resize(frame_HW3, self._size)
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(cropped_HW3), cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


@contextmanager
def writer(path: Path, rate: float) -> Iterator[Writer]:
    """Yield a writer for a video that gets its name when it is complete.

    Raises:
        OSError: the video could not be written; no file has its name then.
    """
    make_folder(path.parent)
    with atomic_path(path) as new:
        video = Writer(new, rate)
        try:
            yield video
        finally:
            video.close()
        if not new.is_file() or count_frames(new) < video.frames:  # OpenCV raises no error for a full disk
            free = free_text(path.parent)
            raise OSError(f"{path} could not be written completely ({free}); free space, or choose another --out")


def count_frames(path: Path) -> int:
    """Return the number of frames that a file states; 0 if it cannot be read."""
    try:
        return read_properties(path).frames
    except ValueError:
        return 0
