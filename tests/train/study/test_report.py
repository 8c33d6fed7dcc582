"""The report from hits alone; figures are compared with those of plain sums."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from tests.train.study.test_hits import made
from vpp_plugins import VPPError
from vpp_plugins.train.study import Study, write_study_report
from vpp_plugins.train.study.hits import Hits, hits_file, write_hits
from vpp_plugins.train.study.runs import StudyRun, runs

Load = Callable[..., Study]
LEVELS = {"faint": 0.4, "strong": 0.7}


def written(study: Study, *, leave_out: Callable[[StudyRun], bool] = lambda run: False) -> dict[str, Hits]:
    """Keep hits of every run; a run of the arm "strong" costs twice as much."""
    found = {}
    for run in runs(study):
        if not leave_out(run):
            cost = 2.0 if run.arm == "strong" else 1.0
            found[run.name] = made(run, LEVELS[run.arm], rows=120, minutes=cost)
            write_hits(hits_file(run, "photos"), found[run.name])
    return found


def tables(study: Study) -> dict[str, list[list[str]]]:
    """Cells of the report's tables by heading."""
    markdown, page = write_study_report(study)
    assert page.read_text().startswith("<!doctype html>")
    found: dict[str, list[list[str]]] = {}
    for line in markdown.read_text().splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("| ") and "---" not in line:
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_accuracies_are_means_over_seeds(study: Load) -> None:
    three = study(seeds=[0, 1, 2], budgets=[1])
    hits = written(three)

    head, *rows = tables(three)["Accuracy"]

    for arm, row in zip(("faint", "strong"), rows, strict=True):
        values = [float((hits[f"{arm}-{seed}"].iou[-1] >= 0.5).mean()) for seed in range(3)]
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
        expected = f"{100 * np.mean(values):.1f} ({100 * low:.1f} to {100 * high:.1f})"
        cells = dict(zip(head, row, strict=True))
        assert (cells[""], cells["seeds"], cells["random object"]) == (arm, "3", "25.0")
        assert cells["Acc@0.5, equal steps"] == expected
        mixed = np.mean([(hits[f"{arm}-{seed}"].shuffled >= 0.5).mean() for seed in range(3)])
        assert cells["shuffled, Acc@0.5"].startswith(f"{100 * mixed:.1f} (")


def test_equal_compute_is_where_the_cheapest_run_ends(study: Load) -> None:
    """Runs of the arm "strong" take 2 and 4 minutes, of the other 1 and 2: at 2 the one is at its first point."""
    two = study(budgets=[1])
    hits = written(two)

    head, *rows = tables(two)["Accuracy"]

    place = head.index("Acc@0.5, equal compute")
    faint, strong = (float(row[place].split()[0]) for row in rows)
    assert faint == pytest.approx(100 * np.mean([(hits[f"faint-{s}"].iou[-1] >= 0.5).mean() for s in (0, 1)]), abs=0.05)
    first = 100 * np.mean([(hits[f"strong-{s}"].iou[0] >= 0.5).mean() for s in (0, 1)])
    assert strong == pytest.approx(first, abs=0.05)
    area = head.index("area, samples")
    both = [100 * np.mean([(hits[f"strong-{s}"].iou >= 0.5).mean() for s in (0, 1)])]
    assert float(rows[1][area].split()[0]) == pytest.approx(both[0], abs=0.05)


def test_runs_asked_at_the_end_alone_are_not_compared_at_equal_compute(study: Load) -> None:
    two = study()
    written(two)

    head, *_ = tables(two)["Accuracy"]

    assert "Acc@0.5, equal steps" in head
    assert not [name for name in head if "compute" in name or "area" in name]
    assert "asked too few times to be compared at equal compute" in write_study_report(two)[0].read_text()


def test_only_the_areas_in_the_table_are_explained(study: Load) -> None:
    """Of one run that is asked once, the report spoke of areas over 2 to 2 minutes, which it did not show."""
    alone = study()
    written(alone, leave_out=lambda run: run.name != "faint-0")
    assert "Areas" not in write_study_report(alone)[0].read_text()

    three = study(budgets=[1], seeds=[0, 1, 2], output_dir="three")
    hits = written(three)
    dear = hits["strong-2"]
    late = tuple(replace(one, minutes=10 * one.minutes) for one in dear.checkpoints)
    write_hits(hits_file(runs(three)[-1], "photos"), replace(dear, checkpoints=late))
    text = write_study_report(three)[0].read_text()

    assert "area, samples" in text
    assert "asked too few times" in text
    assert "Areas are means of Acc@0.5 along the curves, over samples.\n" in text


