"""Selects N frames of a clip, in integer arithmetic.

floor   k * total // N                      as the Phi-3.5-vision sample: starts of N equal intervals
center  (2k + 1) * total // 2N              middles of these intervals
fps     the frame displayed at the start of N intervals equal in *time*, by the timestamps; for a constant frame rate
        the same as floor

All return exactly N indices, non-decreasing and below `total`; a clip with fewer than N frames repeats frames.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

Sampling: TypeAlias = Literal["floor", "center", "fps"]


def frame_indices(
    total: int, num_frames: int, sampling: Sampling = "floor", *, times: Sequence[int] | None = None, end: int = 0
) -> tuple[int, ...]:
    """Indices of the frames to take, k = 0..num_frames-1.

    Args:
        total: number of frames that the clip decodes to, at least 1.
        num_frames: number of frames to take, at least 1.
        times: for `fps`, the presentation time of each frame as an integer, strictly ascending; if None or too few, a
            constant rate is assumed.
        end: for `fps`, the end time of the last frame, in the same unit.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"need at least one frame to take and one to take it from, got {num_frames} of {total}")
    if sampling == "center":
        return tuple((2 * k + 1) * total // (2 * num_frames) for k in range(num_frames))
    if sampling == "fps" and times is not None and len(times) == total:
        start = times[0]
        span = max(end, times[-1] + 1) - start
        moments = (start + k * span // num_frames for k in range(num_frames))
        return tuple(bisect_right(times, moment) - 1 for moment in moments)
    return tuple(k * total // num_frames for k in range(num_frames))


def ascending(times: Sequence[int | None]) -> list[int] | None:
    """The times if all are known and strictly ascending, else None."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(a >= b for a, b in pairwise(known)):
        return None
    return known
