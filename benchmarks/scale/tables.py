"""Results as Markdown tables."""

from typing import Any


def latest(records: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The last complete record of each stage and number of rows."""
    return {(each["stage"], each["rows"]): each for each in records if "stage" in each and not each.get("interrupted")}


def table(records: list[dict[str, Any]]) -> str:
    """CPU time per row and peak memory of each stage, by number of rows; the growth is from the two largest numbers."""
    found = latest(records)
    sizes = sorted({rows for _, rows in found})
    names = list(dict.fromkeys(name for name, _ in found))
    head = ["stage", *(f"µs/row, {rows:,}" for rows in sizes), *(f"peak MB, {rows:,}" for rows in sizes)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in names:
        cells = [found.get((name, rows)) for rows in sizes]
        times = ["" if each is None else f"{each['cpu_us_per_row']:,.0f}" for each in cells]
        peaks = ["" if each is None else peak(each["peak_mb"]) for each in cells]
        lines.append([name, *times, *peaks])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def peak(values: list[int]) -> str:
    """The command's own peak, and the largest of its workers."""
    return f"{values[0]:,}" + (f" + {max(values[1:]):,}" if values[1:] else "") if values else ""
