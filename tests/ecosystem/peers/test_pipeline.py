"""transformers' own `pipeline("image-text-to-text")` around an attached host and its VPPProcessor."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = """
from transformers import pipeline
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.ground import Grounder
from vpp_plugins.pocket import load_pocket

model, processor = load_pocket()
photo = load_real_photos()[0]
expression = photo.expressions[0].text
grounder = Grounder(model, processor)
asked = grounder.codec.prompt(expression)
chat = [{"role": "user", "content": [{"type": "image", "image": photo.image}, {"type": "text", "text": asked}]}]
ask = pipeline("image-text-to-text", model=model, processor=processor)
(answer,) = ask(text=chat, max_new_tokens=24, do_sample=False, return_full_text=False)
(expected, _), = grounder.ask([photo.image], [asked], max_new_tokens=24)
assert answer["generated_text"].split() == expected.split(), (answer, expected)
"""


def test_it_answers_as_the_grounder_does() -> None:
    finished = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr[-4000:]
