import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vpp_plugins.data.json_stream as stream
from vpp_plugins import VPPError
from vpp_plugins.data.json_stream import stream_array, stream_lines, stream_records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FROM_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "data.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of three bytes cuts every value, character and number somewhere."""
    monkeypatch.setattr(stream, "_CHUNK", 3)


class TestArray:
    @FROM_FIXTURES
    @given(values=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
    def test_yields_what_json_would_load(
        self, file: Callable[..., Path], tiny_chunks: None, values: list[Any], indent: int | None, ascii_only: bool
    ) -> None:
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        assert list(stream_array(file(text.encode(errors="surrogatepass") if ascii_only else text))) == values

    @FROM_FIXTURES
    @given(before=JSON, values=st.lists(JSON, max_size=4), after=JSON)
    def test_finds_an_array_under_a_key(
        self, file: Callable[..., Path], tiny_chunks: None, before: Any, values: list[Any], after: Any
    ) -> None:
        path = file(json.dumps({"info": before, "data": values, "more": after}))
        assert list(stream_array(path, "data")) == values

    def test_holds_only_a_window(self, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream, "_CHUNK", 64)
        path = file("[" + ",".join(json.dumps({"n": n, "text": "x" * 20}) for n in range(2000)) + "]")
        with stream._opened(path) as opened:
            scanner = stream._Scanner(path, opened, 1000)
            assert sum(1 for _ in scanner.elements()) == 2000
            assert len(scanner._text) < 300

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[\n {"a": 1},\n {"a": }\n]', "line 3, column 8: Expecting value"),
            ('[{"a": 1} {"a": 2}]', "line 1, column 11: expected ','"),
            ('[{"a": 1},', "line 1, column 11: Expecting value, but the file ends"),
            ('[{"a": "cut', "line 1, column 8: Unterminated string starting at"),
            ("[1, 2] trailing", "line 1, column 8: something after the end"),
            ("[1, 2", "the file ends: is it complete?"),
            ("[" + "[" * 100_000 + "]", "nested too deeply"),
            ('{"a": 1}', "should be an array of samples, and begins with '{'"),
            ("", "is empty"),
            (" \n ", "should be an array of samples, and begins with ''"),
        ],
    )
    def test_says_where_a_file_is_broken(self, file: Callable[..., Path], text: str, message: str) -> None:
        with pytest.raises(VPPError) as error:
            list(stream_array(file(text)))
        assert message in str(error.value)

    def test_columns_count_from_the_last_line_break_across_windows(
        self, file: Callable[..., Path], tiny_chunks: None
    ) -> None:
        with pytest.raises(VPPError, match="line 3, column 5"):
            list(stream_array(file('[\n  "é",\n  1,,\n]')))

    @pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
    def test_other_encodings_are_named(self, file: Callable[..., Path], encoding: str) -> None:
        with pytest.raises(VPPError, match=r"is not UTF-8 text .* Save it as UTF-8"):
            list(stream_array(file('["é"]'.encode(encoding))))

    def test_a_byte_order_mark_is_no_obstacle(self, file: Callable[..., Path]) -> None:
        assert list(stream_array(file(b"\xef\xbb\xbf[1]"))) == [1]

    def test_a_key_that_is_not_there(self, file: Callable[..., Path]) -> None:
        with pytest.raises(VPPError, match="holds no array named 'data'"):
            list(stream_array(file('{"other": [1]}'), "data"))

    @pytest.mark.parametrize(
        ("rest", "message"),
        [
            (', "data": [2]}', "the key 'data' stands twice"),
            (', "more": [{"a": 1}, 2], "more": 3}', "the key 'more' stands twice"),
            (', "more": [2, 3', "the file ends: is it complete?"),
            ("} junk", "something after the end of the object"),
        ],
    )
    def test_what_follows_the_array_under_a_key_is_looked_at(
        self, file: Callable[..., Path], rest: str, message: str
    ) -> None:
        """Reading ended with the array, so that a second one, and a file that was cut off, went unnoticed."""
        with pytest.raises(VPPError) as error:
            list(stream_array(file('{"data": [1]' + rest), "data"))
        assert message in str(error.value)

    def test_an_element_beyond_the_limit_is_a_broken_file(self, file: Callable[..., Path], tiny_chunks: None) -> None:
        with pytest.raises(VPPError, match="line 1, column 2"):
            list(stream_array(file('["' + "x" * 1000), largest=100))

    def test_huge_numbers_become_infinite_and_nan_stays(self, file: Callable[..., Path]) -> None:
        whole, real, nan = stream_array(file("[" + "9" * 5000 + ", 1e999, NaN]"))
        assert whole == real == math.inf
        assert math.isnan(nan)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for name, message in (("missing", "does not exist"), ("", "is a folder"), ("loop", "cannot be opened")):
            with pytest.raises(VPPError, match=message):
                list(stream_array(tmp_path / name))


class TestLines:
    @FROM_FIXTURES
    @given(values=st.lists(JSON, min_size=1, max_size=6))
    def test_yields_what_json_would_load(self, file: Callable[..., Path], values: list[Any]) -> None:
        assert list(stream_lines(file("\n\n".join(map(json.dumps, values))))) == values

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": 1}\n{"a": oops}\n', "line 2, column 7: Expecting value"),
            ('{"a": 1}\n[' + "[" * 100_000, "line 2, column 1: nested too deeply"),
            ("\n \n", "is empty"),
        ],
    )
    def test_says_where_a_file_is_broken(self, file: Callable[..., Path], text: str, message: str) -> None:
        with pytest.raises(VPPError) as error:
            list(stream_lines(file(text)))
        assert message in str(error.value)

    def test_a_line_of_another_encoding(self, file: Callable[..., Path]) -> None:
        with pytest.raises(VPPError, match=r"not UTF-8 text \(line 2"):
            list(stream_lines(file(b'{"a": 1}\n{"a": "\xe9"}\n')))

    def test_a_line_beyond_the_limit(self, file: Callable[..., Path]) -> None:
        with pytest.raises(VPPError, match="line 2, is longer than 20 bytes"):
            list(stream_lines(file('{"a": 1}\n{"a": "' + "x" * 50 + '"}\n'), largest=20))


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\n{"a": 1}\n{"a": 2}'])
def test_records_are_elements_or_lines(file: Callable[..., Path], text: str) -> None:
    assert list(stream_records(file(text))) == [{"a": 1}, {"a": 2}]
