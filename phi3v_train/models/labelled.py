"""The supervised tokens of a batch, found on the host before the batch is copied to the device."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """The tokens whose next token is supervised.

    `places` (n,) are their indices in the flattened batch, `targets` (n,) the ids to predict, in the order of rows and
    columns; `shape` is (rows, columns) of the batch.
    """

    places: Tensor
    targets: Tensor
    shape: tuple[int, int]

    @classmethod
    def by_labels(cls, labels: Tensor) -> "Labelled":
        """Those of labels (rows, columns) that are not shifted; negative ones are ignored."""
        targets = labels[:, 1:].flatten()
        found = (targets >= 0).nonzero().squeeze(1)
        rows, columns = labels.shape
        # Places are in rows that are one token longer.
        return cls(found + found.div(max(columns - 1, 1), rounding_mode="floor"), targets[found], (rows, columns))

    @classmethod
    def by_targets(cls, targets: Tensor) -> "Labelled":
        """Those of labels that are shifted already: (rows, columns), negative where there is none."""
        rows, columns = targets.shape
        flat = targets.flatten()
        found = (flat >= 0).nonzero().squeeze(1)
        return cls(found, flat[found], (rows, columns))

    def __len__(self) -> int:
        """Number of supervised tokens."""
        return len(self.places)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Labelled":
        """The same with each tensor changed, for copies to a device."""
        return Labelled(change(self.places), change(self.targets), self.shape)
