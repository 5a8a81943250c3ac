"""Where converters are found, and what is said when one is not."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from toy_converter import FILE, Toy, run_cli

import phi3v_data
from phi3v_data.registry import all_converters, find, names, own_file_digest, reference

PLUGIN = """
import phi3v_data

class Plugin(phi3v_data.Converter[phi3v_data.Options]):
    \"\"\"Comes with another package.\"\"\"

    name = "plugin"

    def plan(self, source, options):
        return [phi3v_data.Item("train", key) for key in "abc"]

    def convert(self, item, options):
        return phi3v_data.Draft(user=f"What is {item.key}?", assistant="A letter.")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with three installed distributions: one converter works, one cannot be imported, one exits at import."""
    site = tmp_path / "site"
    for name, module, target in (
        ("good-plugin", PLUGIN, "Plugin"),
        ("bad-plugin", "import nowhere_to_be_found", "X"),
        ("bad-exit-plugin", "import sys\nsys.exit(0)", "X"),
    ):
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file = name.replace("-", "_")
        entry = name.removesuffix("-plugin") if name.startswith("bad") else "plugin"
        (info / "entry_points.txt").write_text(f"[phi3v_data.converters]\n{entry} = {file}:{target}\n")
        (site / f"{file}.py").write_text(module)
    return site


def run_with(site: Path, *args: object) -> "subprocess.CompletedProcess[str]":
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from phi3v_data.cli.app import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_the_modules_in_the_folder_are_the_converters() -> None:
    assert {"cauldron", "docvqa", "hateful_memes", "image_folder", "nlvr2", "table", "ucf101"} <= set(names())
    assert names() == sorted(names())
    for name in names():
        cls = find(name)
        assert cls.name == name
        assert cls.__module__ == f"phi3v_data.converters.{name}"
        assert cls.__doc__
        assert reference(cls) is not None
        assert cls.Options.model_fields or cls.Options is phi3v_data.Options
        for field in cls.Options.model_fields.values():
            assert field.description, f"{name}: an option without help"


def test_a_class_a_file_and_a_name_in_a_file_are_found() -> None:
    assert find(Toy) is Toy
    for name in ("Toy", "toy"):
        found = find(f"{FILE}:{name}")
        assert found.name == "toy"
        assert found is find(f"{FILE}:Toy")
    assert find(f"{FILE}:drafts").name == "drafts"


def test_a_file_with_one_converter_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert find(str(tmp_path / "mine.py")).name == "plugin"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (None, "x.py:A", "the file does not exist"),
        ("def f(:\n", "x.py:A", r"cannot be loaded: SyntaxError: .* \(x\.py:1\)"),
        ("\n1 / 0\n", "x.py:A", r"cannot be loaded: ZeroDivisionError: division by zero \(x\.py:2\)"),
        ("import nowhere_to_be_found\n", "x.py:A", r"ModuleNotFoundError: .*nowhere_to_be_found.* \(x\.py:1\)"),
        ("import sys\nsys.exit(0)\n", "x.py:A", r"x\.py: cannot be loaded: SystemExit: 0 \(x\.py:2\)"),
        ("raise BaseException('no')\n", "x.py:A", r"cannot be loaded: BaseException: no \(x\.py:1\)"),
        ("A = 3\n", "x.py:A", "is not a converter; subclass phi3v_data.Converter"),
        ("A = 3\n", "x.py:B", "has no 'B'; it contains no converters"),
        ("A = 3\n", "x.py", "contains 0 converters"),
        (PLUGIN + PLUGIN.replace("Plugin", "Other"), "x.py", "contains 2 converters; choose one with .* Plugin, Other"),
        (PLUGIN.replace('name = "plugin"', ""), "x.py:Plugin", "has no name"),
    ],
)
def test_a_file_that_will_not_do_is_one_sentence(tmp_path: Path, text: str | None, name: str, said: str) -> None:
    if text is not None:
        (tmp_path / "x.py").write_text(text)
    with pytest.raises(phi3v_data.UserError) as error:
        find(str(tmp_path / name))
    assert re.search(said, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_answered_with_one_like_it() -> None:
    with pytest.raises(phi3v_data.NotFoundError, match=r"no converter 'ucf-101'; did you mean ucf101\?"):
        find("ucf-101")
    with pytest.raises(phi3v_data.NotFoundError, match="the converters are cauldron, docvqa"):
        find("zzz")


def test_installed_converters_are_found_and_run(site: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    done = run_with(site, "convert", "plugin", "--source", tmp_path / "source", "--out_dir", tmp_path / "out")
    assert done.stdout == f"{tmp_path}/out: 3 samples (train 3), 0 images\n", done.stderr
    done = run_with(site, "convert", "bad", "--source", tmp_path / "source", "--out_dir", tmp_path / "out2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the installed converter 'bad' cannot be loaded: ModuleNotFoundError")
    done = run_with(site, "convert", "bad-exit", "--source", tmp_path / "source", "--out_dir", tmp_path / "out2")
    sentence = "error: the installed converter 'bad-exit' cannot be loaded: SystemExit: 0 (bad_exit_plugin.py:2)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_a_file_dropped_into_the_folder_is_a_converter(tmp_path: Path) -> None:
    shutil.copytree(Path(phi3v_data.__file__).parent, tmp_path / "site/phi3v_data")
    folder = tmp_path / "site/phi3v_data/converters"
    (folder / "my_docs.py").write_text(PLUGIN.replace('"plugin"', '"my-docs"').replace("with another package", "alone"))
    (folder / "broken.py").write_text("import nowhere_to_be_found")
    (folder / "misnamed.py").write_text(PLUGIN)
    (folder / "two.py").write_text(PLUGIN.replace('"plugin"', '"two"') + PLUGIN.replace("Plugin", "Other"))
    (tmp_path / "source").mkdir()
    found = {row["name"]: row for row in json.loads(run_with(tmp_path / "site", "converters", "--json").stdout)}
    assert (found["my-docs"]["origin"], found["my-docs"]["summary"]) == ("built in", "Comes alone.")
    assert "nowhere_to_be_found" in found["broken"]["problem"]
    assert found["misnamed"]["problem"].endswith(
        "misnamed (which defines plugin) must define one converter, whose name is that of the module: misnamed"
    )
    assert "two (which defines two, plugin) must define one converter" in found["two"]["problem"]
    assert found["ucf101"]["problem"] == ""
    for name in ("my-docs", "my_docs"):
        out = tmp_path / name
        done = run_with(tmp_path / "site", "convert", name, "--source", tmp_path / "source", "--out_dir", out)
        assert done.stdout == f"{out}: 3 samples (train 3), 0 images\n", done.stderr


def test_the_list_shows_built_in_installed_and_local_ones(site: Path) -> None:
    done = run_with(site, "converters", "--converter", FILE, "--json")
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert found["ucf101"]["origin"] == "built in"
    assert found["ucf101"]["hub_id"] == "sayakpaul/ucf101-subset"
    assert found["ucf101"]["options"]["frames"] == {
        "type": "INTEGER",
        "default": 8,
        "required": False,
        "help": "Number of frames per clip.",
    }
    assert found["plugin"]["origin"] == "installed: good-plugin"
    assert found["plugin"]["summary"] == "Comes with another package."
    assert "nowhere_to_be_found" in found["bad"]["problem"]
    assert found["toy"]["origin"] == "toy_converter.py:Toy"
    text = run_with(site, "converters", "--converter", FILE)
    assert text.returncode == 0
    assert "cannot be used" in text.stdout
    assert "--mode [grey|colour]  Kind of image. (default 'colour')" in text.stdout


def test_public_names_are_there_and_load_nothing_before_they_are_used() -> None:
    for name in phi3v_data.__all__:
        assert getattr(phi3v_data, name) is not None
    code = (
        "import sys, phi3v_data; heavy = {'numpy', 'PIL', 'pydantic', 'cv2', 'av'} & set(sys.modules); "
        "assert not heavy, heavy; import phi3v_data.cli.app; from phi3v_data import convert; assert callable(convert)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_of_a_converter_that_is_not_there_is_an_error() -> None:
    done = run_cli("convert", "ucf-101", "--help")
    assert done.returncode == 2
    assert "did you mean ucf101?" in done.stderr


def test_the_public_names_are_what_dir_lists() -> None:
    import phi3v_train

    assert phi3v_data.__version__ == phi3v_train.__version__ == "0.1.0"
    assert dir(phi3v_train) == ["Outcome", "__version__", "fine_tune"]
    assert {"Dataset", "convert", "__version__"} < set(dir(phi3v_data)) == set(phi3v_data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        _ = phi3v_train.tune


def test_the_digest_of_a_converter_covers_its_file_and_the_files_that_it_imports(tmp_path: Path) -> None:
    """Found by hand: sha256 over one line per file, NAME SPACE sha256, the converter itself without a name."""
    source = FILE.read_text()
    (tmp_path / "mine.py").write_text(f"import beside\n{source}")
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "other.py").write_text("VALUE = 1\n")
    cls = find(f"{tmp_path / 'mine.py'}:Toy")
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("mine.py", "beside.py")}
    expected = hashlib.sha256(f" {hashes['mine.py']}\nbeside.py {hashes['beside.py']}".encode()).hexdigest()
    assert own_file_digest(cls) == expected
    (tmp_path / "other.py").write_text("VALUE = 2\n")
    assert own_file_digest(cls) == expected
    (tmp_path / "beside.py").write_text("VALUE = 2\n")
    assert own_file_digest(cls) != expected


def test_the_digest_of_a_converter_covers_relative_imports_in_packages_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"from box.inner.a import wrap\n{FILE.read_text()}")
    (tmp_path / "box/inner").mkdir(parents=True)
    files = {
        "box/__init__.py": "",
        "box/inner/__init__.py": "",
        "box/inner/a.py": "from . import b\nfrom ..c import C\nfrom ...outside import D\ndef wrap(): return b.B, C\n",
        "box/inner/b.py": "B = 1\n",
        "box/c.py": "C = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path.parent / "outside.py").write_text("D = 1\n")
    cls = type("Mine", (), {"__module__": "mine_with_a_package"})
    module = types.ModuleType("mine_with_a_package")
    module.__file__ = str(tmp_path / "mine.py")
    sys.modules["mine_with_a_package"] = module
    seen = {own_file_digest(cls)}
    for name in ("box/inner/b.py", "box/c.py", "box/inner/a.py"):
        (tmp_path / name).write_text(f"{files[name]}# changed\n")
        seen.add(own_file_digest(cls))
    assert len(seen) == 4
    del sys.modules["mine_with_a_package"]


def test_a_colon_in_a_folder_is_part_of_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    shutil.copy(FILE, folder / "mine.py")
    assert [each.origin for each in all_converters([str(folder / "mine.py")]) if each.name == Toy.name] == [
        "mine.py:Toy"
    ]
    one = all_converters([f"{folder / 'mine.py'}:Toy"])
    assert [each.name for each in one if each.origin == "mine.py:Toy"] == [Toy.name]
