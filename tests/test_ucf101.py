"""UCF-101 in all its layouts: which clips, splits and classes, and rows like those of the Phi-3.5-vision sample."""

import io
import json
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import cut, full_decode, set_avi_count, xvid
from PIL import Image
from pydantic import ValidationError

import phi3v_data
from phi3v_data.converters.ucf101 import Ucf101, Ucf101Options
from phi3v_data.draft import Draft, DraftImage, Item
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.media.encoding import encode
from phi3v_data.sources.source import Source

EXAMPLE = Path(__file__).parent.parent / "examples" / "data"
SPLITS = {
    "train": ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g01_c02", "Yo Yo/v_YoYo_g02_c01"),
    "val": ("Yo Yo/v_YoYo_g03_c01",),
    "test": ("Archery/v_Archery_g04_c01", "Yo Yo/v_YoYo_g04_c01"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small clip, copied wherever a clip is needed."""
    return xvid(tmp_path_factory.mktemp("clip") / "clip.avi", frames=12, size=(32, 24))


def lay(clip: Path, root: Path, paths: Sequence[str]) -> Path:
    shuffled = list(paths)
    random.Random(5).shuffle(shuffled)  # the file system's order is not the plan's
    for path in shuffled:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / path)
    return root


@pytest.fixture
def subset(clip: Path, tmp_path: Path) -> Path:
    return lay(clip, tmp_path / "UCF101_subset", [f"{s}/{p}.avi" for s, paths in SPLITS.items() for p in paths])


FULL = (
    "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    "HandstandPushups/v_HandStandPushups_g02_c01.avi",
    "Archery/v_Archery_g01_c01.avi",
    "Archery/v_Archery_g02_c01.avi",
)


def write_lists(folder: Path, *, end: str = "\n", extra_train: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_bytes(end.join(["1 Archery", "2 HandstandPushups", ""]).encode())
    for fold in (1, 2, 3):
        held = "g01" if fold != 2 else "g02"
        train = [path for path in FULL if held not in path]
        test = [path for path in FULL if held in path]
        lines = [f"{path} {1 if 'Archery' in path else 2}" for path in train] + ([extra_train] if extra_train else [])
        (folder / f"trainlist0{fold}.txt").write_bytes((end.join(lines) + end).encode())
        (folder / f"testlist0{fold}.txt").write_bytes((end.join(test) + end).encode())
    return folder


def plan(root: Path, **options: Any) -> list[Item]:
    return list(Ucf101().plan(Source.open(root, work_dir=root.parent / "work"), Ucf101Options(**options)))


def by_split(items: Sequence[Item]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(item.split, []).append(item.key)
    return found


def convert(item: Item, **options: Any) -> Draft:
    return Ucf101().convert(item, Ucf101Options(**options))


class TestSplitFolders:
    def test_plan(self, subset: Path) -> None:
        for root in (subset, subset.parent):
            items = plan(root)
            assert by_split(items) == {s: [f"{s}/{p}.avi" for p in paths] for s, paths in SPLITS.items()}
            assert list(by_split(items)) == ["train", "val", "test"]
            assert [item.label for item in items][:3] == ["Archery", "Archery", "Yo Yo"]
            assert items[0].group == "Archery/g01"
            assert all(item.size == Path(item.path).stat().st_size for item in items)

    def test_an_archive_gives_the_plan_of_its_folder(self, subset: Path) -> None:
        with tarfile.open(subset.parent / "UCF101_subset.tar.gz", "w:gz") as archive:
            archive.add(subset, "UCF101_subset")
        with zipfile.ZipFile(subset.parent / "s.zip", "w") as zipped:
            for path in subset.rglob("*.avi"):
                zipped.write(path, path.relative_to(subset.parent))
        expected = [(item.split, item.key, item.size, item.group, item.label) for item in plan(subset)]
        for name in ("UCF101_subset.tar.gz", "s.zip"):
            items = plan(subset.parent / name)
            assert [(item.split, item.key, item.size, item.group, item.label) for item in items] == expected

    def test_validation_is_val_and_letter_case_of_splits_does_not_matter(self, clip: Path, tmp_path: Path) -> None:
        root = lay(clip, tmp_path / "set", ["Train/A/x.mp4", "Validation/A/y.mp4", "TEST/A/z.mp4"])
        assert list(by_split(plan(root))) == ["train", "val", "test"]

    def test_a_class_spelt_otherwise_in_another_split_is_one_class(self, clip: Path, tmp_path: Path) -> None:
        root = lay(clip, tmp_path / "set", ["train/HandstandPushups/v_x_g01_c01.avi", "test/HandStandPushups/y.avi"])
        items = plan(root)
        assert {item.label for item in items} == {"HandstandPushups"}
        assert convert(items[1]).notes == ("class-case-merged",)
        assert convert(items[0]).notes == ()

    def test_a_clip_outside_the_class_folders_is_named(self, subset: Path, clip: Path) -> None:
        shutil.copy(clip, subset / "sample.avi")
        with pytest.raises(UserError, match=r"'sample\.avi' is not in a class folder"):
            plan(subset)


class TestOfficialLists:
    @pytest.fixture
    def full(self, clip: Path, tmp_path: Path) -> Path:
        return lay(clip, tmp_path / "all" / "UCF-101", FULL).parent

    @pytest.mark.parametrize("place", ["ucfTrainTestlist", "annotations", "deep/down/lists", "UCF-101"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_lists_anywhere_in_the_source(self, full: Path, place: str, end: str) -> None:
        write_lists(full / place, end=end)
        for fold, held in ((None, "g01"), (1, "g01"), (2, "g02"), (3, "g01")):
            items = plan(full, fold=fold)
            assert Counter(item.split for item in items) == {"train": 2, "test": 2}
            assert all((held in item.key) == (item.split == "test") for item in items)
            assert [item.label for item in items] == ["Archery", "HandstandPushups"] * 2
            assert {item.group.split("/")[0] for item in items} == {"Archery", "HandstandPushups"}

    def test_lists_beside_the_clips_or_named(self, full: Path, tmp_path: Path) -> None:
        write_lists(full / "ucfTrainTestlist")
        expected = by_split(plan(full, fold=2))
        assert by_split(plan(full / "UCF-101", fold=2)) == expected
        elsewhere = (full / "ucfTrainTestlist").rename(tmp_path / "elsewhere")
        options = Ucf101Options(fold=2, lists=str(elsewhere))
        assert by_split(list(Ucf101().plan(Source.open(full), options))) == expected
        assert str(tmp_path) not in options.model_dump_json()
        with pytest.raises(NotFoundError, match="--fold 2 needs the official lists"):
            plan(full, fold=2)

    def test_files_are_matched_without_case_and_without_folders(self, full: Path, clip: Path) -> None:
        write_lists(full / "ucfTrainTestlist")
        expected = [(item.split, item.label, item.key.lower()) for item in plan(full)]
        shutil.rmtree(full / "UCF-101")
        lay(clip, full / "flat", [Path(path).name.upper().replace(".AVI", ".AVI") for path in FULL])
        assert [(item.split, item.label, item.key.lower()) for item in plan(full)] == expected

    def test_a_repack_in_another_container_is_matched_by_stem(self, full: Path, clip: Path) -> None:
        write_lists(full / "ucfTrainTestlist")
        shutil.rmtree(full / "UCF-101")
        lay(clip, full / "UCF-101", [path.replace(".avi", ".mp4") for path in FULL])
        assert Counter(item.split for item in plan(full)) == {"train": 2, "test": 2}

    def test_an_entry_without_a_file_is_a_reject(self, full: Path) -> None:
        write_lists(full / "ucfTrainTestlist", extra_train="Archery/v_Archery_g09_c01.avi 1")
        items = plan(full)
        assert Counter(item.split for item in items) == {"train": 3, "test": 2}
        assert "trainlist01.txt:3" in items[1].message
        assert items[1].reject == "video-missing"

    def test_a_file_without_an_entry_is_a_reject_that_moves_no_number(self, full: Path, clip: Path) -> None:
        write_lists(full / "ucfTrainTestlist")
        before = [item.key for item in plan(full) if item.split == "train"]
        lay(clip, full / "UCF-101", ["Archery/v_Archery_g00_c01.avi"])
        train = [item for item in plan(full) if item.split == "train"]
        assert [item.key for item in train][:-1] == before
        assert train[-1].reject == "not-in-lists"

    def test_the_lists_of_the_other_task_are_named(self, full: Path, tmp_path: Path) -> None:
        write_lists(full / "UCF101TrainTestSplits-DetectionTask")
        with pytest.raises(UserError, match="DetectionTask"):
            plan(full)
        write_lists(full / "ucfTrainTestlist")
        assert len(plan(full)) == 4
        shutil.rmtree(full / "UCF101TrainTestSplits-DetectionTask")
        for file in (full / "ucfTrainTestlist").glob("t*list*.txt"):
            file.write_text(file.read_text().replace(".avi", ""))
        with pytest.raises(UserError, match="DetectionTask"):
            plan(full)

    def test_mistakes_in_lists_are_named_with_file_and_line(self, full: Path) -> None:
        lists = write_lists(full / "ucfTrainTestlist", extra_train="Archery/v_Archery_g02_c01.avi 3")
        with pytest.raises(UserError, match=r"trainlist01\.txt:3: class number 3"):
            plan(full)
        write_lists(lists, extra_train=FULL[3] + " 1")
        with pytest.raises(UserError, match="listed twice"):
            plan(full)
        write_lists(lists, extra_train="../../x.avi 1")
        with pytest.raises(UserError, match=r"trainlist01\.txt:3: expected 'Class/file\.avi'"):
            plan(full)
        write_lists(lists)
        (lists / "testlist01.txt").unlink()
        with pytest.raises(NotFoundError, match=r"no testlist01\.txt"):
            plan(full)
        assert len(plan(full, fold=2)) == 4

    def test_a_clip_that_is_there_twice_is_named(self, full: Path, clip: Path) -> None:
        write_lists(full / "ucfTrainTestlist")
        lay(clip, full / "backup", [FULL[0]])
        with pytest.raises(UserError, match="could be"):
            plan(full)


class TestClassFolders:
    def test_everything_is_train(self, clip: Path, tmp_path: Path) -> None:
        root = lay(clip, tmp_path / "set", ["talking head/a.mp4", "cartoon/b.MKV", "cartoon/c.webm", "cartoon/.d.mp4"])
        items = plan(root)
        assert [(i.split, i.label, i.key) for i in items] == [
            ("train", "cartoon", "cartoon/b.MKV"),
            ("train", "cartoon", "cartoon/c.webm"),
            ("train", "talking head", "talking head/a.mp4"),
        ]
        assert [item.group for item in items] == ["", "", ""]
        info = Ucf101().describe(Source.open(root), Ucf101Options())
        assert info.classes == ("cartoon", "talking head")
        assert info.source == "clips sorted into class folders"

    def test_clips_at_different_depths_are_named(self, clip: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="different depths"):
            plan(lay(clip, tmp_path / "set", ["A/a.avi", "B/more/b.avi"]))
        with pytest.raises(UserError, match="not in a class folder"):
            plan(lay(clip, tmp_path / "flat", ["a.avi", "b.avi"]))

    def test_same_stem_never_shares_an_image(self, clip: Path, tmp_path: Path) -> None:
        names = ["A/x.avi", "A/x.mp4", "A/X.avi", "A/x~2.avi", "B/x.avi"]
        items = plan(lay(clip, tmp_path / "set", names))
        drafts = [convert(item, frames=2) for item in items]
        images = [image.name for draft in drafts for image in draft.images if isinstance(image, DraftImage)]
        assert len({name.lower() for name in images}) == 2 * len(names)
        assert sum("clip-renamed" in draft.notes for draft in drafts) == 2
        assert [item.key for item in items] == ["A/X.avi", "A/x.avi", "A/x.mp4", "A/x~2.avi", "B/x.avi"]
        assert "train/A/X.0.jpg" in images

    def test_strange_names_are_safe(self, clip: Path, tmp_path: Path) -> None:
        names = ["a\\b/x..avi", "con/nul.avi", 'q"<>|?*/x:y.avi', "pic.jpg/clip.avi", "\u00fc \u65e5/tab\there.avi"]
        items = plan(lay(clip, tmp_path / "set", names))
        phi3v_data.convert(Ucf101, tmp_path / "set", tmp_path / "out", workers=0)
        assert Counter(item.label for item in items) == Counter(name.split("/")[0] for name in names)
        assert len(list((tmp_path / "out" / "images").rglob("*.jpg"))) == 8 * len(names)


def test_no_clips_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(NotFoundError, match="expected train/<Class>"):
        plan(tmp_path / "set")
    (tmp_path / "set" / "UCF101.rar").touch()
    with pytest.raises(NotFoundError, match=r"archive 'UCF101\.rar'"):
        plan(tmp_path / "set")


class TestOptions:
    def test_classes_by_name_or_file(self, subset: Path, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("1 archery\r\n2 Yo Yo\r\n")
        assert {item.label for item in plan(subset, classes="yo yo")} == {"Yo Yo"}
        assert {item.label for item in plan(subset, classes=" Archery , yo yo")} == {"Archery", "Yo Yo"}
        padded = f"{'Yo Yo, ' * 50}Archery"  # longer than the name of a file can be
        assert {item.label for item in plan(subset, classes=padded)} == {"Archery", "Yo Yo"}
        options = Ucf101Options(classes=str(tmp_path / "names.txt"))
        assert str(tmp_path) not in options.model_dump_json()
        assert {item.label for item in Ucf101().plan(Source.open(subset), options)} == {"Archery", "Yo Yo"}
        assert Ucf101Options.model_validate(options.model_dump()) == options
        with pytest.raises(NotFoundError, match=r"no class 'Archary'; did you mean 'Archery'\?"):
            plan(subset, classes="Archary")
        assert "Archery." in convert(plan(subset, classes="Archery")[0]).user

    def test_prompt(self, subset: Path) -> None:
        draft = convert(plan(subset)[0])
        assert draft.user == "Classify the video into one of the following classes: Archery, Yo Yo."
        assert draft.assistant == "Archery"
        assert convert(plan(subset, prompt="{x} of {classes}?")[0]).user == "{x} of Archery, Yo Yo?"

    def test_frames_format_and_size(self, subset: Path) -> None:
        item = plan(subset)[0]
        for kind, suffix in (("jpeg", "jpg"), ("png", "png"), ("webp", "webp")):
            draft = convert(item, frames=3, image_format=kind, max_side=16, quality=60)
            images = [image for image in draft.images if isinstance(image, DraftImage)]
            assert [image.name for image in images] == [
                f"train/Archery/v_Archery_g01_c01.{k}.{suffix}" for k in range(3)
            ]
            assert {(np.asarray(image.content).shape, image.format, image.quality) for image in images} == {
                ((12, 16, 3), kind, 60)
            }

    @pytest.mark.parametrize("wrong", [{"frames": 0}, {"fold": 4}, {"quality": 101}, {"sampling": "all"}, {"x": 1}])
    def test_wrong_values_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Ucf101Options(**wrong)

    def test_notes_and_rejects(self, subset: Path) -> None:
        item = plan(subset)[0]
        assert convert(item, frames=20).notes == ("frames-repeated",)
        set_avi_count(Path(item.path), 99)
        with pytest.raises(Reject) as caught:
            convert(item)
        assert caught.value.code == "video-truncated"
        assert "train/Archery/v_Archery_g01_c01.avi" in caught.value.message
        assert str(subset) not in caught.value.message
        assert "video-salvaged" in convert(item, salvage=True).notes


def reference_rows(root: Path) -> tuple[dict[str, list[str]], dict[str, bytes]]:
    """Rows and JPEG files that the Phi-3.5-vision sample writes for a subset folder, in the order of the numbers."""
    classes = sorted({path.name for path in root.glob("*/*")})
    prompt = f"Classify the video into one of the following classes: {', '.join(classes)}."
    rows: dict[str, list[str]] = {}
    images: dict[str, bytes] = {}
    number = 0
    for split in ("train", "val", "test"):
        for path in sorted((root / split).glob("*/*.avi"), key=lambda path: str(path).encode()):
            frames = full_decode(path)
            names = []
            for k in range(8):
                name = f"{split}/{path.parent.name}/{path.stem}.{k}.jpg"
                buffer = io.BytesIO()
                Image.fromarray(frames[k * len(frames) // 8]).save(buffer, "JPEG")
                images[name] = buffer.getvalue()
                names.append(name)
            turn = {"images": names, "user": prompt, "assistant": path.parent.name}
            row = {"id": f"{split}-{number:010d}", "source": "ucf101", "conversations": [turn]}
            rows.setdefault(split, []).append(json.dumps(row))
            number += 1
    return rows, images


def test_plain_rows_and_images_are_the_bytes_of_the_phi35_vision_sample(tmp_path: Path) -> None:
    rows, images = reference_rows(EXAMPLE / "UCF101_subset")
    phi3v_data.convert("ucf101", EXAMPLE, tmp_path / "out", plain=True, workers=0)
    for split, lines in rows.items():
        text = (tmp_path / "out" / f"ucf101_{split}.jsonl").read_text(encoding="utf-8")
        assert text == "".join(line + "\n" for line in lines)
    root = tmp_path / "out" / "images"
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(images)
    for name, data in images.items():
        assert (root / name).read_bytes() == data, name


def test_the_mini_set_is_what_its_readme_says() -> None:
    items = plan(EXAMPLE)
    assert Counter((item.split, item.label) for item in items) == {
        (split, label): count
        for split, count in (("train", 8), ("val", 3), ("test", 3))
        for label in ("GrassyMeadow", "StretchingRabbit", "TreesAndSky")
    }
    groups = {split: {item.group for item in items if item.split == split} for split in ("train", "val", "test")}
    assert not groups["train"] & (groups["val"] | groups["test"])
    assert not groups["val"] & groups["test"]
    assert sum(item.size for item in items) < 2_000_000
    draft = convert(items[0])
    assert draft.meta == {"source_id": "train/GrassyMeadow/v_GrassyMeadow_g01_c01.avi"}
    assert draft.notes == ()
    assert all(np.asarray(i.content).shape == (240, 320, 3) for i in draft.images if isinstance(i, DraftImage))
    info = Ucf101().describe(Source.open(EXAMPLE), Ucf101Options())
    assert (info.name, info.task, info.metrics, info.num_crops) == ("ucf101", "classification", ("accuracy",), 4)


def test_a_damaged_clip_leaves_a_hole_and_moves_no_neighbour(subset: Path, tmp_path: Path) -> None:
    victim = subset / "train" / "Archery" / "v_Archery_g01_c02.avi"
    cut(victim, 0.9)
    result = phi3v_data.convert("ucf101", subset, tmp_path / "out", workers=0)
    assert result.manifest.rejects == {"video-truncated": 1}
    text = (tmp_path / "out" / "ucf101_train.jsonl").read_text(encoding="utf-8")
    ids = [json.loads(line)["id"] for line in text.splitlines()]
    assert ids == ["train-0000000000", "train-0000000002"]
    assert not list((tmp_path / "out" / "images").rglob("v_Archery_g01_c02*"))


def test_a_clips_frames_do_not_depend_on_how_often_it_is_converted(subset: Path) -> None:
    item = plan(subset)[0]
    first, second = convert(item), convert(item)
    for one, two in zip(first.images, second.images, strict=True):
        assert isinstance(one, DraftImage)
        assert isinstance(two, DraftImage)
        assert encode(one.content, "jpeg") == encode(two.content, "jpeg")  # type: ignore[arg-type]  # arrays
