"""Serve a global prompt without this library: `bake` turns it into a step before the host's image processor.

- `prompt.py`: writing the step, and holding it against the prompt; `readme.py`: the page beside it.
- `apply_axes.py`: the step itself, a script that is copied as it is and needs numpy and Pillow only.
- `score.py`: what it does to a model's answers.
"""

from vpp_plugins.export import Baked, BakedScores, apply_axes, bake, drop_local_prompt, load_axes, score_baked

__all__ = ["Baked", "BakedScores", "apply_axes", "bake", "drop_local_prompt", "load_axes", "score_baked"]
