import json
from pathlib import Path

import pytest

from tests.data.formats import layouts
from tests.data.formats.layouts import ASK, image, lines, whole
from vpp_plugins import VPPError
from vpp_plugins.data.sample import Issue
from vpp_plugins.data.vpp_sft import PUBLISHED, build_vpp_sft

TEXT = "[0.1, 0.28, 0.5, 0.72]"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    for name in ("coco/train2017/000000033471.jpg", "vg/VG_100K/2368107.jpg", "vg/VG_100K/2.jpg"):
        image(tmp_path / "data" / name)
    return {
        "genixer": lines(tmp_path / "g.jsonl", layouts.GENIXER, {**layouts.GENIXER, "expression": "another"}),
        "llava-665k": whole(tmp_path / "l.json", layouts.LLAVA_665K),
        "cb-ref": whole(tmp_path / "r.json", layouts.CB_REF),
        "cb-grd": whole(tmp_path / "c.json", layouts.CB_GRD),
    }


def messages(path: Path) -> list[list[tuple[str, str]]]:
    rows = json.loads(path.read_text())
    return [[(message["from"], message["value"]) for message in row["conversations"]] for row in rows]


def test_the_published_counts_add_up() -> None:
    assert sum(PUBLISHED.values()) == 616_471


def test_four_sources_become_one_array(tmp_path: Path, sources: dict[str, Path]) -> None:
    built = build_vpp_sft(tmp_path / "out.json", sources, images=tmp_path / "data", progress=False)

    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row.get("image") for row in rows] == [
        "coco/train2017/000000033471.jpg",
        None,
        "vg/VG_100K/2368107.jpg",
        "vg/VG_100K/2368107.jpg",
        "LLaVA-Pretrain/images/00453/004539375.jpg",
        "LLaVA-Pretrain/images/00453/004539375.jpg",
    ]
    said = messages(tmp_path / "out.json")
    assert rows[0] == layouts.LLAVA_665K[0]
    assert said[2] == [
        ("human", f"<image>\n{ASK}the white cup on the left."),
        ("gpt", TEXT),
        ("human", f"{ASK}the sign of St. Mary."),
        ("gpt", TEXT),
    ]
    assert said[3] == [
        ("human", f"<image>\nPlease provide a short description for this region: {TEXT}."),
        ("gpt", "A white cup of coffee."),
    ]
    assert said[4] == [("human", f"<image>\n{ASK}the white cup."), ("gpt", TEXT)]
    assert {name: part.samples for name, part in built.sources.items()} == {
        "llava-665k": 2, "cb-grd": 1, "cb-ref": 1, "genixer": 2,
    }  # fmt: skip
    assert built.samples == 6


def test_the_references_faults_come_back_on_request(tmp_path: Path, sources: dict[str, Path]) -> None:
    """Its converter cuts at periods, leaves what it cannot cut in pixels, and marks every grounding question."""
    build_vpp_sft(
        tmp_path / "out.json",
        {"cb-grd": sources["cb-grd"]},
        images=tmp_path / "data",
        like_reference=True,
        progress=False,
    )
    raw = [(message["from"], message["value"]) for message in layouts.CB_GRD["data"][0]["conversation"]]
    assert messages(tmp_path / "out.json")[0] == [
        ("human", f"<image>\n{ASK}the white cup on the left."),
        ("gpt", TEXT),
        *raw[2:],
    ]


def test_cut_expressions_and_a_mark_in_every_question_like_the_reference(tmp_path: Path) -> None:
    image(tmp_path / "vg" / "a.jpg")
    answer = "I have provided the box of a man vs. a dog [64, 96, 320, 384]."
    turns = [layouts.human("?"), layouts.gpt(answer)] * 2
    source = whole(tmp_path / "c.json", {"data": [{"id": 5, "image": "a.jpg", "conversation": turns}]})
    for like_reference, expected in ((True, "a man vs"), (False, "a man vs. a dog")):
        target = tmp_path / f"{like_reference}.json"
        build_vpp_sft(target, {"cb-grd": source}, images=tmp_path, like_reference=like_reference, progress=False)
        ((first, _, second, _),) = messages(target)
        assert first[1] == f"<image>\n{ASK}{expected}."
        assert second[1] == ("<image>\n" if like_reference else "") + f"{ASK}{expected}."


def test_counts_that_differ_are_told_or_forbidden(tmp_path: Path, sources: dict[str, Path]) -> None:
    built = build_vpp_sft(tmp_path / "out.json", {"genixer": sources["genixer"]}, progress=False)
    assert built.differing() == {"genixer": (2, 130_000)}
    with pytest.raises(VPPError, match=r"genixer 2, published 130,000\. Nothing was written"):
        build_vpp_sft(tmp_path / "strict.json", {"genixer": sources["genixer"]}, strict_counts=True, progress=False)
    assert not (tmp_path / "strict.json").exists()


def test_genixer_may_be_limited(tmp_path: Path, sources: dict[str, Path]) -> None:
    built = build_vpp_sft(tmp_path / "out.json", {"genixer": sources["genixer"]}, genixer_limit=1, progress=False)
    assert built.samples == 1


def test_faults_are_counted_by_source(tmp_path: Path, sources: dict[str, Path]) -> None:
    built = build_vpp_sft(tmp_path / "out.json", sources, images=tmp_path / "data", progress=False)
    assert built.sources["cb-grd"].tally.counts[Issue.AMBIGUOUS] == 1
    assert built.sources["cb-ref"].tally.counts == {Issue.WRONG_COUNT: 1}
    assert built.sources["llava-665k"].tally.counts == {Issue.NOT_SELECTED: 1}


@pytest.mark.parametrize("named", [{}, {"coco": "a.json"}])
def test_unknown_sources_are_refused(tmp_path: Path, named: dict[str, str]) -> None:
    with pytest.raises(VPPError, match="the sources are some of llava-665k, cb-grd, cb-ref, genixer"):
        build_vpp_sft(tmp_path / "out.json", named, progress=False)
