"""Images in class folders: each image becomes a question about its class.

DIR/<split>/<Class>/*.jpg      split folders (train, val, validation, dev, test)
DIR/<Class>/*.jpg              class folders: all `train` without --split
"""

from collections.abc import Iterable

from pydantic import Field, field_validator

from phi3v_data.converters.helpers.annotations import once_a_source
from phi3v_data.converters.helpers.class_folders import (
    ClassFile,
    are_split_folders,
    chosen_classes,
    folder_notes,
    from_folders,
    keep_classes,
    one_spelling,
    order,
    place,
    place_data,
    read_class_filter,
    with_stems,
)
from phi3v_data.converters.helpers.image_names import stored_name
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, Item, Options
from phi3v_data.errors import NotFoundError
from phi3v_data.sources.source import Source
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES, VIDEO_SUFFIXES

RENAMED = "image-renamed"
"""Note: an image is stored under another name, because another image has its name."""

PROMPT = "Classify the image into one of the following classes: {classes}."


class ImageFolderOptions(Options):
    """Options of the converter."""

    prompt: str = Field(PROMPT, description="The user's text; {classes} is replaced by the class names.")
    classes: str = Field("", description="Only these classes: names separated by commas, or a file with one per line.")

    @field_validator("classes", mode="after")
    @classmethod
    def _read_file(cls, value: str) -> str:
        """Replace a file of class names by the names, so that `dataset.json` contains no path of this machine."""
        return read_class_filter(value)


class ImageFolder(Converter[ImageFolderOptions]):
    """Images in class folders → a class name."""

    name = "image_folder"
    version = "1"

    def plan(self, source: Source, options: ImageFolderOptions) -> Iterable[Item]:
        images = _images(source, options.classes)
        prompt = options.prompt.replace("{classes}", ", ".join(_class_names(images)))
        for image in images:
            yield Item(
                split=image.split,
                key=image.key,
                path=image.path,
                size=image.size,
                label=image.label,
                data={"prompt": prompt, **place_data(image)},
            )

    def convert(self, item: Item, options: ImageFolderOptions) -> Draft:
        suffix = item.key[item.key.rindex(".") :]
        stem, notes = place(item, RENAMED)
        name, corrected = stored_name(f"{item.split}/{stem}{suffix}", item.path)
        if corrected:
            stem, notes = place(item, RENAMED, other_suffix=True)
            name, corrected = stored_name(f"{item.split}/{stem}{suffix}", item.path)
        return Draft(
            user=item.data["prompt"],
            assistant=item.label,
            images=[DraftImage(item.path, name=name)],
            meta={"source_id": item.key},
            notes=(*notes, *corrected),
        )

    def describe(self, source: Source, options: ImageFolderOptions) -> DatasetInfo:
        return DatasetInfo(
            name=self.name,
            task="classification",
            metrics=("accuracy",),
            classes=_class_names(_images(source, options.classes)),
            source="images sorted into class folders",
            notes=folder_notes(source, _images(source, options.classes)),
        )


@once_a_source
def _images(source: Source, classes: str) -> tuple[ClassFile, ...]:
    """All images in the order of numbering.

    Raises:
        UserError: there are no images, an image is not in a class folder, or a class is unknown.
    """
    files = source.all_files(SOURCE_IMAGE_SUFFIXES)
    if not files:
        clips = source.all_files(VIDEO_SUFFIXES)
        hint = f", but {len(clips):,} clips: phi3v-data convert ucf101" if clips else ""
        if source.has_rows:
            raise NotFoundError(
                f"'{source.spec}' contains rows of {', '.join(source.columns(next(iter(source.split_names()))))}, and "
                "no image files: phi3v-data convert table"
            )
        raise NotFoundError(
            f"there is no image in '{source.spec}'{hint}; expected train/<Class>/<image>.jpg, or <Class>/<image>.jpg"
        )
    source.use(files)
    found = one_spelling(from_folders(files, in_splits=are_split_folders(files), what="image"), {})
    return tuple(with_stems(sorted(keep_classes(found, chosen_classes(classes)), key=order), whole_names=True))


def _class_names(images: Iterable[ClassFile]) -> tuple[str, ...]:
    return tuple(sorted({image.label for image in images}))
