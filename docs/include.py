"""Bring the code on the pages up to date: `python docs/include.py`. It is that of files which run.

What stands on a page between these two marks is a file, or sections of it with the imports that they need; of a table
in Markdown, the rows that end with one of these words (`benchmarks/results.md:pass+fail`):

    <!-- from examples/families/llava.py:load+attach -->
    <!-- end -->

Below a mark of mkdocstrings (`::: vpp_plugins.attach`) stand the names that it shows, each with its first sentence, for
who reads the page on a code host; the site hides them (`stylesheets/pages.css`).
"""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
INCLUDED = re.compile(r"(<!-- from ([^\s:]+)(?::([\w+]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
REFERENCE = re.compile(
    r'^(::: (\S+)\n(?: +options:\n +members: \[([^]]*)]\n)?)(?:\n<div class="code-host">\n.*?</div>\n)?',
    re.MULTILINE | re.DOTALL,
)
WIDTH = 86
"""Columns of code that fit beside navigation and contents on a screen of 1,280 pixels."""
_COMMENT = re.compile(r"^( *)((?:\S.*  )?)# (.*)$", re.MULTILINE)


def main() -> None:
    for page in PAGES:
        page.write_text(brought_up_to_date(page.read_text()))


def brought_up_to_date(page: str) -> str:
    """Return a page's text with what it includes, and names, as the files have it now.

    Raises ValueError for a mark that cannot be read: what stands below it would never change.
    """
    if page.count("<!-- from ") > len(INCLUDED.findall(page)):
        raise ValueError("a mark is not written as `<!-- from FILE:ONE+ANOTHER -->`, or has no end")
    page = REFERENCE.sub(
        lambda found: f'{found[1]}\n<div class="code-host">\n\n{_names(found[2], found[3])}\n</div>\n', page
    )
    return INCLUDED.sub(lambda found: f"{found[1]}{_shown(ROOT / found[2], found[3])}{found[4]}", page)


def _names(path: str, members: str | None) -> str:
    """Return a list of what a mark of mkdocstrings shows: an object, or a module's members."""
    shown = resolve_name(path)
    if not inspect.ismodule(shown):
        return _named(path.rpartition(".")[2], shown)
    own = [name for name, one in vars(shown).items() if getattr(one, "__module__", "") == path and name[0] != "_"]
    names = members.split(", ") if members else getattr(shown, "__all__", own)
    return "".join(_named(name, getattr(shown, name)) for name in names)


def _named(name: str, shown: object) -> str:
    said = inspect.getdoc(shown) if inspect.isroutine(shown) or inspect.isclass(shown) else None
    return f"- `{name}`: {said.splitlines()[0]}\n" if said else f"- `{name}`\n"


def _shown(path: Path, sections: str | None) -> str:
    text = path.read_text()
    if path.suffix == ".md":
        return _rows(text, sections.split("+")) if sections else text
    if sections is not None:
        text = _with_imports(text, "".join(_section(text, name) for name in sections.split("+")))
    return f"```python\n{_narrow(text)}```\n" if path.suffix == ".py" else f"```{path.suffix[1:]}\n{text}```\n"


def _rows(text: str, ends: list[str]) -> str:
    lines = text.partition("\n\n- ")[0].splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
    return "\n".join(
        [*lines[: rule + 1], *(row for row in lines[rule + 1 :] if row.split("|")[-2].strip() in ends), ""]
    )


def _section(text: str, name: str) -> str:
    found = re.search(rf"\[start:{name}]\n(.*?)^ *# --8<-- \[end:{name}]", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"there is no section {name}")
    return textwrap.dedent(found[1])


def _with_imports(text: str, code: str) -> str:
    """Return a part of a file's code after those of its imports that the part needs, in the file's groups."""
    named = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    groups, end = [""], 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            groups += [""] * (node.lineno > end + 1)
            end = node.end_lineno or 0
            node.names = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in named]
            groups[-1] += f"{ast.unparse(node)}\n" if node.names else ""
    return "\n".join(filter(None, [*groups, code]))


def _narrow(code: str) -> str:
    """Return code as wide as a page's column; a comment that stands too far right goes above its line."""
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", f"--line-length={WIDTH}", "-"]
    return subprocess.run(ruff, input=_COMMENT.sub(_above, code), text=True, capture_output=True, check=True).stdout


def _above(found: re.Match[str]) -> str:
    indent, statement, comment = found.groups()
    if len(found[0]) <= WIDTH:
        return found[0]
    mark = f"{indent}# "
    lines = textwrap.wrap(comment, WIDTH, initial_indent=mark, subsequent_indent=mark)
    return "\n".join([*lines, *([indent + statement.rstrip()] if statement else [])])


if __name__ == "__main__":
    main()
