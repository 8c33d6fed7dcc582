"""Frozen encoders computed once: the same run to the bit, files that several runs share, and what cannot be kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.families import attached_family, family_inputs
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.train.encodings import KeptEncoder, KeptEncodings
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")
FROZEN = ["vision", "vpp.local", "vpp.global"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", samples(8))


def run(data: Path, out: Path, family: str = "llava", **changes: Any) -> dict[str, torch.Tensor]:
    """Train, and return the weights at the end."""
    model, processor = attached_family(family)
    trained = train(recipe(data, out, freeze=FROZEN, **changes), model=model, processor=processor)
    return load_file(trained.folder / "model.safetensors") | load_file(trained.folder / "vpp.safetensors")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def calls_of(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that a module really computes."""
    seen: list[int] = []
    own = type(module).forward

    def forward(self: nn.Module, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixels))
        return own(self, pixels, *args, **kwargs)

    monkeypatch.setattr(type(module), "forward", forward)
    return seen


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_reading_is_as_computing_to_the_bit(data: Path, tmp_path: Path, family: str) -> None:
    plain = run(data, tmp_path / "plain", family)
    first = run(data, tmp_path / "first", family, cache_encodings=str(tmp_path / "kept"))
    second = run(data, tmp_path / "second", family, cache_encodings=str(tmp_path / "kept"))

    assert files(tmp_path / "kept")
    assert all(torch.equal(first[name], value) for name, value in second.items())
    for name, value in plain.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


def test_each_image_is_encoded_once_for_all_steps_and_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = attached_family("llava")
    seen = calls_of(active_vpp(model).local_vpp.generator, monkeypatch)
    run(data, tmp_path / "first", max_steps=8, cache_encodings=str(tmp_path / "kept"))
    computed = sum(seen)
    run(data, tmp_path / "second", max_steps=8, cache_encodings=str(tmp_path / "kept"))

    assert computed == 4  # the data have four images
    assert sum(seen) == computed + 1  # the first one that is read is compared


def test_a_killed_run_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    cut, kept = tmp_path / "cut", {"cache_encodings": str(tmp_path / "kept")}
    whole = run(data, cut, **kept)
    for left in ("final", "checkpoint-4"):
        (cut / left).rename(tmp_path / f"gone-{left}")
    files(tmp_path / "kept")[0].unlink()
    resumed = run(data, cut, resume_from_checkpoint="auto", **kept)

    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_evaluation_and_generation_compute_as_ever(tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inputs = family_inputs(processor, [1])
    kept = KeptEncodings(model, tmp_path)
    with torch.no_grad():
        model(**inputs)

    assert not files(tmp_path)
    kept.remove()


def test_taken_off_the_model_is_as_it_was(tmp_path: Path) -> None:
    model, _ = attached_family("llava")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    kept = KeptEncodings(model, tmp_path)
    changed = {name for name, module in model.named_modules() if set(vars(module)) != before[name]}
    assert changed == {"model.vision_tower", "vpp.local_prompt.generator"}
    kept.remove()

    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_reading_counts_the_seconds_that_it_saves(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 4, 3).requires_grad_(False)
    pixels = torch.randn(2, 3, 64, 64)
    first = KeptEncoder(module, tmp_path)
    computed = module(pixels)
    assert first.saved_seconds == 0
    first.remove()
    second = KeptEncoder(module, tmp_path)

    assert torch.equal(module(pixels), computed)
    assert second.saved_seconds > 0
    second.remove()


def test_other_weights_other_pixels_and_another_precision_have_files_of_their_own(tmp_path: Path) -> None:
    def encode(weight: float, value: float, *, half: bool = False) -> torch.Tensor:
        module = nn.Linear(2, 2, bias=False).requires_grad_(False)
        nn.init.constant_(module.weight, weight)
        kept = KeptEncoder(module, tmp_path)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found: torch.Tensor = module(torch.full((1, 2), float(value)))
        kept.remove()
        return found

    values = [encode(1, 1), encode(2, 1), encode(1, 3), encode(1, 1, half=True)]

    assert len(files(tmp_path)) == 4
    assert [float(value[0, 0]) for value in values] == [2, 4, 6, 2]
    assert values[3].dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    module, pixels = nn.Linear(2, 2).requires_grad_(False), torch.ones(1, 2)
    kept = KeptEncoder(module, tmp_path)
    module(pixels)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-3], "flip": flipped, "empty": b""}[damage])

    with pytest.raises(VPPError, match=r"the encoding '.*' is damaged: delete the file"):
        module(pixels)
    kept.remove()


