"""The parts of a study: its runs, what each is asked, where all of that lies, and whether it is done."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpp_plugins.errors import VPPError, few
from vpp_plugins.train.study.study import Study, StudySet

FINAL = "final"


@dataclass(frozen=True)
class Task:
    """One command of a run, which is skipped when it is done."""

    what: str
    words: list[str]
    """Arguments of `vpp`."""
    folder: Path
    settings: dict[str, Any]
    """What the folder's `run.json` must say, else it is another's."""
    result: str
    """What is in the folder when it is done."""
    inside: str = ""
    """Where in `run.json` the settings stand."""

    def done(self) -> bool:
        """Whether this was done; raises VPPError where the folder holds something else."""
        path = self.folder / "run.json"
        if not path.is_file():
            return False
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            known = known[self.inside] if self.inside else known
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise VPPError(f"'{path}' is damaged ({error!r}): delete its folder, and it is made anew.") from None
        names = known.keys() | self.settings.keys() if self.inside else self.settings.keys()
        other = sorted(
            name
            for name in names - {"output_dir", "resume_from_checkpoint"}
            if known.get(name) != self.settings.get(name)
        )
        if other:
            raise VPPError(
                f"'{self.folder}' was made with other settings than the study has now ({other[0]}: "
                f"{known.get(other[0])!r}, now {self.settings.get(other[0])!r}): give the study another output_dir, or "
                "delete that folder."
            )
        return (self.folder / self.result).exists()


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One arm with one seed."""

    study: Study
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where its training and its evaluations lie."""
        return self.study.folder(self.arm, self.seed)

    def places(self, name: str) -> list[str]:
        """Return the names of the weights that a set is asked of, the last of them `final`."""
        budgets = self.study.budgets if self.study.sets[name].curve else ()
        return [*(f"step-{step}" for step in budgets), FINAL]

    def weights(self, place: str) -> Path:
        """Return the folder of the weights of a place."""
        return self.folder / "run" / place

    def evaluation(self, place: str, name: str, *, shuffled: bool = False) -> Path:
        """Return the folder of an evaluation."""
        return self.folder / "eval" / place / (f"{name}-shuffled" if shuffled else name)

    def data_sha256(self) -> str:
        """Return the digest of the data that it was trained on; raises VPPError where its `run.json` is damaged."""
        path = self.folder / "run" / "run.json"
        try:
            return str(json.loads(path.read_bytes())["data_sha256"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise VPPError(f"'{path}' is damaged ({error!r}): delete its folder, and it is made anew.") from None

    def training(self) -> Task:
        """Return the training."""
        recipe = self.study.resolved(self.arm, self.seed)
        settings = json.loads(json.dumps(recipe.to_dict(), default=str))
        changes = [word for change in self.study.changes(self.arm, self.seed) for word in ("--set", change)]
        words = ["train", self.study.recipe, *changes, "--resume", "auto"]
        return Task("training", words, self.folder / "run", settings, FINAL, "recipe")

    def evaluations(self) -> Iterator[Task]:
        """Yield the evaluations, set by set, early weights first."""
        for name, asked in self.study.sets.items():
            for place in self.places(name):
                yield self._evaluation(place, name, asked, shuffled=False)
            if asked.shuffled:
                yield self._evaluation(FINAL, name, asked, shuffled=True)

    def tasks(self) -> list[Task]:
        """Return all that is to be done, in order."""
        return [self.training(), *self.evaluations()]

    def _evaluation(self, place: str, name: str, asked: StudySet, *, shuffled: bool) -> Task:
        recipe, weights = self.study.resolved(self.arm, self.seed), str(self.weights(place))
        alone = recipe.trains_prompts_alone  # then the host is not saved
        model = ["--model", recipe.model, "--vpp", weights] if alone else ["--model", weights]
        out = self.evaluation(place, name, shuffled=shuffled)
        words = ["eval", "run", *model, *asked.options(shuffled=shuffled), "--out", str(out)]
        settings = {
            "model": f"{recipe.model} with {weights}" if alone else weights,
            "data": asked.data,
            "split": asked.split,
            "protocol": asked.protocol,
            "batch_size": asked.batch_size,
            "control": "shuffled" if shuffled else None,
        }
        what = f"{name}{', shuffled,' if shuffled else ''} at {place}"
        return Task(what, words, out, settings, "results.json")


def runs(study: Study) -> list[StudyRun]:
    """Return all runs, one seed after the other, so that what is there first can be compared."""
    return [StudyRun(study, arm, seed) for seed in study.seeds for arm in study.arms]


def check_equal_data(study: Study) -> None:
    """Raise VPPError where runs of one seed were trained on different data; scenes are drawn anew for each seed."""
    found: dict[tuple[int, str], str] = {}
    for run in runs(study):
        if (run.folder / "run" / "run.json").is_file():
            found.setdefault((run.seed, run.data_sha256()), run.name)
    for seed in study.seeds:
        names = [name for (its, _), name in found.items() if its == seed]
        if len(names) > 1:
            raise VPPError(
                f"the runs {few(names)} were trained on different data, so they cannot be compared: delete the folders "
                "of those that had the wrong ones, and run the study again."
            )


def plan(study: Study) -> str:
    """Return a line for each run that is not done, its commands one after the other, and how to hand them on."""
    study.check_arms()
    lines = []
    for run in runs(study):
        left = [task for task in run.tasks() if not task.done()]
        if left:
            lines.append(" && ".join(shlex.join(["vpp", *task.words]) for task in left))
    return "\n".join([*lines, *_EXAMPLE.format(count=len(lines)).splitlines()]) + "\n"


_EXAMPLE = """\
# {count} runs, a line each: they need nothing of one another, and any of them can be killed and begun again.
# All on this machine: vpp study STUDY.toml --jobs 2. As an array job of Slurm:
#   vpp study plan STUDY.toml > jobs.txt
#   sbatch --array=1-{count} --gpus=1 --wrap 'bash -c "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" jobs.txt)"'
# When some or all are done: vpp study report STUDY.toml"""


def python_words(task: Task) -> list[str]:
    """Return the command with this Python."""
    return [sys.executable, "-m", "vpp_plugins.cli", *task.words]
