"""Rows of sources, measured and encoded; every error names file, line and id. Travels to worker processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phi3v_data.errors import UserError
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.schema import Sample
from phi3v_train.data.encode import EncodedPrompt, EncodedSample, Encoder, Provenance, SampleError, SampleTokens, Turns
from phi3v_train.data.images import image_size
from phi3v_train.data.order import SampleRef
from phi3v_train.data.partition import Cost
from phi3v_train.data.sources import Source


@dataclass(frozen=True, slots=True)
class Measure:
    """Length and work of a sample, known from its text and the headers of its images."""

    provenance: Provenance
    cost: Cost
    num_supervised: int
    num_images: int
    dropped_turns: int


class Reader:
    """Reads and encodes rows of `sources` with `encoder`."""

    def __init__(self, sources: Sequence[Source], encoder: Encoder) -> None:
        self.sources = tuple(sources)
        self.encoder = encoder

    def measure(self, ref: SampleRef) -> Measure:
        """Length and work of a sample. No image is decoded.

        Raises:
            UserError: the sample cannot be encoded or an image is not there.
        """
        sample, provenance = self._read(ref)
        tokens = self._tokenize(sample, ref)
        return Measure(
            provenance,
            Cost(len(tokens.input_ids), tokens.num_tiles),
            tokens.num_supervised,
            len(tokens.images),
            tokens.dropped_turns,
        )

    def tokenize(self, ref: SampleRef) -> tuple[Sample, SampleTokens]:
        """The row, and its ids and labels. No image is decoded.

        Raises:
            UserError: see `measure`.
        """
        sample, _ = self._read(ref)
        return sample, self._tokenize(sample, ref)

    def encode(self, ref: SampleRef) -> EncodedSample:
        """A sample for training.

        Raises:
            UserError: the sample cannot be encoded or an image cannot be read.
        """
        source = self.sources[ref.source]
        sample, provenance = self._read(ref)
        with self.named(ref, sample):
            return self.encoder.encode(
                sample,
                self._paths(sample, source),
                num_crops=source.num_crops,
                provenance=provenance,
                epoch=ref.epoch,
            )

    def prompts(self, ref: SampleRef, turns: Turns = "last") -> list[EncodedPrompt]:
        """The prompts of a sample for generation, one per chosen turn.

        Raises:
            UserError: see `encode`.
        """
        source = self.sources[ref.source]
        sample, provenance = self._read(ref)
        with self.named(ref, sample):
            return self.encoder.encode_prompts(
                sample,
                self._paths(sample, source),
                num_crops=source.num_crops,
                provenance=provenance,
                turns=turns,
            )

    def location(self, ref: SampleRef) -> str:
        """`DIR/FILE:LINE` of a row."""
        split = self.sources[ref.source].split
        file, line = split.location(ref.row)
        return f"{split.directory / file}:{line}"

    def _read(self, ref: SampleRef) -> tuple[Sample, Provenance]:
        split = self.sources[ref.source].split
        sample = split[ref.row]
        return sample, Provenance(str(split.directory), split.name, ref.row, sample.id)

    def _tokenize(self, sample: Sample, ref: SampleRef) -> SampleTokens:
        source = self.sources[ref.source]
        with self.named(ref, sample):
            sizes = [image_size(path) for path in self._paths(sample, source)]
            return self.encoder.tokenize(sample, sizes, num_crops=source.num_crops, epoch=ref.epoch)

    @staticmethod
    def _paths(sample: Sample, source: Source) -> list[Path]:
        return [source.split.image_path(name) for name in sample.images]

    @contextmanager
    def named(self, ref: SampleRef, sample: Sample) -> Iterator[None]:
        """Put file, line and id before what is wrong with a sample."""
        try:
            yield
        except SampleError as error:
            raise UserError(f"{self.location(ref)} (id {sample.id!r}): {error}") from None
        except (OSError, UnreadableImageError) as error:
            filename = getattr(error, "filename", None)
            reason = f"{filename}: {getattr(error, 'strerror', '')}" if filename else str(error)
            raise UserError(
                f"{self.location(ref)} (id {sample.id!r}): an image cannot be read: {reason}; "
                f"`phi3v-data validate {self.sources[ref.source].directory}` lists all such images"
            ) from None
        except Exception as error:
            error.add_note(f"while encoding {self.location(ref)} (id {sample.id!r})")
            raise