def test_an_encoder_that_returns_something_else_than_it_did_is_refused(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        shift = 0.0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels + self.shift

    pixels = torch.ones(1, 2)
    before, after = Fickle(), Fickle()
    after.shift = 1.0
    KeptEncoder(before, tmp_path)
    before(pixels)
    KeptEncoder(after, tmp_path)

    with pytest.raises(VPPError, match="returns something else than was kept"):
        after(pixels)


def test_axes_that_learn_are_refused(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    with pytest.raises(VPPError, match=r'the global prompt learns.*freeze = \["vpp.global"\]'):
        train(recipe(data, tmp_path / "run", cache_encodings=str(tmp_path / "kept")), model=model, processor=processor)


def test_where_everything_learns_it_is_refused(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    asked = recipe(data, tmp_path / "run", freeze=["vpp.global"], cache_encodings=str(tmp_path / "kept"))
    with pytest.raises(VPPError, match=r"all of them learn \(model.vision_tower, the local prompt's generator\)"):
        train(asked, model=model, processor=processor)


def test_what_is_given_to_a_frozen_part_may_not_learn(tmp_path: Path) -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    KeptEncoder(module, tmp_path)

    with pytest.raises(VPPError, match="what this one is given learns"):
        module(torch.ones(1, 2, requires_grad=True))


def test_only_the_layers_that_the_host_reads_are_kept(tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    kept = KeptEncodings(model, tmp_path)
    model(**family_inputs(processor, [1]))
    kept.remove()
    tower = next(encoder for name, encoder in kept.encoders.items() if "vision" in name)
    sizes = [tensor.numel() for tensor in load_file(files(tower.folder)[0]).values()]

    assert sum(size > 0 for size in sizes) == 1


def as_made_and_as_read(folder: Path, output: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> list[Any]:
    """What a module that returns this of its pixels, doubled, returns as computed and written, and as read."""

    class Encoder(nn.Module):
        def forward(self, pixels: torch.Tensor) -> Any:
            return output(2 * pixels)

    encoders = [Encoder(), Encoder()]
    for encoder in encoders:
        KeptEncoder(encoder, folder)
    return [encoder(pixels) for encoder in encoders]


@pytest.mark.parametrize("view", [lambda made: made[:, 0], torch.Tensor.detach])
def test_a_view_of_another_output_is_kept_too(tmp_path: Path, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """safetensors refused it, as the two share their memory."""
    pixels = torch.rand(2, 3)
    for made, viewed in as_made_and_as_read(tmp_path, lambda made: (made, view(made)), pixels):
        assert torch.equal(made, 2 * pixels)
        assert torch.equal(viewed, view(2 * pixels))


def test_a_tensor_that_an_output_names_twice_is_kept_once(tmp_path: Path) -> None:
    pixels = torch.rand(2, 3)
    found = as_made_and_as_read(tmp_path, lambda made: (made, {"mask": made + 1, "states": made}), pixels)
    for made, others in found:
        assert torch.equal(made, 2 * pixels)
        assert torch.equal(others["states"], 2 * pixels)
        assert torch.equal(others["mask"], 2 * pixels + 1)
    assert all(len(load_file(file)) == 2 for file in files(tmp_path))
