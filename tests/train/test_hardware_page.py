"""docs/hardware.md says what the code and the committed measurements say."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from colour_sets import colour_directory

from phi3v_data.cli.base import run
from phi3v_train.cli.app import COMMANDS, HELP, make_group

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hardware.md"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hardware_page", ROOT / "benchmarks" / "hardware_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code_and_the_results(generator: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == generator.filled(page), "run `python benchmarks/hardware_page.py`"


def test_the_memory_table_is_what_a_plan_says(generator: ModuleType) -> None:
    """A spot check by hand: 16 bytes for 4.13 billion parameters are 66.2 GB; an eighth of that is 8.3."""
    lines = generator.memory_table().splitlines()
    full = next(line for line in lines if line.startswith("| full | `ddp` |"))
    assert float(full.split("|")[3]) == pytest.approx(66.2 + 2.9, abs=0.3)
    eighth = next(line for line in lines if line.startswith("| full | `fsdp` |")).split("|")[6]
    assert float(eighth) == pytest.approx(8.3 + 3.6, abs=0.3)


def test_the_time_of_a_save_is_its_size_by_the_rate(generator: ModuleType) -> None:
    """By hand: 12 bytes for 4.134 billion parameters are 49.6 GB; 308.3 MB in .244 s were measured, 1.26 GB/s, and
    .263 s a GB for digests: 248 + 13, 99 + 13, 39 + 13, 10 + 13.
    """
    lines = generator.saving_table().splitlines()
    assert "1.26 GB/s (measured)" in lines[0]
    assert lines[2] == "| full | 49.6 GB | 261 s | 112 s | 52 s | 23 s |"


def test_the_commands_of_the_page_are_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command for one machine makes a plan; the recipe, the options and the flags exist."""
    data_dir = colour_directory(tmp_path / "data", rows=4)
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    found = re.findall(r"^(?:phi3v-train|torchrun .* -m phi3v_train) (.*)$", blocks, re.MULTILINE)
    assert len(found) == 5
    for line in dict.fromkeys(found):
        words = shlex.split(line.replace("data/docvqa", str(data_dir)).replace("runs/docvqa", str(tmp_path / "out")))
        small = ["--model_name_or_path", "tiny", "--device", "cpu", "--dtype", "fp32", "--num_crops", "1"]
        with pytest.raises(SystemExit) as end:
            run(make_group("phi3v-train", HELP, COMMANDS), [*words, "--dry_run", "--skip_validation", *small])
        assert end.value.code == 0, capsys.readouterr().err


def test_the_plans_memory_is_within_a_tenth_of_the_step_on_the_fake_device(generator: ModuleType) -> None:
    """All methods, with and without gradient checkpointing; `benchmarks/model/fake_step.py` counted the bytes."""
    lines = generator.step_table().splitlines()[2:]
    assert len(lines) == 8
    for line in lines:
        peak, plan = (float(cell) for cell in line.split("|")[4:6])
        assert plan == pytest.approx(peak, rel=0.1), line
