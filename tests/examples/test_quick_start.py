"""The quick start, as a reader would run it."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/quick_start.py"


def test_the_quick_start_grounds_saves_attaches_and_detaches(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    assert "'vpp_pixel_values': (1, 3, 416, 416)" in run.stdout
    assert "ok [0.04, 0.28, 0.22, 0.67]\n" in run.stdout
    assert "\n['[0.04, 0.28, 0.22, 0.67]']\n" in run.stdout  # saved and put on again, the prompts answer alike
    assert run.stdout.rstrip().endswith("attached: False")
    assert (tmp_path / "boxed.png").is_file()
    saved = {path.name for path in (tmp_path / "my_vpp").iterdir()}
    assert saved == {"README.md", "vpp_config.json", "vpp.safetensors"}
