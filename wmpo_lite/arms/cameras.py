"""Cameras: whatever gives the newest square picture and says when it was taken."""

import mmap
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError

FIRST_PICTURE = 10.0  # s that a camera may take to wake


class Camera(ABC):
    """`open`, then `read` as often as wanted from any thread, then `close` (safe to call twice)."""

    def open(self) -> None:
        """Start; returns when there is a first picture. UserError if there is none."""

    @abstractmethod
    def read(self) -> tuple[np.ndarray, float]:
        """The newest picture, uint8 (size, size, 3), and when it was taken, seconds of
        `time.monotonic`. Never waits for the next one.
        """

    def close(self) -> None:
        """Release the camera."""


def square(frame: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture (H, W, 3) in `size` x `size` pixels, averaged over the pixels
    that each covers.
    """
    from PIL import Image

    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = np.ascontiguousarray(frame[top : top + side, left : left + side, :3])
    if side == size:
        return cut
    how = Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(cut).resize((size, size), how))


class VideoCamera(Camera):
    """A camera of this computer, or a video file that plays in its place: a number (0 is the first
    camera), a device or a path.

    A thread reads picture after picture, so that `read` always has the newest. OpenCV where it is
    installed, else imageio's ffmpeg.
    """

    def __init__(self, source=0, size: int = 64):
        self.source, self.size = int(source) if str(source).isdigit() else str(source), size
        self._newest = None
        self._error = None
        self._ended = threading.Event()
        self._thread = None
        self._first = threading.Event()

    def open(self) -> None:
        self._newest, self._error = None, None
        self._ended, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()
        self._first.wait(FIRST_PICTURE)
        if self._newest is None:
            self.close()
            raise UserError(
                f"camera {self.source} gives no picture"
                f" ({self._error or f'none within {FIRST_PICTURE:.0f} s'}); check the cable and the"
                " number (0 is the first camera), that no other program uses it, or install"
                " OpenCV: pip install opencv-python-headless"
            )

    def read(self) -> tuple[np.ndarray, float]:
        if self._newest is None:
            raise UserError("the camera is closed; open it first")
        return self._newest

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=2)
        self._thread = None

    def _run(self):
        try:
            for frame in self._frames():
                self._newest = square(frame, self.size), time.monotonic()
                self._first.set()
                if self._ended.is_set():
                    return
        # many libraries, many exceptions: all mean that no more pictures come, and the arm notices
        # that by itself
        except Exception as error:
            self._error = error
        finally:
            self._first.set()

    def _frames(self):
        try:
            import cv2
        except ImportError:
            yield from self._imageio_frames()
            return
        capture = cv2.VideoCapture(self.source)
        try:
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            while True:
                good, frame = capture.read()
                if not good:
                    opened = self._newest is not None
                    raise OSError("it has no more pictures" if opened else "it cannot be opened")
                yield frame[..., ::-1]
        finally:
            capture.release()

    def _imageio_frames(self):
        import imageio

        numbered = isinstance(self.source, int)
        source = f"<video{self.source}>" if numbered else self.source
        reader = imageio.get_reader(source, format="FFMPEG")
        try:
            live = numbered or source.startswith("/dev/")
            pause = 0.0 if live else 1 / reader.get_meta_data()["fps"]
            for frame in reader:
                yield frame
                if pause and self._ended.wait(pause):
                    return
        finally:
            reader.close()


class SharedCamera(Camera):
    """Pictures that another process of this computer shows through a shared file: two places for a
    picture, the newer one is counted by the first number.
    """

    def __init__(self, path, writable: bool = False):
        self.path, self.writable, self._map = Path(path), writable, None
        if writable:
            self.open()

    @staticmethod
    def create(path, size: int) -> None:
        """An empty file for pictures of `size` x `size` pixels."""
        Path(path).write_bytes(
            np.array([0, size], dtype=np.int64).tobytes() + bytes(2 * (8 + 3 * size * size))
        )

    def open(self) -> None:
        try:
            access = mmap.ACCESS_WRITE if self.writable else mmap.ACCESS_READ
            with open(self.path, "r+b" if self.writable else "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=access)
        except OSError as error:
            raise UserError(
                f"there are no pictures at {self.path} ({error.strerror}); is the emulator still"
                " running?"
            ) from None
        self._count = np.ndarray(1, np.int64, self._map)
        self._size = int(np.ndarray(1, np.int64, self._map, 8)[0])
        places = [16 + n * (8 + 3 * self._size**2) for n in range(2)]
        self._times = [np.ndarray(1, np.float64, self._map, place) for place in places]
        self._pictures = [
            np.ndarray((self._size, self._size, 3), np.uint8, self._map, place + 8)
            for place in places
        ]

    def read(self) -> tuple[np.ndarray, float]:
        if self._map is None:
            raise UserError("the camera is closed; open it first")
        while True:
            count = int(self._count[0])
            picture, taken = self._pictures[count % 2].copy(), float(self._times[count % 2][0])
            if count > 0 and int(self._count[0]) <= count:
                return picture, taken
            time.sleep(0.001)

    def show(self, picture: np.ndarray, taken: float) -> None:
        """For the process that has the pictures."""
        place = (int(self._count[0]) + 1) % 2
        self._pictures[place][:], self._times[place][0] = picture, taken
        self._count[0] += 1

    def close(self) -> None:
        if self._map is not None:
            self._count, self._times, self._pictures = None, None, None  # they hold the map open
            self._map.close()
            self._map = None