def test_differences_are_paired_and_corrected(study: Load) -> None:
    arms = {"faint": {}, "strong": {"global_vpp.alpha": 0.5}}
    two = study(budgets=[1], arms=arms, contrasts=[["faint", "strong"], ["strong", "faint"]])
    hits = written(two)

    head, *rows = tables(two)["Differences"]

    assert head[2:] == ["difference over expressions", "over seeds", "p", "p, Holm"]
    found = {(row[0], row[1]): row for row in rows}
    there, back = (found[name, "Acc@0.5, equal steps"] for name in ("strong - faint", "faint - strong"))
    gaps = [(hits[f"strong-{s}"].iou[-1] >= 0.5) * 1.0 - (hits[f"faint-{s}"].iou[-1] >= 0.5) for s in (0, 1)]
    assert there[2].startswith(f"{100 * np.mean(gaps):+.1f} (")
    low, high = map(float, re.findall(r"[+-][\d.]+", there[2])[1:])
    error = 196 * np.sqrt(sum(gap.reshape(-1, 3).mean(1).var() / 40 for gap in gaps)) / 2
    assert (high - low) / 2 == pytest.approx(error, rel=0.12)
    assert float(back[2].split()[0]) == -float(there[2].split()[0])
    assert float(there[5]) == pytest.approx(2 * float(there[4]), rel=0.2)


def test_groups_are_by_kind_and_by_thirds_of_size(study: Load) -> None:
    two = study()
    hits = written(two)

    found = tables(two)

    assert [row[:2] for row in found["By kind of expression"][1:]] == [["name", "60"], ["size", "60"]]
    sizes = found["By size of the object"][1:]
    assert [row[1] for row in sizes] == ["40", "40", "40"]
    last = np.mean([(hits[f"strong-{s}"].iou[-1][80:] >= 0.5).mean() for s in (0, 1)])
    assert sizes[2][3].startswith(f"{100 * last:.1f} (")


def test_the_curves_go_through_all_points(study: Load) -> None:
    two = study(budgets=[1])
    written(two)

    head, *rows = tables(two)["Learning curves"]

    assert head == ["step", "samples", "faint", "strong"]
    assert [row[:2] for row in rows] == [["10", "20"], ["20", "40"]]
    assert rows[0][3].endswith("(2 min)")
    assert (two_page := write_study_report(two)[1].read_text()).count("<svg") == 2
    assert "samples seen" in two_page


def test_runs_that_are_not_finished_are_named_and_left_out(study: Load) -> None:
    two = study(budgets=[1])
    written(two, leave_out=lambda run: run.name == "strong-1")
    half = runs(two)[0]
    hits = made(half, 0.4, rows=120)
    write_hits(
        hits_file(half, "photos"), Hits(**{**vars(hits), "checkpoints": hits.checkpoints[:1], "iou": hits.iou[:1]})
    )

    found = tables(two)

    text = (hits_file(half, "photos").parents[2] / "report.md").read_text()
    assert "2 of 4 runs are finished" in text
    assert "faint-0: photos (1 of 2 points); strong-1: photos (0 of 2 points)" in text
    assert [row[:2] for row in found["Accuracy"][1:]] == [["faint", "1"], ["strong", "1"]]
    assert "Differences" not in found  # no seed has both


def test_nothing_is_finished(study: Load) -> None:
    assert list(tables(study())) == ["What was compared"]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"rows_sha256": "other"}, "strong-1 asked other rows"),
        ({"data_sha256": "other"}, "strong-1 were trained on other data"),
    ],
)
def test_runs_that_cannot_be_compared(study: Load, about: dict[str, Any], said: str) -> None:
    two = study()
    written(two)
    last = runs(two)[-1]
    write_hits(hits_file(last, "photos"), made(last, 0.7, rows=120, **about))

    with pytest.raises(VPPError, match=said):
        write_study_report(two)


def test_other_numbers_of_steps_cannot_be_compared(study: Load) -> None:
    two = study()
    written(two)
    last = runs(two)[-1]
    hits = made(last, 0.7, rows=120)
    longer = tuple(type(one)(one.place, one.step + 5, one.samples, one.minutes) for one in hits.checkpoints)
    write_hits(hits_file(last, "photos"), Hits(**{**vars(hits), "checkpoints": longer}))

    with pytest.raises(VPPError, match="strong-1 stopped at other steps"):
        write_study_report(two)


def test_the_same_hits_give_the_same_report(study: Load) -> None:
    two = study(budgets=[1])
    written(two)
    first = [path.read_bytes() for path in write_study_report(two)]
    assert [path.read_bytes() for path in write_study_report(two)] == first
