"""Rows in a local file whose images are objects of a store: copied one by one, with the bytes of a local folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import make_cli
from PIL import Image
from stub_store import Stub

from phi3v_data.errors import UserError
from phi3v_data.formats import stored_images
from phi3v_data.importing import import_rows
from phi3v_data.media.formats import Limits
from phi3v_data.remote.retry import StoreError


def row(image: str) -> dict[str, Any]:
    """A row of LLaVA."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A colour."}]
    return {"image": image, "conversations": turns}


def write_rows(path: Path, images: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(image)) + "\n" for image in images))
    return path


def put_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 50, 90, 200)).save(folder / name)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".phi3v" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_images_below_an_address_are_those_of_a_folder_and_asked_for_once(stub: Stub, tmp_path: Path) -> None:
    put_images(stub.folder / "pics", "a b/0.jpg", "1.png")
    (stub.folder / "pics/1.png").rename(stub.folder / "pics/1.jpg")  # the name gets the ending of the format
    rows = write_rows(tmp_path / "rows.jsonl", ["a b/0.jpg", "./a b/0.jpg", "1.jpg"])
    import_rows("llava", rows, tmp_path / "here", options={"images_root": str(stub.folder / "pics")}, workers=0)
    import_rows("llava", rows, tmp_path / "there", options={"images_root": "s3://b/pics/"}, workers=0)
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    described, stored = (json.loads(each.pop("dataset.json")) for each in (here, there))
    assert there == here
    assert stored["converter"]["options"].pop("images_address") == "s3://b/pics"
    assert described["converter"]["options"].pop("images_address") == ""
    assert stored == described
    assert {"images/a b/0.jpg", "images/1.png"} <= set(there)
    assert (sorted(key for key, _ in stub.gets), stub.heads) == (["pics/1.jpg", "pics/a b/0.jpg"], [])


def test_addresses_in_rows_are_read_only_below_the_address_of_images(stub: Stub, tmp_path: Path) -> None:
    put_images(stub.folder, "pics/0.jpg", "pics/a/2.jpg", "secret/1.jpg")
    names = ["s3://b/pics/0.jpg", "s3://b/secret/1.jpg", "../secret/1.jpg", "a\\..\\..\\secret\\1.jpg"]
    rows = write_rows(tmp_path / "rows.jsonl", names)
    done = import_rows("llava", rows, tmp_path / "out", options={"images_root": "s3://b/pics"}, workers=0)
    assert (done.samples, done.rejects) == (1, 3)
    found = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert found.pop()["reason"] == "image-path-unsafe"
    assert [(each["reason"], each["message"]) for each in found] == [
        (
            "image-missing",
            "rows.jsonl, line 2, image: 's3://b/secret/1.jpg' is an object of a store; only those below --images_root "
            "are read: give an address there",
        ),
        (
            "image-path-unsafe",
            "rows.jsonl, line 3, image: '../secret/1.jpg' leads out of 's3://b/pics', the folder of images; as SRC, "
            "give the folder that has data and images, with --data FILE; --images_root will do for absolute paths",
        ),
    ]
    assert [key for key, _ in stub.gets] == ["pics/0.jpg"]


def test_an_image_that_is_missing_empty_or_too_large_is_a_reject(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(stub.folder / "pics", "0.jpg")
    (stub.folder / "pics/empty.jpg").touch()
    (stub.folder / "pics/large.jpg").write_bytes(bytes(2001))
    monkeypatch.setattr(stored_images, "LIMITS", Limits(file_bytes=2000))
    rows = write_rows(tmp_path / "rows.jsonl", ["0.jpg", "none.jpg", "empty.jpg", "large.jpg"])
    import_rows("llava", rows, tmp_path / "out", options={"images_root": "s3://b/pics"}, workers=0)
    found = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [(each["reason"], each["message"]) for each in found] == [
        (
            "image-missing",
            "rows.jsonl, line 2, image: there is no image 'none.jpg' in s3://b/pics, where paths begin; --images_root "
            "sets another",
        ),
        ("image-unreadable", "rows.jsonl, line 3, image: 'empty.jpg' is empty (0 bytes)"),
        ("image-too-large", "rows.jsonl, line 4, image: 'large.jpg' has more than 2,000 bytes"),
    ]


def test_an_interrupted_import_copies_nothing_again_and_keeps_its_address(stub: Stub, tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(4)]
    put_images(stub.folder / "pics", *names)
    put_images(stub.folder / "other", *names)
    rows = write_rows(tmp_path / "rows.jsonl", names)

    def run(address: str) -> None:
        import_rows("llava", rows, tmp_path / "out", options={"images_root": address}, workers=0)

    stub.fail = lambda number: "500" if number >= 3 else ""
    with pytest.raises(StoreError, match=r"^s3://b/pics/3.jpg: the store failed 8 times in a row"):
        run("s3://b/pics")
    stub.fail = lambda number: ""
    with pytest.raises(UserError, match="images_address"):
        run("s3://b/other")
    run("s3://b/pics")
    assert [key for key, _ in stub.gets] == [*(f"pics/{name}" for name in names), *["pics/3.jpg"] * 8]
    assert len(files(tmp_path / "out")) >= 4
    assert not list((tmp_path / "out").rglob("downloads"))


def test_an_address_with_nothing_below_it_is_one_sentence(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["0.jpg"])
    cli = make_cli(capsys, monkeypatch)
    code, _, err = cli("import", "llava", rows, "--images_root", "s3://b/none", "--out_dir", tmp_path / "out")
    assert (code, err) == (2, "error: --images_root s3://b/none: nothing is there\n")
    code, _, err = cli("validate", rows, "--images_root", "s3://b/none")
    assert (code, err) == (
        2,
        "error: --images_root s3://b/none: a file of rows is checked with images in a folder; `phi3v-data import` "
        "reads an address, and what it writes can be checked\n",
    )
