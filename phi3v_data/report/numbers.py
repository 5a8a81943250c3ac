"""Prints the statistics of a set: `phi3v-data stats`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from phi3v_data.messages import counted, join_words
from phi3v_data.tokens.registry import DEFAULT, get_family

if TYPE_CHECKING:
    from rich.console import Console

MAX_LABELS = 10
MAX_SIZES = 5
MAX_EXAMPLES = 5


def print_stats(stats: Mapping[str, Any], console: "Console") -> None:
    """Print the result of `set_stats`."""
    from rich.table import Table

    console.print(
        f"{stats['dir']}: {counted(stats['num_samples'], 'sample')}, {counted(stats['num_turns'], 'turn')}, "
        f"{counted(stats['num_images'], 'image')}",
        style="bold",
        markup=False,
    )
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("split")
    for name in ("samples", "turns", "images", "tokens", "labels", "evenness"):
        table.add_column(name, justify="right")
    for split, counts in stats["splits"].items():
        found = stats["label_balance"].get(split)
        labels = ["", ""] if found is None else [f"{found['labels']:,}", f"{found['evenness']:.3f}"]
        table.add_row(split, *(f"{counts[name]:,}" for name in ("samples", "turns", "images", "tokens")), *labels)
    console.print(table)
    console.print()
    for line in _lines(stats):
        console.print(line, markup=False, soft_wrap=True)


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    for what in ("question", "answer"):
        yield f"{what:<13}{_spread(stats['text'][what])} characters"
    note = "" if stats["text_tokens"] == "exact" else ", text estimated"
    option = get_family(stats["model"]).budget_option
    budget = "no image budget" if stats["num_crops"] is None else f"{option} {stats['num_crops']}"
    model = "" if stats["model"] == DEFAULT else f"model {stats['model']}, "
    yield f"{'tokens':<13}{_spread(stats['tokens'])} per sample ({model}{budget}{note})"
    sizes = list(stats["image_sizes"].items())
    if sizes:
        words = join_words(sizes, MAX_SIZES, each=lambda size: f"{size[0]} ({size[1]:,})", noun="size")
        yield f"{'image sizes':<13}{words}"
    if stats["groups"]:
        yield f"{'groups':<13}{stats['groups']:,}"
    for split, counts in stats["labels"].items():
        if counts and stats["label_balance"][split]["labels"] > 1:
            words = join_words(list(counts.items()), MAX_LABELS, each=lambda label: f"{label[0]!r} {label[1]:,}")
            yield f"{'labels':<13}{split}: {words}"
    yield from _duplicates(stats["duplicates"])
    if stats["unread_lines"]:
        yield f"{counted(stats['unread_lines'], 'line')} not counted, as not valid rows; phi3v-data validate shows why"
    if stats["missing_images"]:
        yield f"{counted(stats['missing_images'], 'image')} named by rows but missing"


def _duplicates(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield f"{'duplicates':<13}not searched for at level quick"
        return
    samples = found["samples"]
    yield (f"{'duplicates':<13}samples: {samples['within']:,} within a split, {samples['across']:,} across splits")
    for kind, words in (("exact", "same pixels"), ("near", "look alike")):
        each = found[kind]
        parts = [f"{counted(each['pictures'], 'file')} in {counted(each['groups'], 'group')}"] if each["groups"] else []
        parts += [f"{count:,} of them within {split}" for split, count in each["within"].items()]
        parts += [f"{counted(count, 'image')} in both of {pair}" for pair, count in each["across"].items()]
        yield f"{'':<13}{words}: {', '.join(parts) or 'none'}"
        if each["unchecked_pairs"]:
            yield f"{'':<15}{counted(each['unchecked_pairs'], 'further pair')} not compared"
        for left, right in each["examples"][:MAX_EXAMPLES]:
            yield f"{'':<15}{left!r} and {right!r}"


def _spread(histogram: Mapping[str, Any]) -> str:
    if "median" not in histogram:
        return "none"
    return (
        f"median {histogram['median']:,}, mean {histogram['mean']:,}, 95 % {histogram['p95']:,}, "
        f"{histogram['min']:,} to {histogram['max']:,}"
    )
