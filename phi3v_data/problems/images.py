"""Problems of the images that rows use."""

from phi3v_data.problems.example import Content, Example, ImageFile, Text, row
from phi3v_data.problems.model import Problem


def _with(image: str, content: Content, path: str = "") -> Example:
    return Example({"train.jsonl": Text(row("a", image)), f"images/{path or image}": content})


IMAGES = (
    Problem(
        "image-missing",
        "images",
        "error",
        "a row names an image that does not exist",
        "Image paths are relative to DIR/images and are used as they are: nothing is URL-decoded, and no other folder "
        "is searched. The hint names the file that was probably meant.",
        "The run stops when it reaches this row, perhaps after hours.",
        _with("train/a.jpg", ImageFile(64, 48, "JPEG"), "train/a.jpeg"),
        "Copy the file there, correct the path, or drop the row with `phi3v-data clean`.",
    ),
    Problem(
        "image-unreadable",
        "images",
        "error",
        "a file is damaged, empty, or not an image",
        "The file is cut off, has a wrong checksum, contains zeroed blocks, is empty, is a folder, a named pipe or a "
        "loop of links, or is not in a supported image format: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF. "
        "`phi3v-data convert` and `import` store HEIC photos as JPEG. Level full decodes every image; level quick "
        "reads only the headers.",
        "Decoders silently fill the missing part with grey, or raise an error in a data worker hours into the run.",
        _with("a.png", ImageFile(64, 48, keep=0.6)),
        "Copy it again from its source, or drop the rows that use it with `phi3v-data clean`.",
    ),
    Problem(
        "image-path-unsafe",
        "images",
        "error",
        "an image path leads out of images/, or is not portable",
        "The path is absolute, contains `..`, a backslash, an empty component or a control character, or goes through "
        "a link that leads outside DIR/images.",
        "The directory works on one machine only, and a directory from someone else could read any of your files.",
        Example({"train.jsonl": Text(row("a", "../secret.png")), "secret.png": ImageFile(64, 48)}),
        "Copy the file into DIR/images and write its path with `/`, relative to images/.",
        severity_note="a note for a file of another tool whose paths lead out of its folder: `import` refuses them",
    ),
    Problem(
        "image-name-mismatch",
        "images",
        "error",
        "the file exists under a name of another letter case or Unicode form",
        "`A.jpg` and `a.jpg` are two names on Linux and one on macOS and Windows; `é` has two encodings in Unicode.",
        "Training works where the set was made and fails with missing images elsewhere.",
        _with("photo.jpg", ImageFile(64, 48, "JPEG"), "Photo.JPG"),
        "Or write the path exactly as the file is named: the hint gives it.",
        clean_fix="corrects the path in a copy if one file only can be meant",
    ),
    Problem(
        "image-format-mismatch",
        "images",
        "warning",
        "the extension of a file does not match its content",
        "For example a PNG called .jpg. This package goes by the content.",
        "Readers that go by the extension fail, and web servers send the wrong type.",
        _with("a.jpg", ImageFile(64, 48, "PNG")),
        "Or save the image again in the format of its extension.",
        clean_fix="makes a copy in which file and path have the extension of the format",
    ),
    Problem(
        "image-animated",
        "images",
        "warning",
        "an image has several frames",
        "An animated GIF, WebP or PNG, or a TIFF of several pages.",
        "The model sees the first frame only, which is often blank or a title.",
        _with("a.gif", ImageFile(64, 48, "GIF", "P", frames=3)),
        "Store the frames that you need as separate images and list them in order.",
    ),
    Problem(
        "image-mode",
        "images",
        "warning",
        "an image is not 8-bit RGB or grey",
        "CMYK, 16-bit, floating-point and Lab images are converted to RGB in ways that rarely match what a viewer "
        "shows.",
        "16-bit grey comes out nearly white, CMYK in false colours; the model learns from that.",
        _with("a.jpg", ImageFile(64, 48, "JPEG", "CMYK")),
        "Convert any other with a tool that applies the colour profile, and store it as 8-bit RGB.",
        clean_fix="makes a copy in which CMYK is RGB, with the values that the processor of the model would use",
    ),
    Problem(
        "image-orientation",
        "images",
        "warning",
        "an image is rotated by its EXIF orientation only",
        "Cameras store pixels as the sensor saw them and record the orientation; viewers rotate them. The processor of "
        "the model does not.",
        "The model sees the image on its side, and people who look at the data do not notice.",
        _with("a.jpg", ImageFile(64, 48, "JPEG", orientation=6)),
        "For a file of another tool rotate them yourself (`PIL.ImageOps.exif_transpose`).",
        clean_fix="makes a copy with the pixels rotated and the tag removed",
    ),
    Problem(
        "image-stray-bytes",
        "images",
        "warning",
        "a JPEG has bytes that belong to none of its segments",
        "Bytes between two header segments or before the end marker, or an incomplete colour profile. Decoders "
        "ignore them: without them, the image decodes to its last row in strict mode.",
        "The pixels are intact. But the file was written by a program that does not follow the format, or was changed "
        "later, and stricter readers reject it.",
        _with("a.jpg", ImageFile(64, 48, "JPEG", stray=6)),
        "No fix is needed. Saving the image again removes the bytes.",
    ),
    Problem(
        "image-aspect",
        "images",
        "error",
        "an image is too long and thin for the processor",
        "The processor of phi3v scales an image up until its long side fills a row of tiles; the short side then "
        "rounds down to 0 pixels if one side is several hundred times the other. Other models have other limits.",
        "The processor raises an error on it, perhaps hours into the run.",
        _with("a.png", ImageFile(6000, 1)),
        "Crop it, pad its short side, or drop the row.",
    ),
    Problem(
        "image-too-large",
        "images",
        "error",
        "an image is over a limit on size or decoding cost",
        "More than 178,956,970 pixels in all frames, a file of over 256 MB, a progressive JPEG of hundreds of scans, "
        "compressed text of many megabytes: a small file can cost gigabytes or minutes. docs/format.md lists all "
        "limits. Such an image is not decoded.",
        "Decoding it can use up the memory of a data worker and end the run.",
        _with("a.png", ImageFile(14_000, 13_000, mode="1")),
        "Store a smaller copy: models scale large images down; phi3v sees at most 16 tiles of 336 x 336 pixels.",
    ),
    Problem(
        "image-orphan",
        "images",
        "info",
        "no row uses a file under images/",
        "The file is copied and stored with the set, but no sample uses it. Hidden files are not counted.",
        "It wastes space, or rows that should use it are missing.",
        Example(
            {
                "train.jsonl": Text(row("a", "a.png")),
                "images/a.png": ImageFile(64, 48),
                "images/left_over.png": ImageFile(64, 48, seed=1),
            }
        ),
        "Remove the file, or find out why its row is missing.",
    ),
)
