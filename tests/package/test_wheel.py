"""What an installation holds: the package's files, and all that a script copied out of `examples` needs."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from classification_runs import digits, few_steps, too_small
from paths import EXAMPLES, ROOT

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked into a folder outside of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_files(installed: Path) -> None:
    """Every one of src, and no other."""
    source = ROOT / "src"
    known = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    assert len(known) > 150
    assert {str(file.relative_to(installed)) for file in (installed / "hf_pvt").rglob("*") if file.is_file()} == known


def test_copied_scripts(installed: Path, tmp_path: Path) -> None:
    """Training and evaluation run from another folder, on what the wheel has."""
    data = digits(tmp_path / "digits", 48, 20)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(script: str, *arguments: str) -> str:
        shutil.copy(EXAMPLES / script, elsewhere)
        command = [sys.executable, script, *arguments]
        result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = [sys.executable, "-c", "import hf_pvt; print(hf_pvt.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(installed / "hf_pvt" / "__init__.py")
    run("run_image_classification.py", *few_steps(data, too_small(tmp_path), tmp_path / "out", max_steps=3))
    trained = json.loads((tmp_path / "out" / "results.json").read_text())
    assert trained["steps"] == 3 and "# out" in (tmp_path / "out" / "model" / "README.md").read_text()
    model, validation = str(tmp_path / "out" / "model"), str(data / "validation")
    run("evaluate_model.py", model, "--validation_dir", validation, "--output_dir", str(tmp_path / "measured"))
    measured = json.loads((tmp_path / "measured" / "results.json").read_text())
    assert measured["metrics"]["top1_accuracy"] == trained["metrics"]["top1_accuracy"]
