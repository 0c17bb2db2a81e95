"""What the documentation says is so: links lead somewhere, commands and options exist, examples run, messages are ours.

All of it without the generator; building the pages is `python -m sphinx -W -c docs . build/docs`.
"""

import ast
import doctest
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import infoprune
from infoprune import cli
from infoprune.config import recipe, registry
from infoprune.pipeline import settings
from tests.cli.test_cli import call

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
NOTES = sorted((ROOT / "benchmarks" / "results").rglob("*.md"))
RECIPES = list(recipe.shipped().values())
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the generator make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*PAGES, *NOTES], ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)} links to {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(path)} links to {target}, which has no such heading"


def test_every_page_is_in_the_contents() -> None:
    listed = {line for block in blocks(ROOT / "docs" / "index.md", "{toctree}") for line in block.split()}
    for path in DOCS:
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name in listed or name == "index", f"{name} is in no table of contents"


def test_every_analysis_has_a_page_and_every_public_name_a_place() -> None:
    baselines = (ROOT / "docs" / "analyses" / "baselines.md").read_text()
    for name in registry.names("analyses"):
        page = ROOT / "docs" / "analyses" / f"{name}.md"
        assert page.exists() or f"`{name}`" in baselines, f"no page says what {name} is"
        if page.exists():
            heads = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
            assert [head for head in heads if head != "Where the paper errs"] == [
                "When to trust it", "Flags", "Cost", "Options",
            ], f"{name}: {heads}"  # fmt: skip
            needs: Any = registry.find("analyses", name)
            assert ("Needs labels" in page.read_text()) == needs.needs_labels, f"{name}: what it needs"
    api = (ROOT / "docs" / "api.md").read_text()
    for name in infoprune.__all__:
        assert f" infoprune.{name}\n" in api or name == "__version__", f"{name} is not in docs/api.md"


def commands(path: Path) -> Iterator[list[str]]:
    """Every command line of ours in a page or in a recipe's comments: as code of its own, and within text."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^(?:    |#   )((?:[\w./]+/|torchrun .*-m )?infoprune [^\n]*)", text, re.MULTILINE)
    found += re.findall(r"`(infoprune [^`]+)`", text)
    for line in found:
        line = re.sub(r"\s+#\s.*|\s{3,}.*|\s+>\s.*", "", line[line.index("infoprune ") :].replace("\n", " "))
        words = [word for word in shlex.split(line)[1:] if word not in ("--help", "…")]
        if words and not words[0].isupper():
            yield words


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: path.name)
def test_commands_exist_and_take_what_is_shown(path: Path) -> None:
    for words in commands(path):
        command = cli.main.commands.get(words[0])
        assert command is not None or words[0].startswith("-"), f"no command in: infoprune {' '.join(words)}"
        if command is None:
            continue
        try:
            context = command.make_context(words[0], list(words[1:]))
        except click.MissingParameter:  # a command named without its recipe
            continue
        for override in context.params.get("overrides") or context.params.get("given") or ():
            dotted = override.partition("=")[0]
            assert dotted.isupper() or known_option(dotted), f"no option {dotted}: infoprune {' '.join(words)}"


def known_option(dotted: str) -> bool:
    """Whether an option exists; those of models and data sets may be any of ours'."""
    table, _, key = dotted.rpartition(".")
    if key in ("name", "weights"):
        return table in ("model", "data")
    heads = [name for name in settings.tables() if name == table or name.startswith(f"{table}.")]
    return any(key == row[0] for name in heads for row in settings.describe(name))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_modules_named_as_commands_exist(path: Path) -> None:
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)\b(?!\.…)", path.read_text(encoding="utf-8")):
        place = ROOT / module.replace(".", "/")
        runs = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
        assert runs, f"{name_of(path)}: no {module}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_recipe_tables_bind(path: Path) -> None:
    for block in blocks(path, "toml"):
        for table, rows in tomllib.loads(block).items():
            flat = {f"{table}.{key}": value for key, value in rows.items()}
            if table == "analyses":
                flat = {f"analyses.{name}.{key}": value for name, own in rows.items() for key, value in own.items()}
                assert set(rows) <= set(registry.names("analyses"))
            if table not in ("model", "data") or ":" not in rows.get("name", ""):
                for dotted in flat:
                    assert known_option(dotted), f"{name_of(path)}: no option {dotted}"


def test_messages_are_quoted_as_they_are_printed() -> None:
    known = []
    for path in (ROOT / "infoprune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                known.append("…".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.append(node.value)
    page = ROOT / "docs" / "troubleshooting.md"
    quoted = [cell for row in re.findall(r"^\| (`.+?) \|", prose(page), re.MULTILINE) for cell in cells(row)]
    assert len(quoted) > 30
    for message in quoted:
        parts = [part.strip(" ;") for part in message.split("…") if part.strip(" ;")]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in known), f"nothing says: {message}"


def cells(row: str) -> list[str]:
    return [cell for cell in re.findall(r"`([^`]+)`", row) if " " in cell]


def test_costs_are_those_of_the_note() -> None:
    note = (ROOT / "benchmarks" / "results" / "all-analyses-resnet56.md").read_text()
    measured = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", note, re.MULTILINE))
    whole = re.findall(r"(\d+) s in all", note)[0]
    table = (ROOT / "docs" / "analyses" / "index.md").read_text()
    for name, seconds in measured.items():
        assert f"| {name} | {seconds} |" in table
        page = (ROOT / "docs" / "analyses" / f"{name}.md").read_text()
        assert f"{seconds} s of the {whole} s" in page


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_examples_in_python_hold(path: Path) -> None:
    for block in blocks(path, "python"):
        if ">>>" not in block:
            compile(block, name_of(path), "exec")
        elif path.name != "README.md":  # which pytest collects
            example = doctest.DocTestParser().get_doctest(block, {}, name_of(path), None, 0)
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_the_examples_of_own_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "own.md"
    for file, code in zip(("nets.py", "data.py", "energy.py"), blocks(page, "python"), strict=True):
        (tmp_path / file).write_text(code)
    tables = [block for block in blocks(page, "toml") if ".py:" in block]
    text = "# mine\n" + "".join(tables).replace('weights = "my_net.safetensors"', "")
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    options = ["calibration.batches=2", "calibration.batch_size=32", "plan.rank_by=energy.py:ActivationEnergy"]
    result = call("prune", "mine.toml", *(part for option in options for part in ("--set", option)))
    assert result.exit_code == 0, result.output
    assert "equals its masked reference model" in result.stdout
    assert "energy.py:ActivationEnergy" in call("plan", "mine.toml", *(p for o in options for p in ("--set", o))).stdout


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: path.name)
def test_options_named_in_text_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"--set ([a-z_]+(?:\.\w+)+)=", text)
    named += [f"{table}.{key}" for table, key in re.findall(r"`\[(\w+)\] (\w+)(?:`| = )", text)]
    for dotted in set(named) - {"table.key"}:
        assert known_option(dotted), f"no option {dotted}"
