"""What the documents say: their commands and snippets run, their tables are those of the committed results."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
import typer
from typer.testing import CliRunner

from slimse.cli import app
from slimse.demo import bundled_clip

for package in ("matplotlib", "pesq", "speechmos"):
    pytest.importorskip(package, reason="documents use the extra slimse[test]")

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- not run: (\S.+?) -->\n)?```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = typer.main.get_command(app).commands


@dataclass
class Block:
    """A fenced block of a page, and why it does not run, if it does not."""

    reason: str | None
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(match[1] or None, match[2], match[3]) for match in FENCE.finditer(page.read_text())]


def commands(code: str) -> list[list[str]]:
    """The single commands of a block, as lists of words, without comments."""
    words = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    joined = [word for line in words for word in (*line, "&&")]
    found: list[list[str]] = [[]]
    for word in joined:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command]


def check_words(words: list[str]) -> None:
    """What can be said of a command without running it: the program, its options and its extras exist."""
    options = {word.split("=")[0] for word in words if word.startswith("-")}
    if "slimse" in words:
        # Also behind `python -m` or `torchrun ... -m`, whose own options come first.
        words = words[words.index("slimse") + 1 :]
        words = [word for word in words if word != "--traceback"]
        assert words and words[0] in COMMANDS, words
        known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts} | {"--help"}
        assert {word for word in words if re.match("--?[a-z]", word)} <= known, words
    elif words[0] == "python":
        name = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        script = (ROOT / name).read_text()
        options -= {"-m"}
        assert all(f'"{option}"' in script for option in options), words
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"\[(.*)\]", words[-1])
        assert extras is None or f'"{extras[1]}":' in (ROOT / "setup.py").read_text(), words
    else:
        assert words[0] in {"pytest", "ruff", "mypy", "mkdocs", ".ci/run", "bench/gpu_run.sh"}, words


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the documents speak of."""
    samples, rate = soundfile.read(bundled_clip(), dtype="float32")
    (tmp_path / "recordings" / "monday").mkdir(parents=True)
    for name, part in (
        ("noisy.wav", samples[:16_000]),
        ("talk.wav", samples[:16_000]),
        ("recordings/monday/one.wav", samples[:8_000]),
        ("recordings/two.flac", samples[8_000:16_000]),
        ("noisy/one.wav", samples),
        ("clean/one.wav", 0.5 * samples),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, part, rate)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page, workplace):
    """Python blocks of a page share one namespace, as in one session; commands run in one folder."""
    names = {"__name__": "snippet"}
    for block in blocks(page):
        if block.language == "python":
            code = compile(block.code, str(page), "exec")
            if block.reason is None:
                exec(code, names)
            continue
        for words in commands(block.code):
            check_words(words)
            if block.reason is None and words[0] == "slimse":
                result = CliRunner().invoke(app, ["--traceback", *words[1:]], catch_exceptions=False)
                assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page):
    text = FENCE.sub("", page.read_text())
    for code in re.findall(r"`((?:slimse|python|pip|pytest) [^`]+)`", text):
        for words in commands(code):
            if words != ["slimse"] and "..." not in words:
                check_words(words)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_tables_are_those_of_the_committed_results():
    from bench.tables import DOCUMENTS, filled, tables

    makers, found = tables(), ""
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        assert filled(text, makers) == text, f"{document}: run python -m bench.tables"
        found += text
    assert all(f"<!-- table: {name} -->" in found for name in makers)
    with pytest.raises(ValueError, match="nothing"):
        filled("<!-- table: nothing -->\n<!-- end of table -->", makers)
