import math
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpp_plugins.errors import VPPError, install_command
from vpp_plugins.prompts.attention import (
    _xformers_library,
    attend,
    attend_ragged,
    attention_implementation,
    attention_report,
    ragged_pays,
)

Attention = Callable[..., Tensor]

# Query tokens, key tokens, head size: one token, odd sizes, and the sizes of DETR's decoder.
SIZES = [(1, 1, 4), (7, 13, 5), (5, 64, 32), (100, 9, 32)]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def dense_inputs(queries: int, keys: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(3, 2, queries, dim), draw(3, 2, keys, dim), draw(3, 2, keys, dim)


def packed_inputs(queries: int, keys: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, queries, 2, dim), draw(1, keys, 2, dim), draw(1, keys, 2, dim)


def result_and_gradients(attention: Attention, inputs: tuple[Tensor, ...], **options: object) -> list[Tensor]:
    result = attention(*inputs, **options)
    # Uneven weights: with a plain sum the gradient of the softmax would vanish.
    weights = torch.linspace(-1.0, 2.0, result.numel(), dtype=result.dtype, device=result.device)
    return [result, *torch.autograd.grad((result * weights.view_as(result)).sum(), inputs)]


def assert_same(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def padding(keys: int) -> Tensor:
    """Three rows: everything, the first half only, every other key."""
    mask = torch.ones(3, keys, dtype=torch.bool)
    mask[1, (keys + 1) // 2 :] = False
    mask[2, 1::2] = False
    return mask


def test_math_is_softmax_of_scaled_products() -> None:
    query, key, value = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [-1.0]]), torch.tensor([[10.0], [20.0]])

    attended = attend(query[None, None], key[None, None], value[None, None], implementation="math")

    first = (10 * math.exp(2) + 20 * math.exp(-1)) / (math.exp(2) + math.exp(-1))
    torch.testing.assert_close(attended, torch.tensor([[[[first], [15.0]]]]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_sdpa_equals_math_forward_and_backward(size: tuple[int, int, int], masked: bool) -> None:
    inputs = dense_inputs(*size)
    mask = padding(size[1]) if masked else None

    sdpa = result_and_gradients(attend, inputs, mask=mask, implementation="sdpa")

    assert_same(sdpa, result_and_gradients(attend, inputs, mask=mask, implementation="math"))


@pytest.mark.parametrize("implementation", ["sdpa", "math"])
def test_masked_keys_do_not_count(implementation: str) -> None:
    query, key, value = dense_inputs(4, 6, 8)
    mask = torch.tensor([True, True, True, True, False, False]).expand(3, 6)

    masked = attend(query, key, value, mask=mask, implementation=implementation)

    torch.testing.assert_close(masked, attend(query, key[:, :, :4], value[:, :, :4], implementation=implementation))


@pytest.mark.parametrize("implementation", ["sdpa", "math"])
def test_a_row_with_nothing_to_attend_gives_zeros_and_no_nan(implementation: str) -> None:
    inputs = dense_inputs(4, 6, 8)
    mask = torch.tensor([False, True, True])[:, None].expand(3, 6)

    results = result_and_gradients(attend, inputs, mask=mask, implementation=implementation)

    for result in results:
        assert torch.equal(result[0], torch.zeros_like(result[0]))
        assert result[1:].isfinite().all()
        assert (result[1:] != 0).any()


@pytest.mark.parametrize("implementation", ["sdpa", "math"])
@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_input_gives_an_empty_or_zero_result(shape: tuple[int, int, int], implementation: str) -> None:
    batch, queries, keys = shape
    inputs = (draw(batch, 2, queries, 4), draw(batch, 2, keys, 4), draw(batch, 2, keys, 4))
    mask = torch.ones(batch, keys, dtype=torch.bool)

    for options in ({}, {"mask": mask}):
        results = result_and_gradients(attend, inputs, implementation=implementation, **options)
        assert [result.shape for result in results] == [inputs[0].shape, *(tensor.shape for tensor in inputs)]
        assert all(torch.equal(result, torch.zeros_like(result)) for result in results)


def test_dropout_drops_and_keeps_the_mean() -> None:
    query, key, value = (torch.ones(1, 1, 400, 4) for _ in range(3))

    for implementation in ("sdpa", "math"):
        attended = attend(query, key, value, dropout=0.5, implementation=implementation)
        assert attended.std() > 0.01
        assert abs(attended.mean() - 1) < 0.02
        assert torch.equal(attend(query, key, value, implementation=implementation).round(decimals=5), query)


# Empty segments at the start, in the middle and at the end; without queries, without keys, without both.
RAGGED = [
    ([3, 1, 5], [2, 7, 4]),
    ([4], [6]),
    ([3, 2, 4], [3, 0, 5]),
    ([0, 2, 0, 4, 3], [3, 3, 0, 5, 0]),
    ([2, 3], [0, 0]),
    ([0, 0], [0, 0]),
    ([], []),
]


@pytest.mark.parametrize(("query_lengths", "key_lengths"), RAGGED)
@pytest.mark.parametrize("implementation", ["sdpa", "math"])
def test_ragged_equals_one_attention_per_segment(
    query_lengths: list[int], key_lengths: list[int], implementation: str
) -> None:
    inputs = packed_inputs(sum(query_lengths), sum(key_lengths))

    def segment_by_segment(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = zip(query.split(query_lengths, 1), key.split(key_lengths, 1), value.split(key_lengths, 1), strict=True)
        one_by_one = [
            attend(*(tensor.transpose(1, 2) for tensor in part), implementation="math").transpose(1, 2)
            for part in parts
        ]
        return torch.cat([query[:, :0] + 0 * (key.sum() + value.sum()), *one_by_one], dim=1)

    ragged = result_and_gradients(
        attend_ragged, inputs, query_lengths=query_lengths, key_lengths=key_lengths, implementation=implementation
    )

    assert_same(ragged, result_and_gradients(segment_by_segment, inputs))


@pytest.mark.parametrize("dim", [1, 3, 20, 64, 130])
def test_head_sizes_of_every_kind(dim: int) -> None:
    dense, packed = dense_inputs(5, 9, dim), packed_inputs(6, 7, dim)
    for attention, inputs, options in (
        (attend, dense, {"mask": padding(9)}),
        (attend_ragged, packed, {"query_lengths": [1, 5], "key_lengths": [4, 3]}),
    ):
        results = [result_and_gradients(attention, inputs, implementation=name, **options) for name in ("sdpa", "math")]
        assert_same(*results)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_implementations_agree_within_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    exact = dense_inputs(7, 13, 16)
    rounded = tuple(tensor.detach().to(dtype).requires_grad_() for tensor in exact)
    expected = result_and_gradients(attend, tuple(tensor.double() for tensor in rounded), mask=padding(13))
    for name in ("sdpa", "math"):
        results = result_and_gradients(attend, rounded, mask=padding(13), implementation=name)
        for result, right in zip(results, expected, strict=True):
            assert result.dtype == dtype
            assert (result - right).abs().max() <= tolerance * right.abs().max()


def test_packing_pays_where_lengths_may_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.ones(1, 2, 3)
    assert ragged_pays(tokens)
    assert not ragged_pays(tokens.to("meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not ragged_pays(tokens)


@pytest.mark.parametrize(
    ("query_lengths", "key_lengths", "complaint"),
    [
        ([4], [2, 3], "one key length per query length expected; got 1 and 2"),
        ([3], [5], "query_lengths must be 0 or more and add up to 4 packed tokens; got \\[3\\]"),
        ([5, -1], [4, 1], "query_lengths must be 0 or more"),
        ([2, 2], [4, 2], "key_lengths must be 0 or more and add up to 5 packed tokens; got \\[4, 2\\]"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(query_lengths: list[int], key_lengths: list[int], complaint: str) -> None:
    with pytest.raises(VPPError, match=complaint):
        attend_ragged(*packed_inputs(4, 5), query_lengths, key_lengths)


def test_the_override_reaches_every_call_and_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = dense_inputs(2, 3, 4)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query * 0 + 7)

    def is_sdpa(**options: str) -> bool:
        return bool((attend(*inputs, **options) == 7).all())

    assert is_sdpa()
    with attention_implementation("math"):
        assert not is_sdpa()
        assert is_sdpa(implementation="sdpa")
        with attention_implementation("sdpa"):
            assert is_sdpa()
        assert not is_sdpa()
    with pytest.raises(RuntimeError, match="inside"), attention_implementation("math"):
        raise RuntimeError("inside")
    assert is_sdpa()


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    said = r"no attention is called 'xformer'. Did you mean 'xformers'\? Known: xformers, sdpa, math"
    with pytest.raises(VPPError, match=said):
        attend(*dense_inputs(2, 3, 4), implementation="xformer")
    with pytest.raises(VPPError, match="no attention is called 'flash'"), attention_implementation("flash"):
        pass


def test_xformers_by_name_needs_cuda_tensors() -> None:
    with pytest.raises(VPPError, match=r"needs CUDA tensors and the xformers package; .* Use 'sdpa' here"):
        attend(*dense_inputs(2, 3, 4), implementation="xformers")


def kernel_in_words(query: Tensor, key: Tensor, value: Tensor, attn_bias: object, p: float) -> Tensor:
    """What xformers documents its kernel to compute, with its own checks of the arguments."""
    from xformers.ops.fmha.attn_bias import AttentionBias
    from xformers.ops.fmha.common import Inputs

    assert p == 0.0
    Inputs(query=query, key=key, value=value, attn_bias=attn_bias).validate_inputs()
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * query.shape[-1] ** -0.5
    if isinstance(attn_bias, Tensor):
        assert attn_bias.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        scores = scores + attn_bias
    elif isinstance(attn_bias, AttentionBias):
        scores = scores + attn_bias.materialize(tuple(scores.shape), dtype=scores.dtype)
    return (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)


@pytest.fixture
def xformers_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "xformers" run on CPU: our side of the call is real, the kernel is written out."""
    ops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", kernel_in_words)
    monkeypatch.setattr("vpp_plugins.prompts.attention._chosen", lambda query, implementation: implementation)


@pytest.mark.usefixtures("xformers_in_words")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_call_of_xformers_is_the_attention_we_mean(size: tuple[int, int, int], masked: bool) -> None:
    inputs = dense_inputs(*size)
    mask = padding(size[1]) if masked else None
    if mask is not None:
        mask[2] = False

    called = result_and_gradients(attend, inputs, mask=mask, implementation="xformers")

    assert_same(called, result_and_gradients(attend, inputs, mask=mask, implementation="math"))


@pytest.mark.usefixtures("xformers_in_words")
@pytest.mark.parametrize(("query_lengths", "key_lengths"), RAGGED)
def test_the_ragged_call_of_xformers_is_the_attention_we_mean(query_lengths: list[int], key_lengths: list[int]) -> None:
    inputs = packed_inputs(sum(query_lengths), sum(key_lengths))
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths}

    called = result_and_gradients(attend_ragged, inputs, **lengths, implementation="xformers")

    assert_same(called, result_and_gradients(attend_ragged, inputs, **lengths, implementation="math"))


@pytest.mark.usefixtures("xformers_in_words")
def test_where_xformers_has_no_kernel_only_a_free_choice_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object, **__: object) -> Tensor:
        raise NotImplementedError("No operator found")

    monkeypatch.setattr("xformers.ops.memory_efficient_attention", no_kernel)
    monkeypatch.setattr("vpp_plugins.prompts.attention._takes_xformers", lambda chosen, query: chosen != "sdpa")
    inputs = dense_inputs(2, 3, 4)

    assert torch.equal(attend(*inputs), attend(*inputs, implementation="sdpa"))
    with pytest.raises(VPPError, match=r"xformers has no kernel for this attention; use 'sdpa'.*No operator found"):
        attend(*inputs, implementation="xformers")


class TestReport:
    """xformers 0.0.35's library wants CUDA 12's runtime, torch 2.11 brings 13, and nothing said so."""

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """An xformers whose library is none."""
        folder = tmp_path / "xformers"
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "cpp_lib.json").write_text('{"version": {"torch": "2.10.0+cu128"}}')
        (folder / "_C.so").touch()
        spec = ModuleSpec("xformers", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
        monkeypatch.setattr("vpp_plugins.prompts.attention.version", lambda name: "0.0.35")
        monkeypatch.setattr("vpp_plugins.prompts.attention._xformers_installed", lambda: True)
        _xformers_library.cache_clear()
        yield folder
        _xformers_library.cache_clear()

    def test_a_library_that_does_not_load(self, package: Path) -> None:
        said = attention_report()["attention on CUDA"]

        assert said.startswith("xformers 0.0.35, with torch's flash and memory-efficient kernels alone, as its library")
        assert f"built for torch 2.10.0+cu128, does not load beside {torch.__version__} (" in said
        assert torch.cuda.is_available() or said.endswith("; there is no CUDA device here")

    def test_a_library_that_loads(self, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)

        assert attention_report()["attention on CUDA"].startswith("xformers 0.0.35, with its own kernels; torch's")

    def test_no_library(self, package: Path) -> None:
        (package / "_C.so").unlink()

        assert "as it was built without its library" in attention_report()["attention on CUDA"]

    def test_no_xformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vpp_plugins.prompts.attention._xformers_installed", lambda: False)

        assert attention_report() == {
            "attention on CUDA": "torch's scaled_dot_product_attention: xformers is not installed "
            f"({install_command('all')})",
            "attention elsewhere": "torch's scaled_dot_product_attention",
        }


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(100, 400, 32), (7, 13, 8), (400, 400, 32)])
@pytest.mark.parametrize("masked", [False, True])
def test_xformers_equals_math_on_cuda(size: tuple[int, int, int], masked: bool) -> None:
    pytest.importorskip("xformers")
    inputs = tuple(tensor.detach().float().cuda().requires_grad_() for tensor in dense_inputs(*size))
    mask = padding(size[1]).cuda() if masked else None
    if mask is not None:
        mask[2] = False

    xformers = result_and_gradients(attend, inputs, mask=mask, implementation="xformers")

    assert_same(xformers, result_and_gradients(attend, inputs, mask=mask, implementation="math"), tolerance=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("query_lengths", "key_lengths"), RAGGED)
def test_xformers_equals_math_on_cuda_when_ragged(query_lengths: list[int], key_lengths: list[int]) -> None:
    pytest.importorskip("xformers")
    packed = packed_inputs(sum(query_lengths), sum(key_lengths))
    inputs = tuple(tensor.detach().float().cuda().requires_grad_() for tensor in packed)
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths}

    xformers = result_and_gradients(attend_ragged, inputs, **lengths, implementation="xformers")

    assert_same(xformers, result_and_gradients(attend_ragged, inputs, **lengths, implementation="math"), tolerance=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("query_lengths", "key_lengths"), RAGGED[:2])
def test_torchs_own_ragged_attention_is_the_same_on_cuda(query_lengths: list[int], key_lengths: list[int]) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has none")
    packed = packed_inputs(sum(query_lengths), sum(key_lengths))
    inputs = [tensor.detach().bfloat16().cuda() for tensor in packed]
    bounds = [F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().cuda() for lengths in (query_lengths, key_lengths)]

    found = varlen.varlen_attn(*(one[0] for one in inputs), *bounds, max(query_lengths), max(key_lengths))

    expected = attend_ragged(*inputs, query_lengths, key_lengths, implementation="math")
    torch.testing.assert_close(found[None], expected, rtol=2e-2, atol=2e-2)
