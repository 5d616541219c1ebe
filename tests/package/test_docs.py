"""The documentation: links, examples, commands, names of code and figures in it are true."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import yaml

import stdeform

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "benchmarks", "examples", "tests")
PAGES = sorted(
    page for name in ("", *FOLDERS) for page in ROOT.glob(f"{name}/**/*.md" if name else "*.md")
)
RESULTS = ROOT / "benchmarks" / "results" / "RESULTS.md"
YAML = [ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", *ROOT.glob(".github/**/*.yml")]
LINK = r"\]\(([^)\s]+)\)"
# Links of pages that are also read elsewhere, as the README is on PyPI.
OURS = (
    r"https://(?:github\.com/stdeform/stdeform/(?:blob|tree)"
    r"|raw\.githubusercontent\.com/stdeform/stdeform)/main/"
)


def pages(besides: str = "") -> pytest.MarkDecorator:
    chosen = [page for page in PAGES if page.name != besides]
    return pytest.mark.parametrize("page", chosen, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_somewhere(link: str, page: Path) -> bool:
    """Whether a link into this project has a target; others are not looked at."""
    ours = re.match(OURS, link)
    if "://" in link and not ours:
        return True
    name, _, anchor = link[ours.end() if ours else 0 :].partition("#")
    target = ((ROOT if ours else page.parent) / name).resolve() if name else page
    if ours and target.is_dir() != ("/tree/" in ours[0]):
        return False
    return target.exists() and (not anchor or anchor in anchors(target))


@pages()
def test_links_lead_somewhere(page: Path) -> None:
    assert "@@" not in page.read_text(), "a place that was to be filled"
    links = re.findall(LINK, page.read_text())
    assert [link for link in links if not leads_somewhere(link, page)] == []


def test_addresses_outside_of_pages_lead_somewhere() -> None:
    files = [ROOT / "pyproject.toml", *YAML]
    links = [
        (link, file) for file in files for link in re.findall(OURS + r"[\w./#-]+", file.read_text())
    ]
    assert len(links) > 2
    assert [link for link, file in links if not leads_somewhere(link, file)] == []


def test_links_of_the_readme_work_elsewhere() -> None:
    links = re.findall(LINK, (ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link] == []
    assert sum(re.match(OURS, link) is not None for link in links) > 10


# Other projects' code is run by tests/integrations/test_migrate.py. The warning is torch.export's.
@pages(besides="migrate.md")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.usefixtures("needs_native")
def test_python_runs(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "docs/guide/operators.md"])
def test_users_find_examples(page: str) -> None:
    assert "```python" in (ROOT / page).read_text()


@pytest.mark.parametrize("module", ["export", "functional", "modules", "shapes"])
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.usefixtures("needs_native")
def test_docstrings(module: str) -> None:
    names = {"torch": importlib.import_module("torch"), **vars(stdeform)}
    result = doctest.testmod(importlib.import_module(f"stdeform.{module}"), extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_operators_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "guide" / "operators.md").read_text()
    missing = [name for name in stdeform.__all__ if name not in text and name != "__version__"]
    assert not missing


@pages()
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"^([\w-]+%?):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = re.compile("|".join(target.replace("%", r"[\w-]+") for target in targets))
    broken = [
        f"make {target}"
        for target in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)
        if not known.fullmatch(target)
    ]
    for module, script in re.findall(r"python3? (?:-m ([\w.]+)|([\w/-]+\.py))", text):
        path = ROOT / (script or module.replace(".", "/"))
        if module.split(".")[0] in ("stdeform", "benchmarks", "tests") or script:
            found = path.is_file() or path.with_suffix(".py").is_file()
            if not found and not (path / "__main__.py").is_file():
                broken.append(script or module)
    assert not broken


def test_readme_is_a_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    assert "\n    stdeform\n" in text
    assert re.search(r"^stdeform = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_readme_figures_are_measured() -> None:
    measured = RESULTS.read_text()
    ratios = [float(ratio) for ratio in re.findall(r"\b([\d.]+)x", measured)]
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:1] == "|"]
    times = re.findall(r"[\d.]+ m?s\b", "\n".join(table))
    assert len(times) == 6
    assert [time for time in times if f"| {time} [" not in measured] == []
    for ratio in re.findall(r"([\d.]+)x", "\n".join(table)):
        digits = len(ratio.partition(".")[2])
        assert any(f"{measured_ratio:.{digits}f}" == ratio for measured_ratio in ratios), ratio


def test_the_architecture_page_names_what_exists() -> None:
    """Each `name` of a line occurs in one of the files named on that line."""
    page = ROOT / "docs" / "internals" / "architecture.md"
    wrong, checked = [], 0
    for line in page.read_text().splitlines():
        quoted = re.findall(r"`([^`]+)`", line)
        paths = [
            name for name in quoted if re.fullmatch(r"[\w./]+\.(py|pyi|cpp|h|cu|cuh|md)", name)
        ]
        wrong += [path for path in paths if not (ROOT / path).is_file()]
        texts = [(ROOT / path).read_text() for path in paths if (ROOT / path).is_file()]
        for name in quoted:
            if texts and re.fullmatch(r"[A-Za-z_]\w*", name):
                checked += 1
                if not any(re.search(rf"\b{name}\b", text) for text in texts):
                    wrong.append(f"{name} in {', '.join(paths)}")
    sources = [str(path) for room in ("stdeform", "csrc") for path in (ROOT / room).rglob("*.*")]
    diagrams = "".join(re.findall(r"^```$(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
    drawn = re.findall(r"[\w/]+\.(?:py|cpp|cuh|cu|h)\b", diagrams)
    wrong += [name for name in drawn if not any(path.endswith(f"/{name}") for path in sources)]
    assert not wrong
    assert checked > 30
    assert len(drawn) > 10


def test_folders_of_the_examples_import_those_above_them() -> None:
    """In the order of the table, which has them all."""
    page = (ROOT / "examples" / "README.md").read_text()
    folders = re.findall(r"^\| `defvis/(\w+)/`", page, re.MULTILINE)
    package = ROOT / "examples" / "defvis"
    assert sorted(folders) == sorted(file.parent.name for file in package.glob("*/__init__.py"))
    for place, folder in enumerate(folders):
        for file in (package / folder).glob("**/*.py"):
            imported = set(re.findall(r"^ *from defvis\.(\w+)", file.read_text(), re.MULTILINE))
            assert imported.isdisjoint(folders[place + 1 :]), file


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_yaml_parses(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_hooks_and_workflows_run_what_make_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repo["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lint is not None
    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint[1]))
    workflows = "".join(path.read_text() for path in ROOT.glob(".github/workflows/*.yml"))
    targets = set(re.findall(r"run: make (\w+)", workflows))
    assert targets == {"docs", "lint", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
