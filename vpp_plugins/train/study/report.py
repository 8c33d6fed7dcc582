"""The report of a study: tables over seeds, paired differences, curves, and the images where arms differ most."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate import answer_card, load_evaluation, rows_at_hand
from vpp_plugins.files import write_whole
from vpp_plugins.report import curve, write_page
from vpp_plugins.train.study.hits import Hits, collect
from vpp_plugins.train.study.runs import FINAL, StudyRun, check_equal_data, runs
from vpp_plugins.train.study.statistics import (
    Difference,
    Estimate,
    curve_at,
    holm,
    mean_of_curve,
    over_seeds,
    paired_difference,
)
from vpp_plugins.train.study.study import Study

REPORT, PAGE = "report.md", "report.html"
SHOWN = 8
"""Images of a contrast."""
Cell: TypeAlias = str | tuple[str, str]
Measure: TypeAlias = Callable[[Hits], Float[np.ndarray, "rows"]]
Arms: TypeAlias = Mapping[str, Mapping[int, Hits]]
"""Finished runs by arm and seed."""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and a table, curves or images below it."""

    title: str
    text: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    cards: Sequence[Mapping[str, Any]] = ()
    level: int = field(default=3)


def write_study_report(study: Study) -> tuple[Path, Path]:
    """Write what is finished as `report.md` and `report.html` in the study's folder, and return both.

    What every run found is kept beside them, in `hits/`, and is enough to write the report again. Runs that are not
    finished are listed and left out. Raises VPPError where runs cannot be compared: other data, rows, or steps.
    """
    study.check_arms()
    check_equal_data(study)
    every = {run: {name: collect(run, name) for name in study.sets} for run in runs(study)}
    sections = [_overview(study, every)]
    for name in study.sets:
        arms = _arms(study, [hits for run, found in every.items() if (hits := found[name]) and _is_whole(run, hits)])
        sections += [Section(name, level=2), *_sections(study, name, arms)] if arms else []
    folder = Path(study.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Study {folder.name}: {', '.join(study.arms)}"
    write_whole(folder / REPORT, _markdown(title, sections))
    return folder / REPORT, write_page(folder / PAGE, "study", title=title, sections=sections)


def _overview(study: Study, every: Mapping[StudyRun, Mapping[str, Hits | None]]) -> Section:
    missing = [
        f"{run.name}: {name} ({0 if hits is None else len(hits.checkpoints)} of {len(run.places(name))} points)"
        for run, found in every.items()
        for name, hits in found.items()
        if hits is None or not _is_whole(run, hits)
    ]
    left_out = {line.partition(":")[0] for line in missing}
    told = f"{len(every) - len(left_out)} of {len(every)} runs are finished."
    if missing:
        told += f" Not finished, and left out where they are missing: {'; '.join(missing)}."
    text = f"Base recipe {study.recipe}, seeds {', '.join(map(str, study.seeds))}. {told} The arms differ in:"
    rows = [[key, *values] for key, values in study.differences().items()]
    return Section("What was compared", text, ["", *study.arms], rows, level=2)


def _is_whole(run: StudyRun, hits: Hits) -> bool:
    asked_all = [one.place for one in hits.checkpoints] == run.places(hits.name)
    return asked_all and (hits.shuffled is not None or not run.study.sets[hits.name].shuffled)


def _arms(study: Study, whole: Sequence[Hits]) -> Arms:
    """Sort the finished runs of one set; raises VPPError where they are not of the same rows, steps and data."""
    for hits in whole:
        first = whole[0]
        same_seed = next(one for one in whole if one.seed == hits.seed)
        steps, expected = ([one.step for one in each.checkpoints] for each in (hits, first))
        for what, left, right in (
            ("asked other rows", hits.about["rows_sha256"], first.about["rows_sha256"]),
            ("stopped at other steps", steps, expected),
            ("saw another number of samples", hits.samples, first.samples),
            ("were trained on other data", hits.about["data_sha256"], same_seed.about["data_sha256"]),
        ):
            if left != right:
                raise VPPError(
                    f"the runs {first.arm}-{first.seed} and {hits.arm}-{hits.seed} {what} ({hits.name}), so they "
                    "cannot be compared: delete the folder of the wrong one and its files in hits/, and run the study "
                    "again."
                )
    arms = {arm: {hits.seed: hits for hits in whole if hits.arm == arm} for arm in study.arms}
    return {arm: by_seed for arm, by_seed in arms.items() if by_seed}


def _sections(study: Study, name: str, arms: Arms) -> list[Section]:
    measures = _measures(arms)
    some = next(iter(next(iter(arms.values())).values()))
    images = len(set(some.images.tolist()))
    text = (
        f"{len(some.ids)} expressions about {images} images; in %, means over seeds with 95 % t-intervals, "
        "which of two seeds are wide, and may pass 0 or 100. Shuffled: "
        "each image was asked about another's expressions. A random object: one of an image's objects, boxed perfectly."
    )
    return [
        Section("Accuracy", f"{text} {_compute_text(arms, measures)}", *_accuracies(arms, measures)),
        *_contrasts(study, arms, measures),
        *_curves(arms),
        *_groups(arms, some),
        *_apart(study, name, arms),
    ]


def _every(arms: Arms) -> list[Hits]:
    return [hits for by_seed in arms.values() for hits in by_seed.values()]


def _measures(arms: Arms) -> dict[str, Measure]:
    """Return what runs are compared by: the end, the same compute, and the whole of the curves."""
    measures: dict[str, Measure] = {
        "Acc@0.5, equal steps": lambda hits: hits.correct(0.5)[-1],
        "Acc@0.75, equal steps": lambda hits: hits.correct(0.75)[-1],
        "mean IoU, equal steps": lambda hits: hits.iou[-1],
    }
    begun, shared = _compared_minutes(arms)
    if begun <= shared:
        measures["Acc@0.5, equal compute"] = lambda hits: curve_at(shared, hits.minutes, hits.correct(0.5))
        measures["Acc@0.75, equal compute"] = lambda hits: curve_at(shared, hits.minutes, hits.correct(0.75))
    samples = _every(arms)[0].samples
    if len(samples) > 1:
        measures["area, samples"] = lambda hits: mean_of_curve(samples[0], samples[-1], hits.samples, hits.correct(0.5))
    if begun < shared:
        measures["area, compute"] = lambda hits: mean_of_curve(begun, shared, hits.minutes, hits.correct(0.5))
    return measures


def _compared_minutes(arms: Arms) -> tuple[float, float]:
    """Return the minutes from which every run has a point, and those to which; the second may be the smaller."""
    every = _every(arms)
    return max(hits.minutes[0] for hits in every), min(hits.minutes[-1] for hits in every)


def _compute_text(arms: Arms, measures: Collection[str]) -> str:
    run, (begun, shared) = _every(arms)[0], _compared_minutes(arms)
    spent = ", ".join(
        f"{arm} {fmean(hits.minutes[-1] for hits in by_seed.values()):.3g}" for arm, by_seed in arms.items()
    )
    steps = f"Equal steps: {run.checkpoints[-1].step} steps, {run.samples[-1]:g} samples (minutes: {spent})."
    compute = (
        f"Equal compute: {shared:.3g} minutes, what the cheapest run took, on straight lines between a run's points."
        if "Acc@0.5, equal compute" in measures
        else "Runs of other costs were asked too few times to be compared at equal compute."
    )
    ranges = {"area, samples": "samples", "area, compute": f"{begun:.3g} to {shared:.3g} minutes"}
    over = [what for name, what in ranges.items() if name in measures]
    areas = f" Areas are means of Acc@0.5 along the curves, over {' and over '.join(over)}." if over else ""
    return f"{steps} {compute}{areas}"


def _accuracies(arms: Arms, measures: Mapping[str, Measure]) -> tuple[list[str], list[list[Cell]]]:
    rows = []
    for arm, by_seed in arms.items():
        found = list(by_seed.values())
        means = [_cell(over_seeds([float(measure(hits).mean()) for hits in found])) for measure in measures.values()]
        mixed = [float(hits.correct(0.5, hits.shuffled).mean()) for hits in found if hits.shuffled is not None]
        chance = fmean(float(hits.random.mean()) for hits in found)
        controls: list[Cell] = [_cell(over_seeds(mixed)) if mixed else "", f"{100 * chance:.1f}"]
        rows.append([arm, str(len(found)), *means, *controls])
    return ["", "seeds", *measures, "shuffled, Acc@0.5", "random object"], rows


def _contrasts(study: Study, arms: Arms, measures: Mapping[str, Measure]) -> list[Section]:
    pairs = [(a, b) for a, b in study.contrasts if a in arms and b in arms and arms[a].keys() & arms[b].keys()]
    if not pairs:
        return []
    rows: list[list[Cell]] = []
    for name, measure in measures.items():
        found = [_difference(arms[a], arms[b], measure) for a, b in pairs]
        adjusted = holm([paired.p_value for paired, _ in found])
        for (a, b), (paired, seeds), p_value in zip(pairs, found, adjusted, strict=True):
            p_values = [f"{p:.2g}" for p in (paired.p_value, p_value)]
            rows.append([f"{b} - {a}", name, _cell(paired, signed=True), _cell(seeds, signed=True), *p_values])
    text = (
        "In points, with 95 % intervals: over expressions, paired, images drawn again within each seed (bootstrap); "
        "and over seeds (t). p is the bootstrap's, and corrected for the number of contrasts (Holm)."
    )
    head = ["", "", "difference over expressions", "over seeds", "p", "p, Holm"]
    return [Section("Differences", text, head, sorted(rows, key=lambda row: str(row[0])))]


def _difference(a: Mapping[int, Hits], b: Mapping[int, Hits], measure: Measure) -> tuple[Difference, Estimate]:
    seeds = sorted(a.keys() & b.keys())
    differences = [measure(b[seed]) - measure(a[seed]) for seed in seeds]
    paired = paired_difference(differences, [a[seed].images for seed in seeds])
    return paired, over_seeds([float(one.mean()) for one in differences])


def _curves(arms: Arms) -> list[Section]:
    """Return the learning curves, each arm's mean over its seeds, drawn and as a table."""
    some = _every(arms)[0]
    if len(some.checkpoints) < 2:
        return []
    found = {arm: list(by_seed.values()) for arm, by_seed in arms.items()}
    up = {
        arm: np.mean([100 * one.correct(0.5).mean(1) for one in hits], axis=0).tolist() for arm, hits in found.items()
    }
    minutes = {arm: np.mean([one.minutes for one in hits], axis=0).tolist() for arm, hits in found.items()}
    drawn = [
        curve({arm: list(zip(across[arm], up[arm], strict=True)) for arm in arms}, x=title, y="Acc@0.5, %")
        for title, across in (("samples seen", dict.fromkeys(arms, some.samples)), ("minutes", minutes))
    ]
    rows: list[list[Cell]] = [
        [str(point.step), str(point.samples), *((f"{up[arm][at]:.1f}", f"{minutes[arm][at]:.3g} min") for arm in arms)]
        for at, point in enumerate(some.checkpoints)
    ]
    text = "Acc@0.5 in %, means over seeds, and the minutes that it took."
    return [Section("Learning curves", text, ["step", "samples", *arms], rows, drawn)]


def _groups(arms: Arms, some: Hits) -> list[Section]:
    """Return Acc@0.5 by kind of expression, and by thirds of the objects' sizes."""
    kinds = {kind: np.array([one == kind for one in some.kinds]) for kind in sorted(set(some.kinds) - {""})}
    low, high = np.quantile(some.areas, [1 / 3, 2 / 3])
    sizes = {
        f"smallest third, up to {100 * low:.2g} % of the image": some.areas <= low,
        "middle third": (some.areas > low) & (some.areas <= high),
        f"largest third, above {100 * high:.2g} %": some.areas > high,
    }
    sections = []
    for title, groups in (("By kind of expression", kinds), ("By size of the object", sizes)):
        rows = [
            [name, str(int(member.sum())), *(_of_group(by_seed, member) for by_seed in arms.values())]
            for name, member in groups.items()
            if member.any()
        ]
        if len(rows) > 1:
            sections.append(Section(title, "Acc@0.5 at the end, in %.", ["", "rows", *arms], rows))
    return sections


def _of_group(by_seed: Mapping[int, Hits], member: Any) -> Cell:
    return _cell(over_seeds([float(hits.correct(0.5)[-1][member].mean()) for hits in by_seed.values()]))


def _apart(study: Study, name: str, arms: Arms) -> list[Section]:
    """Return the images where the arms of each contrast differ most, so far as their evaluations are at hand."""
    sections = []
    for a, b in study.contrasts:
        seeds = sorted(arms.get(a, {}).keys() & arms.get(b, {}).keys())
        pair = [StudyRun(study, arm, seeds[0]).evaluation(FINAL, name) for arm in (a, b)] if seeds else []
        if not pair or not all((folder / "results.json").is_file() for folder in pair):
            continue
        gap = np.mean([arms[b][seed].iou[-1] - arms[a][seed].iou[-1] for seed in seeds], axis=0)
        widest = [place for place in np.argsort(-np.abs(gap), kind="stable")[:SHOWN].tolist() if gap[place]]
        sides = [load_evaluation(folder) for folder in pair]
        images = {row.id: row for row in rows_at_hand(sides[0].settings) or ()}
        cards = [answer_card(images, *(side.judged[place] for side in sides)) for place in widest]
        text = f"Green is true, blue is {a}, orange is {b}, both with seed {seeds[0]}; the gap is that of all seeds."
        sections += [Section(f"Where {b} and {a} differ most", text, cards=cards)] if cards else []
    return sections


def _cell(estimate: Estimate, *, signed: bool = False) -> Cell:
    mean, *interval = (
        f"{100 * value:{'+' if signed else ''}.1f}"
        for value in (estimate.mean, estimate.low, estimate.high)
        if value is not None
    )
    return (mean, " to ".join(interval)) if interval else mean


def _markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        if section.head:
            lines += [_line(section.head), _line(["---"] * len(section.head)), *map(_line, section.rows), ""]
        lines += [f"- {card['caption']}: {'; '.join(card['lines'])}" for card in section.cards]
        lines += [""] if section.cards else []
    return "\n".join(lines)


def _line(cells: Sequence[Cell]) -> str:
    texts = [cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" for cell in cells]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
