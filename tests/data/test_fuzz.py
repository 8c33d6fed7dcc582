"""Readers and the pickle loader under a coverage-guided fuzzer: nothing but samples and one-sentence errors comes out.

Atheris instruments the code as it is imported, and ends the process when it finds something, so it runs in its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FUZZ = """
import sys, tempfile
from pathlib import Path
import atheris

with atheris.instrument_imports(include=["vpp_plugins.data", "vpp_plugins.boxes"]):
    from vpp_plugins.data.formats import FORMATS, read_samples
    from vpp_plugins.data.formats.plain_pickle import load_plain_pickle
    from vpp_plugins.errors import VPPError
    from PIL import Image

folder = Path(tempfile.mkdtemp())
Image.new("RGB", (20, 10)).save(folder / "a.png")
names = [name for name in FORMATS if name not in ("scenes", "lmms-parquet", "refer", "datasets")]
path = folder / "x"

def one(data):
    choice, data = data[:1] or b"0", data[1:]
    path.write_bytes(data)
    try:
        if choice[0] % 8 == 0:
            load_plain_pickle(path)
        else:
            for sample in read_samples(path, names[(choice[0] - ord("0")) % len(names)], images=folder):
                assert all(len(box) == 4 for turn in sample.turns for box in turn.boxes)
    except VPPError as error:
        assert "\\n" not in str(error)

atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""

SEEDS = (
    b'1[{"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhere?"}, '
    b'{"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"}]}]',
    b'3{"data": [{"id": 1, "image": "a.png", "conversation": [{"from": "human", "value": "?"}, '
    b'{"from": "gpt", "value": "I have provided the box of it. <it:[1, 2, 3, 4]>"}]}]}',
    b'6{"img_path": "a.png", "expression": "x", "bbox": [1, 2, 3, 4], "width": 20, "height": 10}',
    b"8\x80\x02]q\x00}q\x01(X\x04\x00\x00\x00sentq\x02X\x01\x00\x00\x00aua.",
)


def test_nothing_is_found(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    (tmp_path / "fuzz.py").write_text(FUZZ)
    finished = subprocess.run(
        [sys.executable, "fuzz.py", "-max_total_time=45", "-max_len=400", "-rss_limit_mb=2000", "corpus"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "Done" in finished.stderr
