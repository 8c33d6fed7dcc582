"""A study: arms that differ in what they say, seeds, and what each run is asked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vpp_plugins.config import fits
from vpp_plugins.errors import VPPError, few, nearest
from vpp_plugins.evaluate import protocol
from vpp_plugins.train.recipe import NEED_PROMPTS, NO_PROMPTS, Recipe, flat_names, read_toml

OWN = ("output_dir", "seed", "snapshots", "resume_from_checkpoint")
"""Keys of a recipe that the study gives."""
PROMPTS = ("vpp", "global_vpp", "local_vpp")
"""Keys in which arms may always differ."""


@dataclass(frozen=True, kw_only=True)
class StudySet:
    """What is asked, with the options of `vpp eval run` by their names."""

    data: str
    format: str | None = None
    images: str | None = None
    split: str | None = None
    protocol: str = "default"
    box_format: str | None = None
    batch_size: int = 8
    limit: int | None = None
    dtype: str = "auto"
    curve: bool = True
    """Whether it is asked at every budget, or at the end alone."""
    shuffled: bool = True
    """Whether it is asked once more at the end with its expressions shuffled, the control."""

    def options(self, *, shuffled: bool = False) -> list[str]:
        """Return the options for the command line; those that are as they would be without are left out."""
        usual = {f.name: f.default for f in fields(self)} | {"data": None}
        given = {name: value for name, value in vars(self).items() if name not in ("curve", "shuffled")}
        words = [
            word
            for name, value in given.items()
            if value != usual[name]
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        return [*words, "--shuffled"] if shuffled else words


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms x seeds over one recipe. Paths are taken from the working directory, as a recipe's are."""

    recipe: str
    """The TOML file of which every arm is a variation."""
    output_dir: str
    arms: Mapping[str, Mapping[str, Any]]
    """Settings of each arm by its name, as `vpp train --set` takes them."""
    seeds: tuple[int, ...]
    sets: Mapping[str, StudySet]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all arms."""
    budgets: tuple[int, ...] = ()
    """Steps after which every run is evaluated, beside its end: the points of the learning curves."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of arms, of which the second is compared with the first."""
    varies: tuple[str, ...] = ()
    """Keys beside the prompts' in which arms may differ, since they are what the study compares."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file; raises VPPError for what is no study. Whether its arms are fair says `check_arms`."""
        values = read_toml(Path(path), "study", "studies")
        kinds = {f.name: f.type for f in fields(cls)} | {"sets": Mapping, "contrasts": tuple[tuple[str, ...], ...]}
        for key, value in values.items():
            if key not in kinds:
                raise VPPError(f"a study has no key '{key}'.{nearest(key, kinds)} Known: {', '.join(kinds)}.")
            if not fits(value, kinds[key]):
                raise VPPError(f"the study's key '{key}' is not as `vpp study --help` says: it is {str(value)[:80]}.")
        for key in ("recipe", "output_dir", "arms", "seeds", "sets"):
            if not values.get(key):
                raise VPPError(f"the study '{path}' names no {key}: add it; `vpp study --help` shows an example.")
        values["contrasts"] = _contrasts(values["arms"], values.get("contrasts"))
        values["sets"] = {name: _set(name, one) for name, one in values["sets"].items()}
        values |= {key: tuple(values[key]) for key in ("seeds", "budgets", "varies") if key in values}
        study = cls(**values)
        study.check()
        return study

    def check(self) -> None:
        """Raise VPPError where names or numbers do not fit."""
        _check_names(self)
        for key in dict.fromkeys([*self.settings, *(key for arm in self.arms.values() for key in arm)]):
            if key in OWN:
                raise VPPError(f"the study gives every run its {key}: take it out of the settings and the arms.")
        for arm in self.arms:
            recipe = self.resolved(arm, self.seeds[0])
            _check_losses(arm, self.arms[arm], recipe)
            steps = recipe.trainer.get("max_steps", -1)
            if self.budgets and 0 < steps <= self.budgets[-1]:
                raise VPPError(
                    f"the runs of arm '{arm}' end after {steps} steps, so the budget of {self.budgets[-1]} steps is "
                    "never met: budgets lie before the end, which is always evaluated."
                )

    def check_arms(self) -> None:
        """Raise VPPError where arms differ in more than they should; `table` shows in what."""
        allowed = (*PROMPTS, *self.varies)
        unsaid = [key for key in self.differences() if not any(f"{key}.".startswith(f"{name}.") for name in allowed)]
        if unsaid:
            raise VPPError(
                f"the arms differ in {few(unsaid)}, beside their prompts, so their figures could not be compared: make "
                f"them equal, or say varies = {json.dumps(unsaid)} if that is what the study compares."
            )

    def changes(self, arm: str, seed: int) -> list[str]:
        """Return what makes the base recipe the recipe of a run, as `key=value`."""
        given = [*self.settings.items(), *self.arms[arm].items()]
        own: dict[str, Any] = {"seed": seed, "output_dir": str(self.folder(arm, seed) / "run")}
        if self.budgets:
            own["snapshots"] = list(self.budgets)
        return [f"{key}={_toml(key, value)}" for key, value in [*given, *own.items()]]

    def resolved(self, arm: str, seed: int) -> Recipe:
        """Return the recipe of a run."""
        return Recipe.load(self.recipe, changes=self.changes(arm, seed))

    def folder(self, arm: str, seed: int) -> Path:
        """Return the folder of a run and its evaluations."""
        return Path(self.output_dir) / f"{arm}-{seed}"

    def differences(self) -> dict[str, list[str]]:
        """Return the keys in which the arms' recipes differ, each with its value in every arm."""
        flat = [flat_names(self.resolved(arm, self.seeds[0]).to_dict()) for arm in self.arms]
        keys = sorted({key for one in flat for key in one} - {"output_dir"})
        shown = {key: [json.dumps(one[key], default=str) if key in one else "" for one in flat] for key in keys}
        return {key: row for key, row in shown.items() if len(set(row)) > 1}

    def table(self) -> str:
        """Return what differs between the arms as lines of text, a column each."""
        rows = [["", *self.arms], *([key, *values] for key, values in self.differences().items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return what a folder of results depends on, as JSON values."""
        base = Recipe.load(self.recipe, changes=["output_dir=-"]).to_dict()
        values = {"recipe": base, "settings": self.settings, "budgets": self.budgets, "arms": self.arms}
        sets = {name: vars(one) for name, one in self.sets.items()}
        plain: dict[str, Any] = json.loads(json.dumps({**values, "sets": sets}, default=str))
        return plain


def _set(name: str, values: Any) -> StudySet:
    kinds = {f.name: f.type for f in fields(StudySet)}
    if not isinstance(values, Mapping) or "data" not in values:
        raise VPPError(f"the evaluation set '{name}' names no data: write [sets.{name}] and data = \"...\" below it.")
    for key, value in values.items():
        if key not in kinds:
            raise VPPError(f"an evaluation set has no key '{key}'.{nearest(key, kinds)} Known: {', '.join(kinds)}.")
        if not fits(value, kinds[key]) or (key in ("limit", "batch_size") and value < 1):
            raise VPPError(f"the key '{key}' of the evaluation set '{name}' cannot be {value!r}.")
    return StudySet(**values)


def _contrasts(arms: Mapping[str, Any], pairs: list[list[str]] | None) -> tuple[tuple[str, ...], ...]:
    """Return the pairs of arms; without any, each arm is compared with the first."""
    for name, arm in arms.items():
        if not isinstance(arm, Mapping):
            raise VPPError(f"the arm '{name}' should be a table of settings, but is {arm!r}: write [arms.{name}].")
    first, *others = arms
    pairs = [[first, other] for other in others] if pairs is None else pairs
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise VPPError(f"a contrast is a pair of arms, but one is {pair}.")
        if unknown := [name for name in pair if name not in arms]:
            raise VPPError(
                f"a contrast names the arm '{unknown[0]}', which is none.{nearest(unknown[0], arms)} The arms: "
                f"{', '.join(arms)}."
            )
    return tuple(map(tuple, pairs))


def _check_names(study: Study) -> None:
    for name in (*study.arms, *study.sets):
        if not re.fullmatch(r"\w+(-\w+)*", name):
            raise VPPError(f"'{name}' becomes the name of a folder: write it with letters, digits, _ and single -.")
    if len(study.arms) < 2:
        raise VPPError("a study compares arms, but there is one only: add another [arms.NAME].")
    if len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise VPPError(f"seeds are different numbers, 0 or more, but are {list(study.seeds)}.")
    if list(study.budgets) != sorted({step for step in study.budgets if step > 0}):
        raise VPPError(f"budgets are numbers of steps that rise, but are {list(study.budgets)}.")
    for one in study.sets.values():
        if protocol(one.protocol).task != "box":
            raise VPPError(f"the protocol '{one.protocol}' asks for words or sets: a study compares single boxes.")


def _check_losses(arm: str, settings: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise VPPError for losses that nobody knows, and where an arm asks for queries and has no local prompt."""
    from vpp_plugins.train.losses import check_losses  # after the recipe, which names the extra that all of it needs

    check_losses(recipe.loss_weights())
    if recipe.vpp != NO_PROMPTS and recipe.local_vpp is not False:
        return
    asks = [f"the loss '{name}'" for name in NEED_PROMPTS if name in recipe.loss_weights()]
    asks += [key for key in settings if key.partition(".")[0] == "local_vpp" and settings[key] is not False]
    if asks:
        raise VPPError(
            f"the arm '{arm}' has no local prompt, but asks for its queries ({few(asks)}): take that out, or give it "
            "one."
        )


def _toml(key: str, value: Any) -> str:
    """Return a value as TOML writes it in a line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(name)} = {_toml(key, one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(key, one) for one in value)}]"
    if not isinstance(value, str | bool | int | float):
        raise VPPError(f"a study cannot set {key} to {value}: write it into the recipe.")
    return json.dumps(value, ensure_ascii=False)
