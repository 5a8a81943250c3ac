"""Formats of installed packages (entry point group `phi3v_data.formats`), as the commands find them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_format import OWN

SCRIPT = """
import sys
from phi3v_data.cli.app import main

for line in sys.argv[1:]:
    sys.argv = ["phi3v-data", *line.split()]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""


def install(site: Path, package: str, module: str, entry: str) -> None:
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[phi3v_data.formats]\n{entry}\n")
    (site / f"{package}.py").write_text(module)


def commands(site: Path, folder: Path, *lines: str) -> "subprocess.CompletedProcess[str]":
    """Run commands, one after the other, where the packages in `site` are installed."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *lines],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_import_validate_and_export_know_an_installed_format(tmp_path: Path) -> None:
    install(tmp_path / "site", "my_formats", OWN, "mine = my_formats:Mine")
    rows = [{"talk": [{"who": "q", "says": f"{number}?"}, {"who": "a", "says": f"{number}."}]} for number in range(3)]
    rows.append({"talk": [{"who": "q", "says": "Why?"}]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = commands(
        tmp_path / "site",
        tmp_path,
        "import mine rows.jsonl --out_dir out --workers 2 -q",  # workers find it, too
        "validate rows.jsonl --format mine --json -q",
        "export mine out --out again -q",
    )
    found = done.stdout.split("exit ")
    assert [part.splitlines()[0] for part in found[1:]] == ["1", "1", "0"], done.stderr
    report = json.loads(found[1].partition("\n")[2])
    assert [(item["code"], item["line"], item["field"]) for item in report["problems"]] == [
        ("no-turns", 4, "talk[0].says")
    ]
    written = [json.loads(line) for line in (tmp_path / "again" / "train.jsonl").read_text().splitlines()]
    assert [row["talk"] for row in written] == [row["talk"] for row in rows[:3]]


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({"one": "Mine", "two": "Mine"}, "the format mine of the package one and the package two is defined 2 times"),
        ({"one": "TaggedFormat"}, "the format mine of the package one is not a format"),
        ({"one": "Nothing"}, "the format mine of the package one"),
        ({"other": "Other"}, "the format mine of the package other is named 'other'"),
    ],
    ids=["two packages", "a base class", "nothing there", "another name"],
)
def test_a_faulty_package_is_named_and_stops_only_its_own_format(
    packages: dict[str, str], message: str, tmp_path: Path
) -> None:
    for package, target in packages.items():
        module = OWN.replace('"mine"', '"other"').replace("Mine", "Other") if target == "Other" else OWN
        install(tmp_path / "site", package, module, f"mine = {package}:{target}")
    messages = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"conversations": messages}) + "\n")
    done = commands(
        tmp_path / "site",
        tmp_path,
        "import mine rows.jsonl --out_dir out --workers 0",
        "validate rows.jsonl --format llava -q",
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 2", "exit 0"]
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "out").exists()
