"""The examples of the documentation: fenced blocks become files and commands, and outputs are compared with real ones.

    ```python title="test_model.py"     a file of the page's folder; given again, it replaces the first
    ```diff title="test_model.py"       a change to that file
    ```console                          `$ pytest ...`, `$ python ...` and `$ torchrun ...` are run there ...
    ```text part="failure"              ... and what they print stands here: "all" of it, its "failure" or its "summary"

`numbers="any"` in a text block compares the words alone. A console block without a text block behind it is only read.
`cwd="example_project"` runs a command in that folder of the repository, `norun` in a block leaves it alone, and Python
without a title must at least parse.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
_OPTION = re.compile(r'(\w+)="([^"]*)"')
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
_SECTION = re.compile(r"^=+ (.*?) =+$")
_CONFIGS = ("pytest.ini", "pyproject.toml")
# Numbers of one page may differ between processors; the words around them may not.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Block:
    """One fenced block: the lines between `start` and `end` of the page."""

    language: str
    options: dict[str, str]
    flags: tuple[str, ...]
    text: str
    start: int
    end: int
    indent: str = ""


@dataclass(frozen=True)
class Example:
    """One command with the block that shows its output."""

    command: str
    block: Block
    actual: str

    @property
    def up_to_date(self) -> bool:
        return same(self.block.text, self.actual, numbers=self.block.options.get("numbers") != "any")


def pages() -> list[Path]:
    """README and every page of the documentation that has examples to run."""
    found = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [path for path in found if "_build" not in path.parts and any(_commands(blocks_of(path.read_text("utf-8"))))]


def needs_of(path: Path) -> list[str]:
    """The modules that a page says it needs: `<!-- needs: lightning -->`."""
    return re.findall(r"^<!-- needs: (\w+) -->$", path.read_text("utf-8"), re.MULTILINE)


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = number, fence["info"].strip(), fence["indent"]
        elif not fence["info"].strip():
            found.append(_block(opened, number, lines))
            opened = None
    return found


def _block(opened: tuple[int, str, str], end: int, lines: Sequence[str]) -> Block:
    start, info, indent = opened
    language, _, rest = info.partition(" ")
    flags = tuple(_OPTION.sub("", rest).split())
    text = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : end])
    return Block(language, dict(_OPTION.findall(rest)), flags, text, start + 1, end, indent)


def _commands(blocks: Sequence[Block]) -> Iterator[tuple[Block, Block]]:
    """Console blocks with the text blocks that follow them."""
    command: Block | None = None
    for block in blocks:
        if block.language == "console":
            command = None if "norun" in block.flags else block
        elif block.language == "text" and command is not None and "norun" not in block.flags:
            yield command, block
            if "part" not in block.options:
                command = None  # whatever follows is an illustration; more parts of one run say so


# --- running a page


def run_page(path: Path, folder: Path) -> Iterator[Example]:
    """Write the page's files and run its commands, in order; one example per block of output."""
    blocks = blocks_of(path.read_text("utf-8"))
    if not any(block.options.get("title") in _CONFIGS for block in blocks):
        (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
    shown = dict[int, list[Block]]()
    for command, block in _commands(blocks):
        shown.setdefault(command.start, []).append(block)
    for block in blocks:
        if "title" in block.options and "norun" not in block.flags:
            _write(folder / block.options["title"], block)
        elif block.language in ("python", "pycon") and "norun" not in block.flags:
            ast.parse(block.text)
        for output in shown.get(block.start, []):
            yield _example(block, output, folder, shown[block.start][0] is output)


_outputs: dict[str, str] = {}


def _example(block: Block, output: Block, folder: Path, first: bool) -> Example:
    """The last command of a console block; those before it only prepare. A second block shows more of the same run."""
    commands = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    where = REPOSITORY / block.options["cwd"] if "cwd" in block.options else folder
    if first:
        for command in commands:
            _outputs[str(folder)] = run(command, where, folder)
    return Example(commands[-1], output, part_of(_outputs[str(folder)], output.options.get("part", "all")))


def _write(path: Path, block: Block) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = block.text + "\n"
    path.write_text(changed(path.read_text("utf-8"), block) if block.language == "diff" else text, "utf-8")


def changed(text: str, block: Block) -> str:
    """`text` after the hunks of a diff, which are told apart by lines of `@@`."""
    for hunk in re.split(r"^@@.*\n", block.text + "\n", flags=re.MULTILINE):
        lines = hunk.splitlines()
        old = "".join(line[1:] + "\n" for line in lines if line[:1] != "+")
        new = "".join(line[1:] + "\n" for line in lines if line[:1] != "-")
        if old and text.count(old) != 1:
            raise ValueError(f"line {block.start}: the diff fits {text.count(old)} places of {block.options['title']}")
        text = text.replace(old, new) if old else text + new
    return text


def run(command: str, where: Path, folder: Path) -> str:
    """What a command prints, in a process that already has torch."""
    # A fork of a server that has loaded torch starts in no time; the server itself has no threads to lose.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "hypothesis"])  # an optimizer loads dynamo
    target = folder / ".output"
    process = context.Process(target=_child, args=(command, str(where), str(target)))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{command} took more than 300 s")
    text = target.read_text("utf-8", errors="replace")
    text = re.sub(r"(/[^\s/]+)+/site-packages/", "site-packages/", text)
    return text.replace(str(where) + "/", "").replace(str(where), ".").replace(str(REPOSITORY) + "/", "")


def _child(command: str, where: str, target: str) -> None:
    program, *arguments = shlex.split(command)
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "NANSTAB_"))]:
        del os.environ[name]
    for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS"):
        os.environ.pop(name, None)
    plugins = "-p nanstab -p hypothesispytest -p no:cacheprovider" + (" -p xdist" if "-n" in arguments else "")
    if program == "pytest":
        plugins += " --hypothesis-seed=3"  # shrinking ends at another example for some seeds
    os.environ |= {"COLUMNS": "80", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": plugins}
    os.chdir(where)
    sys.dont_write_bytecode = True
    with open(target, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as we do
        _run_here(program, arguments)
        sys.stdout.flush()


def _run_here(program: str, arguments: list[str]) -> None:
    sys.argv = arguments
    if program == "pytest":
        import pytest

        sys.argv = [program, *arguments]
        pytest.main(arguments)
    elif program == "torchrun":
        sys.argv = [program, *arguments]
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    elif program == "python" and arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif program == "python":
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        raise ValueError(f"a page can run pytest, python and torchrun, not {program}")


# --- reading an output


def part_of(output: str, part: str) -> str:
    """The part of a session's output that a page shows."""
    lines = [line.rstrip() for line in output.splitlines()]
    started = next((n for n, line in enumerate(lines) if re.match(r"(collecting \.\.\. )?collected ", line)), 0)
    if part == "all":
        return "\n".join(lines[started:]).strip("\n")
    sections = _sections(lines)
    names = {"failure": ("FAILURES", "ERRORS"), "summary": ("nanstab",)}[part]
    return "\n".join(line for name, body in sections for line in body if name in names).strip("\n")


def _sections(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The sections of pytest's output by name; that of failures without its rule, that of the plugin with it."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        rule = _SECTION.match(line)
        if rule is not None:
            found.append((rule[1], [] if rule[1] in ("FAILURES", "ERRORS") else [line]))
        else:
            found[-1][1].append(line)
    return found


def same(shown: str, actual: str, *, numbers: bool = True) -> bool:
    """Whether the page shows what was printed, apart from times, wrapping and the last digits of numbers.

    Without `numbers` only the words count: for what depends on data that other versions of a library make.
    """
    if not numbers:
        return _words(_wordless(shown)) == _words(_wordless(actual))
    expected, found = _words(shown), _words(actual)
    return len(expected) == len(found) and all(map(_alike, expected, found))


def _wordless(text: str) -> str:
    """The text with every number, and every list of numbers, as one sign."""
    joined = " ".join(text.split())
    return re.sub(r"#(?:,? #)*(?: … and # more)?", "#", _NUMBER.sub("#", joined))


def _words(text: str) -> list[str]:
    text = re.sub(r"\bin \d+\.\d+s\b|\b\d+\.\d+ s\b", "TIME", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0xADDRESS", text)
    text = re.sub(r"[=_-]{3,}", " ", text)
    return text.split()


def _alike(expected: str, found: str) -> bool:
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", found):
        return False
    numbers = ((float(a), float(b)) for a, b in zip(_NUMBER.findall(expected), _NUMBER.findall(found), strict=True))
    return all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) for a, b in numbers)


def refreshed(text: str, examples: Sequence[Example]) -> str:
    """The page with the outputs of the examples in place of the old ones, where they differ."""
    lines = text.splitlines()
    for example in sorted(examples, key=lambda item: item.block.start, reverse=True):
        if not example.up_to_date:
            indent = example.block.indent
            new = [(indent + line).rstrip() for line in example.actual.splitlines()]
            lines[example.block.start : example.block.end] = new
    return "\n".join(lines) + "\n"
