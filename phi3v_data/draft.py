"""The interface that a converter's author imports; the built-in converters use nothing else to describe their work.

    source --plan--> items (cheap, ordered, picklable) --convert--> drafts (pure, on any worker) --> DatasetWriter

`plan` lists the samples without opening media; `convert` makes one sample and does not know where it runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from phi3v_data.schema import Scalar, Task

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

    from phi3v_data.sources.source import Source

ImageContent: TypeAlias = "str | Path | bytes | PILImage.Image | np.ndarray[Any, Any]"


class Options(BaseModel):
    """Base of a converter's options; each field becomes a command-line option and is saved in `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Item:
    """One planned sample.

    Everything in it is compared when a run is resumed, paths below the source by what follows its root, so that the
    source may move: keep plain values that are the same in every run. `path`, if it is a file, counts by its content.
    """

    split: str
    key: str  # unique within the plan, stable between runs: a POSIX path relative to the source, or file and row
    path: str = ""  # where it lies now; any worker may open it
    group: str = ""  # what must not straddle splits
    size: int = 0  # bytes of the source file or row, 0 where unknown
    part: str = (
        ""  # items with the same non-empty value follow each other and travel together, so shared media are read once
    )
    label: str = ""  # class, for stratified splits
    data: Mapping[str, Any] = field(default_factory=dict)  # whatever else `convert` needs; picklable
    reject: str = ""  # reason code of a sample that cannot be made, where the plan knows it: `convert` is not called
    message: str = ""  # the sentence for it


@dataclass(frozen=True, slots=True, eq=False)
class DraftImage:
    """A picture of a draft.

    `content`: a path, encoded bytes, a PIL image, or a uint8 array (H, W, 3) RGB or (H, W) grey.
    `name`: POSIX path under `images/`; empty: chosen from the content (`{split}/{digest}{suffix}`), which also stores
    equal files once. A path or bytes are stored as they are; a PIL image or an array is encoded (`format`, `quality`).
    """

    content: ImageContent
    name: str = ""
    format: str = "png"  # jpeg | png | webp; only for a PIL image or an array
    quality: int = 0  # 0: the encoder's usual default


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """One turn of a draft; images as contents or `DraftImage`."""

    user: str
    assistant: str = ""
    images: Sequence["ImageContent | DraftImage"] = ()
    image_offsets: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """One sample before it is numbered and written.

    The short form `Draft(user=..., assistant=..., images=[...])` is one turn; `turns` holds a longer conversation.
    """

    user: str = ""
    assistant: str = ""
    images: Sequence["ImageContent | DraftImage"] = ()
    turns: Sequence[DraftTurn] = ()
    system: str = ""
    answers: Sequence[str] = ()
    group: str = ""
    meta: Mapping[str, Scalar] = field(default_factory=dict)
    split: str = ""  # only for generator converters; elsewhere the item has it
    notes: Sequence[str] = ()  # kebab-case codes of what was done to a kept sample; counted (`frames-repeated`)

    def all_turns(self) -> tuple[DraftTurn, ...]:
        """The turns, whichever form the draft was given in."""
        if self.turns:
            return tuple(self.turns)
        return (DraftTurn(self.user, self.assistant, self.images),)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a converter knows of the whole set; goes into `dataset.json`."""

    name: str
    task: Task = "chat"
    metrics: Sequence[str] = ()
    classes: Sequence[str] = ()
    num_crops: int | None = None
    source: str = ""
    license: str = ""
    unlabelled: Sequence[str] | None = None  # the source's splits without answers; None: --unlabelled means all splits
    notes: Sequence[str] = ()  # sentences for the user, which go into no file


O = TypeVar("O", bound=Options)  # noqa: E741 - the usual one-letter name of a type variable


class Converter(Generic[O]):
    """Subclass with an `Options` model: `class MyDocs(Converter[MyOptions])`.

    An instance is made once a run, and again in each worker; keep no state between calls.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"  # part of the journal's identity: raise it when the output changes
    hub_id: ClassVar[str] = ""  # used when `--source` is left out
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

        Order within a split is the order of numbering. Raise `UserError` where the source is not what is expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan(source, options)")

    def convert(self, item: Item, options: O) -> Draft:
        """Make one sample; pure, so that it can run anywhere and again. Raise `Reject` where it cannot be made."""
        raise NotImplementedError(f"{type(self).__name__} must define convert(item, options)")

    def describe(self, source: "Source", options: O) -> DatasetInfo:
        """What goes into `dataset.json`; the default says only the name. Called after `plan`, with the same source."""
        return DatasetInfo(name=self.name)


GeneratorFunction: TypeAlias = Callable[["Source"], Iterable[Draft]]


class GeneratorConverter(Converter[Options]):
    """A converter made of one generator function; runs in one process, samples are numbered as they come."""

    function: ClassVar[GeneratorFunction]

    def plan(self, source: "Source", options: Options) -> Iterable[Item]:
        raise NotImplementedError("a generator converter has no plan; its drafts come in order")

    def drafts(self, source: "Source") -> Iterable[Draft]:
        """Run the function."""
        return type(self).function(source)


def converter(
    name: str, *, version: str = "1", hub_id: str = ""
) -> Callable[[GeneratorFunction], type[Converter[Any]]]:
    """Make a generator function a converter: `@converter("my-docs")` over `def my_docs(source): yield Draft(...)`."""

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
