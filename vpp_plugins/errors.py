"""The one error type that this library raises for a mistake its user can mend."""

import difflib
import functools
import json
import re
import shlex
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


class VPPError(ValueError):
    """Says what was expected, what came, and what to do."""

    def __str__(self) -> str:
        """Return one line of plain characters: line ends, controls and half characters of what came are escaped."""
        said = super().__str__()
        if said.isprintable():
            return said
        return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in said)


class MissingExtraError(VPPError, ImportError):
    """A package is missing which one of this library's extras installs."""


class UntrainedVPPWarning(UserWarning):
    """The attached prompts hold no trained weights yet, so answers are not better for them."""


class HalfPrecisionVPPWarning(UserWarning):
    """The attached prompts are trained in bfloat16 or float16, in which most of their steps are rounded away."""


EXTRAS = {
    "demo": (
        "filelock huggingface_hub jinja2 rich safetensors sentencepiece timm tokenizers torchvision transformers typer"
    ),
    "train": "accelerate datasets gguf ijson peft psutil pyarrow scipy tensorboard trl",
    "captions": "pycocoevalcap",
    "all": "xformers",
    "app": "gradio",
}
"""The packages of each extra, by the names under which they are imported; of several extras, the first."""


@contextmanager
def named_extras(extra: str = "") -> Iterator[None]:
    """Raise MissingExtraError where the block, or the function that this decorates, imports what an extra installs.

    Named is the first extra that has the package, unless `extra` says which one all of this needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        having = [one for one, packages in EXTRAS.items() if name in packages.split()]
        if not having:
            raise
        extra = extra or having[0]
        raise MissingExtraError(
            f"this needs {name}, which the extra '{extra}' installs: {install_command(extra)}."
        ) from None


def install_command(extra: str) -> str:
    """Return the shell's command that adds an extra from where this library came: a clone, a wheel or an index."""
    from importlib.metadata import distributions

    told = [found.read_text("direct_url.json") for found in islice(distributions(name="vpp-plugins"), 1)]
    clone: dict[str, Any] = {"url": Path(__file__).parents[1].as_uri(), "dir_info": {"editable": True}}
    origin: dict[str, Any] = json.loads(told[0] or "{}") if told else clone
    url, repository = origin.get("url", ""), origin.get("vcs_info")
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e {shlex.quote(f'{url2pathname(urlsplit(url).path)}[{extra}]')}"
    source = f"{repository['vcs']}+{url}@{repository['commit_id']}" if repository else url
    return f"pip install {shlex.quote(f'vpp-plugins[{extra}]' + (f' @ {source}' if source else ''))}"


TESTED = {"peft": "0.21", "torch": "2.15", "transformers": "5.24", "trl": "1.16"}
"""The newest releases with which the quick tests were run."""


@functools.cache
def warn_untested(stacklevel: int) -> None:
    """Warn, once in a process, of libraries here that are newer than what was tested."""
    from importlib.metadata import distributions  # only where something is attached: `vpp --help` need not wait for it

    here = {name: found.version for name in TESTED for found in islice(distributions(name=name), 1)}
    newer = [name for name, found in here.items() if _release(found) > _release(TESTED[name])]
    if newer:
        listed = " and ".join(f"{name} {here[name]} is newer than {TESTED[name]}" for name in newer)
        warnings.warn(
            f"{listed}, up to which this version of vpp-plugins is tested: where something breaks, install that one.",
            stacklevel=stacklevel,
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def nearest(name: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the option most like `name`, or "" when none is close."""
    match = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def known_name(name: str, options: Collection[str], what: str) -> str:
    """Return the name, or raise VPPError that names the nearest and all where it is none of the options."""
    if name not in options:
        raise VPPError(f"no {what} is called '{name}'.{nearest(name, options)} Known: {', '.join(options)}.")
    return name


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names for a sentence, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
