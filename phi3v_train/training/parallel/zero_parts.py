"""The shards of weights and moments that each process of a ZeRO run holds, in files that any number of processes reads.

    optimizer-00001-of-00002.safetensors
        NAME|exp_avg, NAME|exp_avg_sq, NAME|master   a run of values of the flattened parameter NAME
        metadata: where each run begins, and AdamW's count of steps

`master` is there where the weights themselves are in 16 bits. Nothing in a file is code, and none depends on how many
processes read it: each one takes the values that it now holds from whichever files have them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_data.files import sync_file
from phi3v_train.training.parallel.shards import Shards

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
PATTERN = "optimizer-*-of-*.safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """A run of values of the flattened parameter `name`, from `start` on, and where this process holds them.

    `flat` is the optimizer's parameter; the run begins in it at `offset`.
    """

    name: str
    start: int
    numel: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The run in a tensor of the layout of `flat`, such as a moment."""
        return flat.narrow(0, self.offset, self.numel)


def parts_of_stage2(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[Part]:
    """A group is flattened and cut into equal pieces, one per process: a parameter may cross a cut."""
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            held = parameter._hp_mapping
            if held is not None:
                here, there = held.lp_fragment_address, held.hp_fragment_address
                yield Part(names[parameter], here.start, here.numel, flat, there.start)


def parts_of_stage3(zero: Any, names: Mapping[Any, str], rank: int) -> Iterator[Part]:
    """Every parameter is cut into equal pieces, one per process; the last is padded."""
    for parameter, name in names.items():
        index, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * padded
        numel = min(padded, parameter.ds_numel - start)
        if numel > 0:
            yield Part(name, start, numel, zero.fp32_partitioned_groups_flat[index], offset)


def write_parts(
    parts: Iterable[Part], state: Mapping[Any, Mapping[str, Tensor]], folder: Path, rank: int, world_size: int,
    *, masters: bool,
) -> None:  # fmt: skip
    """Write what this process holds into its file."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    step = 0.0
    for part in parts:
        starts[part.name] = part.start
        held = state.get(part.flat, {})
        for key in MOMENTS:
            if key in held:
                tensors[f"{part.name}|{key}"] = part.of(held[key]).detach().to("cpu", copy=True)
        step = max(step, float(held.get("step", 0.0)))
        if masters:
            tensors[f"{part.name}|{MASTER}"] = part.of(part.flat).detach().to("cpu", copy=True)
    metadata = {"format": str(FORMAT), "starts": json.dumps(starts), "step": str(step)}
    path = folder / f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors"
    save_file(tensors, path, metadata=metadata)
    # Here, not only by the main process: it may be on another machine.
    sync_file(path)


class PartFiles:
    """The files that `write_parts` wrote into a folder, one of each process.

    Raises:
        UserError: one of them is missing, or of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.step = 0.0
        self._runs: dict[str, list[tuple[int, int, Any]]] = {}
        files = sorted(folder.glob(PATTERN))
        wanted = int(files[0].stem.rpartition("-")[2]) if files else 0
        if not files or len(files) != wanted:
            raise UserError(f"{folder}: has {len(files)} of {wanted} files optimizer-*-of-*.safetensors")
        for path in files:
            file: Any = safe_open(path, framework="pt")
            metadata = file.metadata()
            if metadata.get("format") != str(FORMAT):
                raise UserError(f"{path}: format {metadata.get('format')} is not known to this version; upgrade phi3v")
            self.step = max(self.step, float(metadata["step"]))
            starts = json.loads(metadata["starts"])
            for key in file.keys():  # noqa: SIM118  # no mapping: it cannot be iterated itself
                (numel,) = file.get_slice(key).get_shape()
                self._runs.setdefault(key, []).append((starts[key.rpartition("|")[0]], numel, file))

    def has(self, name: str, key: str) -> bool:
        """Whether there is anything of a parameter."""
        return f"{name}|{key}" in self._runs

    def read(self, name: str, key: str, start: int, target: Tensor) -> None:
        """Copy the values from `start` on into the flat `target`.

        Raises:
            UserError: the files do not have all of them.
        """
        stop, found = start + target.numel(), 0
        for first, numel, file in self._runs.get(f"{name}|{key}", ()):
            low, high = max(start, first), min(stop, first + numel)
            if low < high:
                piece = file.get_slice(f"{name}|{key}")[low - first : high - first]
                target[low - start : high - start].copy_(piece)
                found += high - low
        if found != target.numel():
            raise UserError(f"{self.folder}: is not a checkpoint of this model ({key} of {name} does not fit)")


def has_parts(folder: Path) -> bool:
    """Whether a checkpoint's optimizer is sharded."""
    return next(folder.glob(PATTERN), None) is not None


@torch.no_grad()
def read_parts(
    parts: Iterable[Part], state: dict[Any, dict[str, Tensor]], folder: Path, *, masters: bool, step_on_device: bool
) -> None:
    """Take up what any number of processes wrote: what this one now holds of it."""
    files = PartFiles(folder)
    for part in parts:
        if files.step:
            if part.flat not in state:
                state[part.flat] = empty_state(part.flat, files.step, on_device=step_on_device)
            held = state[part.flat]
            for key in MOMENTS:
                files.read(part.name, key, part.start, part.of(held[key]))
        if masters and files.has(part.name, MASTER):
            files.read(part.name, MASTER, part.start, part.of(part.flat.data))


@torch.no_grad()
def take_moments(
    parts: Iterable[Part], state: dict[Any, dict[str, Tensor]], moments: Mapping[str, Mapping[str, Tensor]],
    *, step_on_device: bool,
) -> None:  # fmt: skip
    """Load unsharded moments by parameter name, as the other parallel strategies write them."""
    for part in parts:
        full = moments.get(part.name)
        if full is None:
            continue
        if part.flat not in state:
            state[part.flat] = empty_state(part.flat, float(full["step"]), on_device=step_on_device)
        held = state[part.flat]
        for key in MOMENTS:
            part.of(held[key]).copy_(full[key].flatten()[part.start : part.start + part.numel])


class ShardedMoments(Mapping[str, Mapping[str, Tensor]]):
    """The moments of a checkpoint that FSDP wrote, by parameter name; read when asked for."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.names = shards.names("step")

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self.names:
            raise KeyError(name)
        return {key: self.shards.rows(f"{key}/{name}") for key in ("step", *MOMENTS)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def empty_state(flat: Tensor, step: float, *, on_device: bool) -> dict[str, Tensor]:
    """AdamW's state of one parameter, moments zero."""
    count = torch.tensor(step, dtype=torch.float32, device=flat.device if on_device else "cpu")
    return {"step": count, **{key: torch.zeros_like(flat.data) for key in MOMENTS}}


def unsharded_moments(folder: Path, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, dict[str, Tensor]]:
    """Unsharded moments by parameter name, for a strategy that does not shard them."""
    files = PartFiles(folder)
    result: dict[str, dict[str, Tensor]] = {}
    for name, parameter in parameters:
        if files.step and files.has(name, MOMENTS[0]):
            result[name] = {"step": torch.tensor(files.step, dtype=torch.float32)}
            for key in MOMENTS:
                flat = torch.zeros(parameter.numel(), dtype=torch.float32)
                files.read(name, key, 0, flat)
                result[name][key] = flat.view(parameter.shape)
    return result
