"""The README's code for the model runs unchanged, with the tiny model in place of the released one."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from phi3v_train.models.phi3v.tiny import save_tiny

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_loads_a_directory_and_answers_about_an_image(tmp_path: Path) -> None:
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if "AutoProcessor" in block
    )
    assert 'path = "microsoft/Phi-3.5-vision-instruct"' in code
    save_tiny(tmp_path / "tiny")
    Image.new("RGB", (400, 300), (200, 30, 30)).save(tmp_path / "image.jpg")
    code = code.replace("microsoft/Phi-3.5-vision-instruct", str(tmp_path / "tiny"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the model gives an answer, even if it is noise"
    assert "Traceback" not in done.stderr
