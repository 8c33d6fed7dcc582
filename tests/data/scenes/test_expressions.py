import random
from collections import Counter
from collections.abc import Sequence
from math import dist

import pytest

from vpp_plugins.data.scenes.expressions import KINDS, Expression, SceneObject, box_gap, refer

SIDE = 320


def random_objects(rng: random.Random) -> tuple[SceneObject, ...]:
    """Boxes anywhere, of few names, some with attributes that share words."""
    objects = []
    for _ in range(rng.randint(1, 7)):
        name = rng.choice(["frog", "frog", "bell pepper", "kettle", "drum", "red lettuce"])
        attribute = rng.choice(["green", "red", "dull red", "brown"]) if name in ("frog", "red lettuce") else None
        width, height = rng.uniform(20, 160), rng.uniform(20, 160)
        left, top = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
        objects.append(SceneObject(name, (left, top, left + width, top + height), attribute))
    return tuple(objects)


def all_meant(text: str, objects: Sequence[SceneObject], side: float) -> set[int]:
    """Every object a literal reader could mean: a second opinion that shares no rule and no margin with `refer`."""
    names = sorted({item.name for item in objects}, key=len, reverse=True)
    text = text.removeprefix("the ")
    landmark = next((name for name in names if text.endswith(f" the {name}")), None)
    if landmark is not None:
        assert Counter(item.name for item in objects)[landmark] == 1, f"which {landmark}?"
        head, mark = text.removesuffix(f" the {landmark}"), next(item for item in objects if item.name == landmark)
        name = next(name for name in names if head.startswith(f"{name} "))
        return _related(
            head.removeprefix(f"{name} "), [i for i, o in enumerate(objects) if o.name == name], objects, mark
        )
    name = next(name for name in names if name in text)
    group = [index for index, item in enumerate(objects) if item.name == name]
    modifier = " ".join(text.replace(name, "_").split())
    x = {index: objects[index].center[0] for index in group}
    y = {index: objects[index].center[1] for index in group}
    size = {index: objects[index].area for index in group}

    def extreme(values: dict[int, float], sign: int) -> set[int]:
        return {index for index in group if sign * values[index] == max(sign * value for value in values.values())}

    if modifier == "_":
        return set(group)
    if modifier == "_ in the middle":
        assert len(group) == 3
        spread_x, spread_y = (max(values.values()) - min(values.values()) for values in (x, y))
        return {sorted(group, key=(x if spread_x > spread_y else y).__getitem__)[1]}
    for end, values, sign in (("left", x, 1), ("right", x, -1), ("top", y, 1), ("bottom", y, -1)):
        for place, ordinal in ((1, "second"), (2, "third")):
            if modifier == f"{ordinal} _ from the {end}":
                return {sorted(group, key=lambda index: sign * values[index])[place]}
    halves = {
        "_ on the left": (x, -1),
        "_ on the right": (x, 1),
        "_ at the top": (y, -1),
        "_ at the bottom": (y, 1),
    }
    if modifier in halves:
        values, sign = halves[modifier]
        return {index for index in group if sign * (values[index] - side / 2) > 0}
    pair_only = {"left _", "right _", "top _", "upper _", "bottom _", "lower _", "smaller _", "small _", "bigger _"}
    pair_only |= {"larger _", "big _"}
    assert modifier not in pair_only or len(group) == 2, f"{text!r} said of {len(group)}"
    extremes = {
        -1: (
            (x, ("left _", "leftmost _", "_ farthest to the left")),
            (y, ("top _", "upper _", "topmost _", "highest _")),
            (size, ("smaller _", "small _", "smallest _")),
        ),
        1: (
            (x, ("right _", "rightmost _", "_ farthest to the right")),
            (y, ("bottom _", "lower _", "bottommost _", "lowest _")),
            (size, ("bigger _", "larger _", "big _", "biggest _", "largest _")),
        ),
    }
    for sign, rows in extremes.items():
        for values, texts in rows:
            if modifier in texts:
                return extreme(values, sign)
    words = set(modifier.removesuffix(" _").split())
    return {index for index in group if words & set((objects[index].attribute or "").split())}


def _related(words: str, group: list[int], objects: Sequence[SceneObject], mark: SceneObject) -> set[int]:
    mark_x, mark_y = mark.center
    loose = {
        "to the left of": lambda x, y: x < mark_x,
        "left of": lambda x, y: x < mark_x,
        "to the right of": lambda x, y: x > mark_x,
        "right of": lambda x, y: x > mark_x,
        "above": lambda x, y: y < mark_y,
        "below": lambda x, y: y > mark_y,
    }
    if words in loose:
        return {index for index in group if loose[words](*objects[index].center)}
    sign = {"closest to": 1, "nearest to": 1, "next to": 1, "farthest from": -1}[words]
    by_center = min(group, key=lambda index: sign * dist(objects[index].center, mark.center))
    by_edge = min(group, key=lambda index: sign * box_gap(objects[index].box_xyxy, mark.box_xyxy))
    return {by_center, by_edge}


