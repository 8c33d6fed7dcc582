import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "bare_pytorch.py"
HOST_LIBRARIES = ["transformers", "tokenizers", "timm", "torchvision", "peft", "xformers", "accelerate", "datasets"]


def test_both_prompts_train_on_a_plain_module_where_no_host_library_can_be_imported() -> None:
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HOST_LIBRARIES}))  # None in sys.modules: importing it raises ImportError
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""

    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")
    losses = [float(loss) for loss in re.findall(r"^step +\d+  loss (\S+)$", finished.stdout, re.MULTILINE)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 3
    moved = re.search(r"the axes moved by (\S+) in their band, and by (\S+) elsewhere", finished.stdout)
    assert moved is not None
    assert float(moved[1]) > 0.01
    assert float(moved[2]) == 0
