"""Problems of the pictures that rows use."""

from phi3v_data.problems.example import Content, Example, Picture, Text, row
from phi3v_data.problems.model import Problem


def _with(image: str, content: Content, path: str = "") -> Example:
    return Example({"train.jsonl": Text(row("a", image)), f"images/{path or image}": content})


IMAGES = (
    Problem(
        "image-missing",
        "images",
        "error",
        "a row names a picture that is not there",
        "Image paths are relative to DIR/images and are taken as they stand: nothing is decoded, and no "
        "other folder is searched. The hint names the file that was probably meant.",
        "The run stops when it comes to this row, hours in.",
        _with("train/a.jpg", Picture(64, 48, "JPEG"), "train/a.jpeg"),
        "Copy the file there, correct the path, or drop the row with `phi3v-data clean`.",
    ),
    Problem(
        "image-unreadable",
        "images",
        "error",
        "a picture is damaged, empty, or no picture",
        "The file is cut off, has a wrong checksum, holds zeroed blocks, is empty, is a folder, a named pipe, a loop "
        "of links, or is not an image of a format that is read: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF. HEIC "
        "photos are stored as JPEG by `phi3v-data convert`. Level full decodes every image; level quick reads headers "
        "only.",
        "Decoders fill the missing part with grey and say nothing, or raise an error in a data worker hours "
        "into the run.",
        _with("a.png", Picture(64, 48, keep=0.6)),
        "Copy it again from its source, or drop the rows that use it with `phi3v-data clean`.",
    ),
    Problem(
        "image-path-unsafe",
        "images",
        "error",
        "an image path leads out of images/, or is not portable",
        "The path is absolute, has `..`, a backslash, an empty part or a control character, or goes through "
        "a link that leads outside DIR/images.",
        "The directory works on one machine only, and a directory from someone else could read any file of yours.",
        Example({"train.jsonl": Text(row("a", "../secret.png")), "secret.png": Picture(64, 48)}),
        "Copy the file into DIR/images and write its path with `/`, relative to images/.",
    ),
    Problem(
        "image-name-mismatch",
        "images",
        "error",
        "a file of that name is there in another letter case or Unicode form",
        "`A.jpg` and `a.jpg` are two names on Linux and one on macOS and Windows; an `é` has two spellings in Unicode.",
        "The set trains where it was made and fails with missing pictures elsewhere.",
        _with("photo.jpg", Picture(64, 48, "JPEG"), "Photo.JPG"),
        "Write the path exactly as the file is named; the hint gives it.",
    ),
    Problem(
        "image-format-mismatch",
        "images",
        "warning",
        "a file's name says one format, its content another",
        "A PNG called .jpg, for instance. This package goes by content.",
        "Readers that go by the name fail, and web servers and browsers are misled.",
        _with("a.jpg", Picture(64, 48, "PNG")),
        "Rename the file and the path, or store it again in the format of its name.",
    ),
    Problem(
        "image-animated",
        "images",
        "warning",
        "a picture has several frames",
        "An animated GIF, WebP or PNG, or a TIFF of several pages.",
        "The model sees the first frame only, which is often blank or a title.",
        _with("a.gif", Picture(64, 48, "GIF", "P", frames=3)),
        "Store the frames that you mean as pictures of their own and name them in order.",
    ),
    Problem(
        "image-mode",
        "images",
        "warning",
        "a picture is not 8-bit RGB or grey",
        "CMYK, 16-bit, floating-point and Lab pictures are turned into RGB in ways that rarely give what a "
        "viewer shows.",
        "16-bit grey comes out nearly white, CMYK in false colours; the model learns from that.",
        _with("a.jpg", Picture(64, 48, "JPEG", "CMYK")),
        "Convert with a tool that knows the colour profile, and store 8-bit RGB.",
    ),
    Problem(
        "image-orientation",
        "images",
        "warning",
        "a picture is turned by an EXIF mark only",
        "Cameras store pixels as the sensor saw them and note the turn; viewers turn them. The processor of the model "
        "does not.",
        "The model sees the picture lying on its side, and people who look at the data do not notice.",
        _with("a.jpg", Picture(64, 48, "JPEG", orientation=6)),
        "Turn the pixels and drop the mark (`PIL.ImageOps.exif_transpose`), then store the file again.",
    ),
    Problem(
        "image-stray-bytes",
        "images",
        "warning",
        "a JPEG has bytes that belong to none of its parts",
        "Bytes between two header segments or before the end marker, or a colour profile that is not whole. Decoders "
        "pass over them: the image without them decodes to the last row, strictly.",
        "The pixels are whole. But a program wrote the file that does not keep to the format, or something was "
        "changed in it later, and stricter readers refuse it.",
        _with("a.jpg", Picture(64, 48, "JPEG", stray=6)),
        "Nothing has to be done. Storing the image again removes the bytes.",
    ),
    Problem(
        "image-aspect",
        "images",
        "error",
        "a picture is too long and thin for the processor",
        "The processor enlarges a picture until its long side fills a row of tiles; the short side then "
        "rounds down to 0 pixels when one side is several hundred times the other.",
        "The processor raises an error for it, hours into the run.",
        _with("a.png", Picture(6000, 1)),
        "Crop it, add a margin on its short side, or drop the row.",
    ),
    Problem(
        "image-too-large",
        "images",
        "error",
        "an image costs more to decode than any real one should",
        "Over 178,956,970 pixels in all frames, a file of over 256 MB, a progressive JPEG of hundreds of scans, text "
        "that unfolds to megabytes: a small file can cost gigabytes or minutes. docs/format.md lists all limits. It is "
        "not decoded.",
        "Decoding it takes the memory of a data worker, and the run with it.",
        _with("a.png", Picture(14_000, 13_000, mode="1")),
        "Store a smaller copy: the model sees at most 16 tiles of 336 x 336 pixels.",
    ),
    Problem(
        "image-orphan",
        "images",
        "info",
        "no row uses a file under images/",
        "The file is copied and stored with the set, but nothing trains on it. Hidden files are not counted.",
        "Wasted space; or rows are missing that should have used it.",
        Example(
            {
                "train.jsonl": Text(row("a", "a.png")),
                "images/a.png": Picture(64, 48),
                "images/left_over.png": Picture(64, 48, seed=1),
            }
        ),
        "Remove it, or find out why its row is missing.",
    ),
)
