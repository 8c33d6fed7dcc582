"""Region captioning: the box is given, the words are asked for; scored by CIDEr-D against the people's own words."""

import importlib.util
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import Box, answer_of
from vpp_plugins.errors import VPPError, install_command
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import SHOWN, facts, image_of, title
from vpp_plugins.evaluate.rows import Row, image_id
from vpp_plugins.report import write_page

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def regions(rows: Sequence[Row]) -> list[Row]:
    """Return one row for every box; its expression holds the sentences that the data have for the box, a line each."""
    found: dict[tuple[str, Box], list[Row]] = defaultdict(list)
    for row in rows:
        found[image_id(row.file, row.id), row.box].append(row)
    said = {region: "\n".join(" ".join(row.expression.split()) for row in group) for region, group in found.items()}
    return [replace(group[0], expression=said[region]) for region, group in found.items()]


def summarise_captions(answers: Sequence[Answer], *, with_meteor: bool = False) -> dict[str, Any]:
    """Return the figures of a captioning evaluation; an unreadable image counts as an empty caption."""
    captions = {answer.id: answer_of(answer.text) for answer in answers}
    references = {answer.id: answer.expression.split("\n") for answer in answers}
    figures = {"regions": len(answers), "cider": cider(captions, references)}
    if with_meteor:
        figures["meteor"] = meteor(captions, references)
    return {**figures, "unreadable": sum(bool(answer.error) for answer in answers)}


def check_scorers(*, with_meteor: bool) -> None:
    """Raise VPPError where what scores captions is not installed: better said before a model is asked."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise VPPError(f"captions are scored by pycocoevalcap: {install_command('captions')}.")
    if with_meteor and shutil.which("java") is None:
        raise VPPError("METEOR runs in Java, and no `java` is on the path: install one, or leave METEOR out.")


def words(sentence: str) -> str:
    """Return the sentence in lower case, without punctuation, as CIDEr is to count it.

    The published scores come from the Penn Treebank tokeniser, which needs Java; on the short sentences of these data
    the two agree but for hyphens and clitics.
    """
    return " ".join(_WORD.findall(sentence.lower()))


def cider(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return CIDEr-D over the regions (arXiv 1411.5726), 0 to 10, by pycocoevalcap; keys are regions.

    Its weights come from the references themselves: scores of different sets of regions do not compare.
    """
    if answers.keys() != references.keys() or not answers:
        raise VPPError(f"one caption per region is expected, but {len(answers)} came for {len(references)} regions.")
    from pycocoevalcap.cider.cider import Cider

    value, _ = Cider().compute_score(*_counted(answers, references))
    return float(value)


def meteor(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return METEOR, 0 to 1, by pycocoevalcap; raises VPPError where there is no Java to run it."""
    check_scorers(with_meteor=True)
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        value, _ = scorer.compute_score(*_counted(answers, references))
    except (OSError, ValueError) as error:
        scorer.lock.release()  # taken again when the scorer goes
        raise VPPError(
            f"METEOR's Java program ended without a score ({error}): it needs Java 8 or newer and 2 GB; install "
            "that, or leave METEOR out."
        ) from None
    finally:
        scorer.meteor_p.kill()
        scorer.meteor_p.communicate()  # pycocoevalcap would leave its pipes open
    return float(value)


def _counted(
    answers: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return references and answers, in pycocoevalcap's order, as their words."""
    right = {key: [words(sentence) for sentence in sentences] for key, sentences in references.items()}
    return right, {key: [words(answer)] for key, answer in answers.items()}


def write_caption_report(
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    answers: Sequence[Answer],
    path: str | Path,
    rows: Sequence[Row] | None = None,
) -> Path:
    """Write the page of a captioning evaluation: the score, and its first regions with what people and model say."""
    images, rules = {row.id: row for row in rows or ()}, protocol(str(settings["protocol"]))
    return write_page(
        path,
        "captions",
        title=title(settings),
        protocol=rules.name,
        figures=figures,
        regions=[_card(images, answer) for answer in answers[:SHOWN]],
        facts=facts(settings, rules),
    )


def _card(images: Mapping[str, Row], answer: Answer) -> dict[str, Any]:
    people = answer.expression.replace("\n", "; ")[:200]
    lines = [answer.text[:200] or answer.error or "(nothing)"]
    return {"image": image_of(images, answer), "caption": people, "lines": lines}