@pytest.fixture(scope="module")
def sample() -> list[tuple[tuple[SceneObject, ...], tuple[Expression, ...]]]:
    rng = random.Random(1)
    layouts = [random_objects(rng) for _ in range(600)]
    return [(objects, refer(objects, SIDE, rng)) for objects in layouts]


def test_every_expression_means_exactly_its_object(sample) -> None:
    for objects, expressions in sample:
        for expression in expressions:
            assert all_meant(expression.text, objects, SIDE) == {expression.object}, (expression, objects)
            assert expression.box_xyxy == objects[expression.object].box_xyxy


def test_expressions_stay_true_when_boxes_are_drawn_a_little_differently(sample) -> None:
    """A margin stands behind every text: nobody has to measure pixels to see which object is meant."""
    rng = random.Random(2)
    for objects, expressions in sample[:300]:
        moved = tuple(
            SceneObject(item.name, tuple(edge + rng.uniform(-2, 2) for edge in item.box_xyxy), item.attribute)
            for item in objects
        )
        for expression in expressions:
            assert all_meant(expression.text, moved, SIDE) == {expression.object}, (expression, objects)


@pytest.mark.parametrize(("word", "opposite"), [("left", "right"), ("above", "below"), ("smallest", "biggest")])
def test_the_second_opinion_notices_the_opposite_word(sample, word: str, opposite: str) -> None:
    swapped = [
        (all_meant(expression.text.replace(word, opposite), objects, SIDE), expression)
        for objects, expressions in sample
        for expression in expressions
        if word in expression.text and expression.kind != "ordinal"
    ]
    assert len(swapped) > 30
    assert all(meant != {expression.object} for meant, expression in swapped)


def test_all_kinds_occur_and_no_text_twice_in_a_scene(sample) -> None:
    kinds = Counter(expression.kind for _, expressions in sample for expression in expressions)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 20
    for _, expressions in sample:
        assert len({expression.text for expression in expressions}) == len(expressions)
        assert max(Counter(expression.kind for expression in expressions).values(), default=0) <= 4


def test_nothing_is_said_of_things_that_look_the_same() -> None:
    twins = tuple(SceneObject("drum", (100.0, 100.0, 150.0, 150.0)) for _ in range(2))
    assert refer(twins, SIDE, random.Random(0)) == ()


@pytest.mark.parametrize(("side", "said"), [(55.0, False), (70.0, True)])
def test_sizes_are_compared_only_where_they_clearly_differ(side: float, said: bool) -> None:
    """A side of 55 beside one of 50 is an area ratio of 1.2, a side of 70 one of 2."""
    drums = SceneObject("drum", (0.0, 0.0, 50.0, 50.0)), SceneObject("drum", (200.0, 0.0, 200.0 + side, side))
    kinds = [text.kind for text in refer(drums, SIDE, random.Random(0))]
    assert kinds.count("size") == (2 if said else 0)
    wide = SceneObject("drum", (200.0, 0.0, 270.0, 40.0))  # longer, but hardly any larger
    assert all(text.kind != "size" for text in refer((drums[0], wide), SIDE, random.Random(0)))


def test_an_attribute_that_two_share_is_not_used() -> None:
    """Case: "the red apple" beside a dull red one: both are red."""
    boxes = (0.0, 0.0, 50.0, 50.0), (200.0, 0.0, 250.0, 50.0), (100.0, 200.0, 150.0, 250.0)
    attributes = "red", "dull red", "green"
    apples = tuple(SceneObject("apple", box, attribute) for box, attribute in zip(boxes, attributes, strict=True))
    texts = [text.text for text in refer(apples, SIDE, random.Random(0)) if text.kind == "attribute"]
    assert texts == ["the green apple"]


def test_an_unknown_attribute_silences_the_others() -> None:
    frogs = SceneObject("frog", (0.0, 0.0, 50.0, 50.0), "green"), SceneObject("frog", (200.0, 0.0, 250.0, 50.0), None)
    assert all(text.kind != "attribute" for text in refer(frogs, SIDE, random.Random(0)))


def test_the_gap_between_boxes() -> None:
    assert box_gap((0.0, 0.0, 10.0, 10.0), (13.0, 14.0, 20.0, 20.0)) == 5.0
    assert box_gap((0.0, 0.0, 10.0, 10.0), (5.0, 5.0, 20.0, 20.0)) == 0.0
