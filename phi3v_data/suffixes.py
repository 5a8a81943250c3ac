"""File name endings, in one table: what counts as an image, a clip, a table or an archive in a source."""

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
"""Pillow's name of a format that `images/` may hold -> its endings, the usual one first."""

IMAGE_SUFFIXES = tuple(suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes)
"""Endings of the files under `images/`."""

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
"""Endings of photos that a converter stores as JPEG."""

SOURCE_IMAGE_SUFFIXES = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES)
"""Endings of the images of a source."""

VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".asf", ".vob", ".divx", ".f4v", ".qt", ".mxf", ".rm", ".rmvb", ".gif",
)  # fmt: skip
"""Endings of the clips of a source; each belongs to a container that `phi3v_data.media.video` opens."""

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Endings of plain tables; each may be followed by `.gz`."""

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Endings of archives that are unpacked."""


def table_suffix(name: str) -> str:
    """The ending of a plain table without `.gz` (`.csv` of `rows.CSV.gz`), in lower case; empty for another file."""
    plain = name.lower().removesuffix(".gz")
    return next((suffix for suffix in TABLE_SUFFIXES if plain.endswith(suffix)), "")


def is_table(name: str) -> bool:
    """Whether a file name is that of a plain table, gzipped or not."""
    return table_suffix(name) != ""
