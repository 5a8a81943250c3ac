"""Converts decoded frames to upright RGB arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Frame: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

# Pixel formats that FFmpeg converts to BGR (three times faster) with the same values as to RGB.
_SAME_PIXELS_AS_BGR = frozenset({"yuv420p", "yuvj420p"})
# Degrees counter-clockwise, as FFmpeg reports them, to the signs of the display matrix.
_QUARTER_TURNS = {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}


def to_rgb(kept: Mapping[int, Any], indices: Sequence[int]) -> dict[int, Frame]:
    """The decoded frames as upright RGB arrays, with the pixels of PyAV's own `to_ndarray(format="rgb24")`."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    arrays = {}
    for index in indices:
        frame = kept[index]
        order = "bgr24" if frame.format.name in _SAME_PIXELS_AS_BGR else "rgb24"
        array = np.asarray(reformatter.reformat(frame, format=order, threads=1).to_ndarray(), dtype=np.uint8)
        array = np.ascontiguousarray(upright(array, display_matrix(frame)))
        arrays[index] = array[..., ::-1] if order == "bgr24" else array
    return arrays


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The signs (a, b, c, d) of the display matrix; (1, 0, 0, 1) if absent or not a multiple of 90 degrees."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV up to 18 fails on other side data that it does not know (EXIF)
        return _QUARTER_TURNS.get(frame.rotation, (1, 0, 0, 1))
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    if len(matrix) < 5:
        return 1, 0, 0, 1
    a, b, c, d = (int(np.sign(round(int(matrix[place]) / 65536))) for place in (0, 1, 3, 4))
    if (a and d and not b and not c) or (b and c and not a and not d):
        return a, b, c, d
    return 1, 0, 0, 1


def upright(array: Frame, matrix: tuple[int, int, int, int]) -> Frame:
    """The frame as displayed, rotated by multiples of 90 degrees or flipped: (x, y) goes to (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    if a and d:
        return array[:: d or 1, :: a or 1]
    turned = np.swapaxes(array, 0, 1)
    return turned[:: b or 1, :: c or 1]
