"""The model card beside saved prompts: what they are, how to load them, and how well they do, for who gets them."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vpp_plugins.attach.checkpoint import CONFIG_FILE, named_on_hub
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.files import is_hub_id, unsealed, write_whole

CARD = "README.md"
LIBRARY = "vpp-plugins"
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_INSTALL = f"In a clone of {LIBRARY}, which is on no package index yet, `pip install '.[{{}}]'`, and:"
_LOAD = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from vpp_plugins import Grounder, VPPProcessor, attach_vpp

model = attach_vpp(AutoModelForImageTextToText.from_pretrained("{model}"), "{name}")
processor = VPPProcessor(AutoProcessor.from_pretrained("{processor}"), model)
print(Grounder(model, processor)("photo.jpg", "the dog"))
```"""
_LOAD_WHOLE = """\
```python
from vpp_plugins.evaluate import load_grounder

grounder = load_grounder("{model}"{prompts})
print(grounder("photo.jpg", "the dog"))
```"""


def write_card(
    folder: Path,
    base: str,
    *,
    family: str = "",
    name: str | None = None,
    sections: Mapping[str, str] | None = None,
    evaluations: Sequence[Path] = (),
) -> None:
    """Write README.md for a folder of saved prompts, of a trained host, or of both, unless somebody else's is there.

    `base` is the host's hub id or folder and `family` its `model_type`, and `name` what the folder will be called, its
    own name unless given; no other path gets into the card. `sections` are texts by heading, and `evaluations` folders
    of `vpp eval`, this model's and its controls'.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if not is_our_card(folder / CARD):
        return
    base = base if is_hub_id(base) else ""
    host, has_prompts = f"a {family} model" if family else "a model", (folder / CONFIG_FILE).is_file()
    title = f"{'Visual Position Prompts for' if has_prompts else 'A control without prompts, of'} {base or host}"
    told = {
        "How to load it": _how_to_load(folder, base, host, name or folder.name, prompts=has_prompts),
        **({"The prompts": _prompts(VPPConfig.load(folder / CONFIG_FILE))} if has_prompts else {}),
        **(sections or {}),
        **({"Scores": scores(evaluations)} if evaluations else {}),
        "Licence": "The base model's licence holds for what was trained on it, and the data's for what was learned.",
        "Versions": ", ".join(f"{one} {version(one)}" for one in (LIBRARY, "torch", "transformers"))
        + f", Python {platform.python_version()}.",
    }
    tags = ["grounding", "visual-position-prompts", *(["lora"] if (folder / "adapter_config.json").is_file() else [])]
    data = ModelCardData(
        base_model=base or None, library_name=LIBRARY, tags=tags, pipeline_tag="image-text-to-text", license="other"
    )
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in told.items())
    write_whole(folder / CARD, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body}\n")))


def put_scores(folder: Path, evaluations: Sequence[Path], said: str = "") -> Path:
    """Have a folder's card show these evaluations, and what is said of them, in place of its scores; return the card.

    The rest of the card stays as it is, also where somebody has edited it. Raises VPPError where there is no card, and
    as `scores` does.
    """
    path = folder / CARD
    if not path.is_file():
        raise VPPError(f"'{folder}' has no model card ({CARD}): give a folder that `vpp train` or save_vpp wrote.")
    beginning, *sections = re.split(r"(?m)^## ", path.read_text(encoding="utf-8"))
    kept = [one for one in sections if not one.startswith("Scores\n")]
    place = next((at for at, one in enumerate(kept) if one.startswith("Licence\n")), len(kept))
    kept.insert(place, "\n\n".join(filter(None, ["Scores", scores(evaluations), said])) + "\n\n")
    write_whole(path, "## ".join([beginning, *kept]))
    return path


def is_our_card(path: Path) -> bool:
    """Return whether a card may be written here: there is none yet, or one of ours."""
    return not path.is_file() or f"library_name: {LIBRARY}\n" in path.read_text(encoding="utf-8")


def scores(evaluations: Sequence[Path]) -> str:
    """Return a table of finished evaluations with their 95 % intervals; raises VPPError where a folder holds none."""
    lines = ["| | asked about | answers | Acc@0.5, % | mean IoU, % |", "|---|---|---|---|---|"]
    for folder in evaluations:
        try:
            lines.append(_line(unsealed(json.loads((folder / "results.json").read_bytes()), "results")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise VPPError(
                f"'{folder}' holds no scores of boxes ({error!r}): give a folder of `vpp eval run`."
            ) from None
    return "\n".join(lines) + "\n\nIn brackets 95 % intervals."


def _line(told: dict[str, Any]) -> str:
    figures = [told["figures"][key] for key in ("acc_50", "mean_iou")]
    model = told["model"] if is_hub_id(told["model"]) else " ".join(map(_last, told["model"].split()))
    prompts = told.get("prompts")  # results of 0.1.0 do not say
    off = ", without prompts" if prompts == {} else ", prompts off" if (prompts or {}).get("disabled") else ""
    shuffled = f", {told['control']}" if told.get("control") else ""
    shown = [f"{100 * one['mean']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})" for one in figures]
    return f"| {model}{off}{shuffled} | {_last(told['data'])} | {told['figures']['rows']} | {' | '.join(shown)} |"


def _last(word: str) -> str:
    """Leave out the folders of a path."""
    return word if is_hub_id(word) else Path(word).name


def _how_to_load(folder: Path, base: str, kind: str, name: str, *, prompts: bool) -> str:
    lora, whole = (folder / "adapter_config.json").is_file(), any(folder.glob("model*.safetensors"))
    own_processor = any((folder / file).is_file() for file in _PROCESSOR)
    host = base or "BASE_MODEL"
    said = "" if base or whole else f" BASE_MODEL is the folder or hub id of {kind}, the one that they were trained on."
    said += "" if is_hub_id(name) else f" `{name}` is this folder; give the path to it."
    if lora or whole:
        model = name if base or whole else host  # of a host on the hub PEFT knows by itself
        text = _LOAD_WHOLE.format(model=model, prompts=f', vpp="{name}"' if prompts or model == host else "")
        return f"{_INSTALL.format('train')}{said}\n\n{text}"
    text = _LOAD.format(model=host, processor=name if own_processor else host, name=name)
    return f"{_INSTALL.format('demo')}{said}\n\n{text}"


def _prompts(config: VPPConfig) -> str:
    axes, local = config.global_vpp, config.local_vpp
    said = []
    if axes is not None:
        said.append(f"Global: axes of {axes.style} in units of {axes.unit}, alpha {axes.alpha:g}.")
    if local is not None:
        named = ", ".join(name.partition(":")[0] for name in named_on_hub(config))
        fetched = f", fetched from {named} (frozen)" if named else ""
        said.append(f"Local: {local.num_queries} queries an image of the detector {local.generator}{fetched}.")
    return " ".join(said)
