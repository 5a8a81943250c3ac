"""File extensions of images, clips, tables and archives."""

STORED_IMAGES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""Pillow's name of each format allowed in `images/` -> its extensions, the usual one first."""

IMAGE_SUFFIXES = tuple(suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes)
"""Extensions of the files under `images/`."""

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
"""Extensions of photos that a converter stores as JPEG."""

SOURCE_IMAGE_SUFFIXES = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES)
"""Extensions of the images of a source."""

VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".asf", ".vob", ".divx", ".f4v", ".qt", ".mxf", ".rm", ".rmvb", ".gif",
)  # fmt: skip
"""Extensions of the clips of a source; each belongs to a container that `phi3v_data.media.video` opens."""

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Extensions of plain tables; each may be followed by `.gz`."""

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Extensions of archives that are unpacked."""


def table_suffix(name: str) -> str:
    """The extension of a plain table without `.gz` (`.csv` of `rows.CSV.gz`), in lower case; empty if not a table."""
    plain = name.lower().removesuffix(".gz")
    return next((suffix for suffix in TABLE_SUFFIXES if plain.endswith(suffix)), "")


def is_table(name: str) -> bool:
    """Whether a file is a plain table by its name, gzipped or not."""
    return table_suffix(name) != ""
