"""What the README and the pages show as Python or TOML works as it stands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from spikecl.experiments import parse_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "hardware" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python")):
        code = compile(block, f"{page.name}[{number}]", "exec", dont_inherit=True)
        exec(code, names)
    assert capsys.readouterr().out or page.name == "concepts.md"


def test_the_readme_has_one_short_example():
    (example,) = blocks(ROOT / "README.md", "python")
    assert len(example.splitlines()) <= 16


def test_the_readme_example_shows_the_difference(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(blocks(ROOT / "README.md", "python")[0], {"__name__": "page"})
    (_, plain, _), (_, hlop, _) = (line.split() for line in capsys.readouterr().out.splitlines())
    assert float(hlop) > float(plain)
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_blocks_are_configurations(page):
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if "project" not in table:
            parse_config(table)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
        parent = ROOT if target.startswith("notebooks/") else page.parent
        assert (parent / target).exists(), target
