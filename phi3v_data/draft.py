"""The interface for authors of converters; the built-in converters use the same.

    source --plan--> items (cheap, ordered, picklable) --convert--> drafts (pure, on any worker) --> DatasetWriter

`plan` lists the samples without opening media; `convert` makes one sample, independent of where it runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict

from phi3v_data.schema import Scalar, Task, ToolStep

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

    from phi3v_data.sources.source import Source

ImageContent: TypeAlias = "str | Path | bytes | PILImage.Image | np.ndarray[Any, Any]"


class Options(BaseModel):
    """Base class of a converter's options; each field is a command-line option and is saved in `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(msgspec.Struct, frozen=True):
    """One planned sample; a struct of msgspec, as a plan may have millions.

    All fields but `made` are compared when a run is resumed, so use plain values that are the same in every run. Paths
    below the source are compared relative to its root, so that the source can be moved. If `path` is a file, its
    content is compared.
    """

    split: str
    key: str  # unique within the plan, stable between runs: a POSIX path relative to the source, or file and row
    path: str = ""  # current path; any worker can open it
    group: str = ""  # samples of one group must be in the same split
    size: int = 0  # bytes of the source file or row, 0 if unknown
    bundle: str = ""  # consecutive items with one value are converted together, so that shared media are read once
    label: str = ""  # class, for stratified splits
    data: Mapping[str, Any] = msgspec.field(default_factory=dict)  # further input of `convert`; picklable
    reject: str = ""  # reason code if the plan already rejects the sample; `convert` is then not called
    message: str = ""  # message of the reject
    made: bytes = b""  # JSON of its row from `conversations` on, if the plan knows it; `convert` is then not called


@dataclass(frozen=True, slots=True, eq=False)
class DraftImage:
    """An image of a draft.

    `content`: a path, encoded bytes, a PIL image, or a uint8 array (H, W, 3) RGB or (H, W) grey.
    `name`: POSIX path under `images/`; if empty, it is derived from the content (`{split}/{digest}{suffix}`), so that
    equal files are stored once. Paths and bytes are stored unchanged; PIL images and arrays are encoded (`format`,
    `quality`).
    """

    content: ImageContent
    name: str = ""
    format: str = "png"  # jpeg | png | webp; only for a PIL image or an array
    quality: int = 0  # 0: the default of the encoder
    where: str = field(default="", compare=False)  # of encoded bytes, such as `a.csv:3: 'photo'`; for messages


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """One turn of a draft; images as contents or `DraftImage`. `weight` 0: the answer is context only, not trained."""

    user: str
    assistant: str = ""
    images: Sequence["ImageContent | DraftImage"] = ()
    image_offsets: Sequence[int] = ()
    weight: int = 1
    steps: Sequence[ToolStep] = ()  # calls of tools between the two texts


@dataclass(frozen=True, slots=True)
class Draft:
    """One sample before it is numbered and written.

    The short form `Draft(user=..., assistant=..., images=[...])` is one turn; `turns` is for longer conversations.
    """

    user: str = ""
    assistant: str = ""
    images: Sequence["ImageContent | DraftImage"] = ()
    turns: Sequence[DraftTurn] = ()
    system: str = ""
    answers: Sequence[str] = ()
    group: str = ""
    meta: Mapping[str, Scalar] = field(default_factory=dict)
    split: str = ""  # only for generator converters; otherwise given by the item
    rejected: str = ""  # worse answer to the last turn, of a preference pair
    tools: str = ""  # JSON text of the tools that turns may call
    notes: Sequence[str] = ()  # codes of notes on the sample (`frames-repeated`), counted in `dataset.json`

    def all_turns(self) -> tuple[DraftTurn, ...]:
        """The turns, for both forms of a draft."""
        if self.turns:
            return tuple(self.turns)
        return (DraftTurn(self.user, self.assistant, self.images),)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Facts about the whole set for `dataset.json`."""

    name: str
    task: Task = "chat"
    metrics: Sequence[str] = ()
    classes: Sequence[str] = ()
    num_crops: int | None = None
    source: str = ""
    license: str = ""
    unlabelled: Sequence[str] | None = None  # the source's splits without answers; None: --unlabelled means all splits
    notes: Sequence[str] = ()  # messages for the user, not written to any file


O = TypeVar("O", bound=Options)  # noqa: E741 - the usual one-letter name of a type variable


class Converter(Generic[O]):
    """Subclass with an `Options` model: `class MyDocs(Converter[MyOptions])`.

    One instance is created per run, and one in each worker; keep no state between calls.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"  # part of the journal's identity: change it if the output changes
    hub_id: ClassVar[str] = ""  # default of `--source`
    Options: ClassVar[type[Options]] = Options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            args = get_args(base)
            if (
                isinstance(get_origin(base), type)
                and issubclass(get_origin(base), Converter)
                and args
                and isinstance(args[0], type)
            ):
                cls.Options = args[0]

    def plan(self, source: "Source", options: O) -> Iterable[Item]:
        """List the samples, cheaply and in order; opens no media.

        Samples of a split are numbered in this order. Raise `UserError` if the source is not as expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan(source, options)")

    def convert(self, item: Item, options: O) -> Draft:
        """Convert one sample; pure, so that it can run anywhere and repeatedly. Raise `Reject` if it is impossible."""
        raise NotImplementedError(f"{type(self).__name__} must define convert(item, options)")

    def describe(self, source: "Source", options: O) -> DatasetInfo:
        """Facts for `dataset.json`; by default only the name. Called after `plan`, with the same source."""
        return DatasetInfo(name=self.name)


GeneratorFunction: TypeAlias = Callable[["Source"], Iterable[Draft]]


class GeneratorConverter(Converter[Options]):
    """A converter made from a generator function; runs in one process, samples are numbered in order."""

    function: ClassVar[GeneratorFunction]

    def plan(self, source: "Source", options: Options) -> Iterable[Item]:
        raise NotImplementedError("a generator converter has no plan; its drafts come in order")

    def drafts(self, source: "Source") -> Iterable[Draft]:
        """Run the function."""
        return type(self).function(source)


def converter(
    name: str, *, version: str = "1", hub_id: str = ""
) -> Callable[[GeneratorFunction], type[Converter[Any]]]:
    """Make a converter from a generator: `@converter("my-docs")` on `def my_docs(source): yield Draft(...)`."""

    def wrap(function: GeneratorFunction) -> type[Converter[Any]]:
        return type(
            function.__name__,
            (GeneratorConverter,),
            {
                "name": name,
                "version": version,
                "hub_id": hub_id,
                "function": staticmethod(function),
                "__doc__": function.__doc__,
                "__module__": function.__module__,
                "__qualname__": function.__qualname__,
            },
        )

    return wrap
