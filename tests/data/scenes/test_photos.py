import json

from vpp_plugins.data.scenes.folder import FOLDER, load_real_photos


def test_photos_and_their_boxes() -> None:
    samples = load_real_photos()
    assert len(samples) == 29
    assert sum(len(sample.expressions) for sample in samples) == 50
    assert len({sample.key for sample in samples}) == 29
    for sample in samples:
        assert sample.image.mode == "RGB"
        assert sample.image.size == (sample.width, sample.height)
        assert sample.expressions
        for expression in sample.expressions:
            left, top, right, bottom = expression.box_xyxy
            assert 0 <= left < right <= sample.width
            assert 0 <= top < bottom <= sample.height
            assert expression.kind == "photo"
            assert expression.object is None


def test_every_committed_photo_has_an_author_a_source_and_a_free_licence() -> None:
    entries = {entry["file"]: entry for entry in json.loads((FOLDER / "refs.json").read_text())}
    assert set(entries) == {path.name for path in FOLDER.glob("*.jpg")}
    for entry in entries.values():
        assert entry["author"]
        assert entry["source"].startswith("https://")
        assert entry["license"].lower() in {"cc0-1.0", "cc0", "public domain", "public-domain"}, entry
