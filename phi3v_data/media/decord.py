"""Frames through decord2, as an option: the same pixels as PyAV, or a reject.

decord seeks to key frames and then miscounts in clips with several of them (open GOPs, B-frames), so such clips are
read from the start. If the packets do not give the number of frames, or colours would be converted differently, the
clip is rejected. decord conceals damage and has no option to report it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from phi3v_data.errors import Reject, UserError, how_to_install
from phi3v_data.media.packets import PacketTable
from phi3v_data.media.sampling import Sampling, frame_indices

_OLD = "0.6.0"  # decord itself, of 2021; decord2 owns the same module name


def read_frames(
    file: Path, table: PacketTable, num_frames: int, sampling: Sampling, name: str
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]]:
    """Return indices, notes and frames, (H, W, 3) RGB.

    Raises:
        UserError: decord2 is not installed, or decord 0.6.0 is installed instead.
        Reject: `decoder-unsure`, if identical frames cannot be guaranteed.
    """
    decord = _module()
    is_plain = table.pixel_format == "yuv420p" and not any(side % 2 for side in table.size)
    if not table.count_is_total or table.intra_only or not is_plain:
        raise Reject("decoder-unsure", f"decord may not give the exact frames of '{name}'; use --decoder pyav for it")
    try:
        reader = decord.VideoReader(os.path.abspath(file), ctx=decord.cpu(0), num_threads=1)
        keys = reader.get_key_indices()
    except (decord.DECORDError, RuntimeError) as error:
        raise Reject("decoder-unsure", f"decord cannot open '{name}'; use --decoder pyav for it") from error
    if len(reader) != table.count:
        raise Reject(
            "decoder-unsure",
            f"decord counts {len(reader)} frames in '{name}' instead of {table.count}; use --decoder pyav for it",
        )
    shown = table.shown()
    indices = frame_indices(
        table.count, num_frames, sampling, times=shown[0] if shown else None, end=shown[1] if shown else 0
    )
    wanted = sorted(set(indices))
    arrays: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    try:
        if list(keys) == [0]:
            arrays = dict(zip(wanted, reader.get_batch(wanted).asnumpy(), strict=True))
        else:
            for index in range(wanted[-1] + 1):
                frame = reader.next()
                if index in wanted:
                    arrays[index] = frame.asnumpy()
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        raise Reject("decoder-unsure", f"decord cannot decode '{name}'; use --decoder pyav for it") from error
    notes = ["frames-repeated"] if len(wanted) < len(indices) else []
    if sampling == "fps" and shown is None:
        notes.append("constant-rate-assumed")
    return indices, tuple(notes), tuple(arrays[index] for index in indices)


def _module() -> Any:
    try:
        import decord
    except ImportError as error:
        raise UserError(f"--decoder decord needs decord2: {how_to_install('decord')}") from error
    if decord.__version__ == _OLD:
        raise UserError(
            "decord 0.6.0 is installed, which gives wrong frames and shadows decord2: pip uninstall decord decord2, "
            f"then {how_to_install('decord')}"
        )
    return decord
