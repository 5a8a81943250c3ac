"""UCF-101 and other clips in class folders: each clip becomes N frames and a question about its class.

    .../{train,val,test}/<Class>/<clip>.avi                      split folders, as in UCF101_subset
    .../UCF-101/<Class>/<clip>.avi + trainlist01.txt, ...        the full set with its official lists, `--fold 1|2|3`
    .../<Class>/<clip>.mp4                                       class folders: all `train` without --split

The full set: https://www.crcv.ucf.edu/data/UCF101.php
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator

from phi3v_data.converters.helpers.class_folders import (
    ClassFile,
    chosen_classes,
    folder_notes,
    place,
    place_data,
    read_class_filter,
)
from phi3v_data.converters.helpers.ucf101_layout import UCF_WORDS, Layout, find_layout
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, Item, Options
from phi3v_data.sources.archive import as_member
from phi3v_data.sources.source import Source

PROMPT = "Classify the video into one of the following classes: {classes}."


class Ucf101Options(Options):
    """Options of the converter; the defaults are those of the Phi-3.5-vision sample."""

    frames: int = Field(8, ge=1, le=1000, description="Number of frames per clip.")
    sampling: Literal["floor", "center", "fps"] = Field(
        "floor", description="Starts of equal intervals, their middles, or evenly in time by the timestamps."
    )
    image_format: Literal["jpeg", "png", "webp"] = Field("jpeg", description="Format of the stored frames.")
    quality: int = Field(0, ge=0, le=100, description="JPEG or WebP quality; 0: default (75, 80).")
    max_side: int = Field(
        0, ge=0, description="Scale frames down to at most this many pixels per side; 0: keep their size."
    )
    prompt: str = Field(PROMPT, description="The user's text; {classes} is replaced by the class names.")
    classes: str = Field("", description="Only these classes: names separated by commas, or a file with one per line.")
    fold: int | None = Field(None, ge=1, le=3, description="Official lists to use with the full set. Default: 1.")
    lists: str = Field("", exclude=True, description="Folder of the official lists, if it is not next to the clips.")
    decoder: Literal["pyav", "decord"] = Field(
        "pyav", description="Video decoder; decord needs the extra of that name."
    )
    salvage: bool = Field(False, description="Use the frames of cut or damaged clips that decode.")
    verify: bool = Field(False, description="Decode every clip to its end.")

    @field_validator("classes", mode="after")
    @classmethod
    def _read_file(cls, value: str) -> str:
        """Replace a file of class names by the names, so that `dataset.json` contains no path of this machine."""
        return read_class_filter(value)


class Ucf101(Converter[Ucf101Options]):
    """Video clips in class folders (UCF-101 in all its layouts) → frames and a class name."""

    name = "ucf101"
    version = "1"
    hub_id = "sayakpaul/ucf101-subset"

    def plan(self, source: Source, options: Ucf101Options) -> Iterable[Item]:
        layout = _layout(source, options)
        prompt = options.prompt.replace("{classes}", ", ".join(layout.classes))
        return [_item(clip, prompt) for clip in layout.clips]

    def convert(self, item: Item, options: Ucf101Options) -> Draft:
        from phi3v_data.media.encoding import SUFFIXES, fit
        from phi3v_data.media.video import read_clip

        clip = read_clip(
            item.path,
            options.frames,
            sampling=options.sampling,
            decoder=options.decoder,
            salvage=options.salvage,
            verify=options.verify,
            name=as_member(item.path) or item.key,
        )
        suffix = SUFFIXES[options.image_format]
        stem, notes = place(item, "clip-renamed")
        images = [
            DraftImage(
                fit(frame, options.max_side),
                name=f"{item.split}/{stem}.{k}{suffix}",
                format=options.image_format,
                quality=options.quality,
            )
            for k, frame in enumerate(clip.frames)
        ]
        return Draft(
            user=item.data["prompt"],
            assistant=item.label,
            images=images,
            group=item.group,
            meta={"source_id": item.key},
            notes=(*notes, *clip.notes),
        )

    def describe(self, source: Source, options: Ucf101Options) -> DatasetInfo:
        layout = _layout(source, options)
        return DatasetInfo(
            name=self.name if layout.is_ucf101 else "clips",
            task="classification",
            metrics=("accuracy",),
            classes=layout.classes,
            num_crops=4,
            source=UCF_WORDS if layout.is_ucf101 else "clips sorted into class folders",
            notes=folder_notes(source, layout.clips),
        )


def _layout(source: Source, options: Ucf101Options) -> Layout:
    return find_layout(source, fold=options.fold, lists=options.lists, wanted=chosen_classes(options.classes))


def _item(clip: ClassFile, prompt: str) -> Item:
    return Item(
        split=clip.split,
        key=clip.key,
        path=clip.path,
        group=clip.group,
        size=clip.size,
        label=clip.label,
        data={"prompt": prompt, **place_data(clip)},
        reject=clip.reject,
        message=clip.message,
    )
