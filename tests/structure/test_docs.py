"""The pages: their width and length, what they name, and what is written from the code."""

import importlib.util
import itertools
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

from m2kit.cli import cli
from m2kit.errors import install

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def pages():
    """Every page of the project, as a path from its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def links(name):
    """Files of the project that a page links, from the root."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(name)):
        if not target.startswith("http"):
            path = ((ROOT / name).parent / target).resolve()
            yield str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", pages())
def test_no_line_is_over_100_columns(name):
    lines = text_of(name).splitlines()
    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.parametrize("name", pages())
def test_every_link_leads_somewhere(name):
    for target in links(name):
        assert (ROOT / target).exists(), target
    headings = {}
    for page, anchor in re.findall(r"\]\(([\w/.-]*\.md)#([\w-]+)\)", text_of(name)):
        path = (ROOT / name).parent / page
        found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        headings[page] = {title.lower().replace(" ", "-") for title in found}
        assert anchor in headings[page], f"{page}#{anchor}"


def test_every_page_of_the_docs_is_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.endswith(".md"):
            reached.add(page)
            waiting += links(page)
    assert {name for name in pages() if name.startswith("docs/")} <= reached


# Of the house that is being built; what stands is taken out, and in the end the set itself.
def test_every_file_a_page_names_exists():
    """decisions.md has the names of their day."""
    missing = set()
    folders = "toolkit|training|export|engines|runtime|tests|docs|examples"
    for page in set(pages()) - {"docs/decisions.md", "CHANGELOG.md"}:
        for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*[\w/]", text_of(page)):
            if "NAME" not in name and not (ROOT / name).exists():
                missing.add(name)
    assert not missing


def test_the_house_is_told_on_few_lines():
    assert len(text_of("docs/architecture.md").splitlines()) <= 120
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 100


def test_a_newcomer_finds_guidance_the_cache_and_the_way_to_add_a_backend():
    house = text_of("docs/architecture.md")
    for question in ("guidance applied", "KV cache written", "backend added"):
        assert question in house
    assert "register(BackendKind" in text_of("CONTRIBUTING.md")


def test_the_commands_page_is_what_the_commands_say(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # the page does not depend on a terminal
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "docs" / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = text_of("docs/cli.md")
    assert page == module.page(), "`make docs` writes it anew"
    for name in cli.commands:
        assert f"\n## m2kit {name}\n" in page


def test_the_commands_of_the_docs_have_the_options_they_name(tmp_path, monkeypatch):
    """Pages whose commands are not run: a mistyped option would still be seen."""
    monkeypatch.chdir(tmp_path)
    found = 0
    for page in set(pages()) - {"docs/cli.md"}:
        text = text_of(page)
        fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
        lines = re.findall(r"^ *(m2kit .*)$", fenced, flags=re.MULTILINE)
        lines += re.findall(r"^ +(m2kit .*)$", text, flags=re.MULTILINE)
        lines += [" ".join(span.split()) for span in re.findall(r"`(m2kit [a-z][^`]*)`", text)]
        for line in lines:
            _, name, *words = shlex.split(line, comments=True)
            command = cli.commands[name]
            if name == "train":
                name, *words = words or ["tokenizer"]
                command = command.commands[name]
            for option, value in itertools.pairwise(words):
                if option == "--data":  # must be there, or be a name
                    (tmp_path / value).mkdir(exist_ok=True)
            if words:  # a command alone is spoken of, not run
                command.make_context(name, words).close()
                found += 1
    assert found >= 20


def test_what_is_on_no_package_index_is_installed_from_the_clone():
    """The name m2kit is not ours there."""
    folders = ("toolkit", "training", "export", "engines", "runtime")
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in [*(ROOT / page for page in pages()), *modules]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"install (-\S+ )*['\"]?m2kit\b", text), path
    assert install("cpu") == "pip install '.[cpu]' in the clone of m2kit"


def test_make_help_lists_every_target():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE).group(1)
    assert set(phony.replace("\\", " ").split()) == targets
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    told = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", done.stdout, flags=re.MULTILINE))
    assert set(told) == targets


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    for name in pages():
        named = re.findall(r"(?:`|^ {4})make\s([a-z-]+)", text_of(name), flags=re.MULTILINE)
        assert set(named) <= targets, name


def test_hooks_and_workflow_run_what_a_person_runs():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (\S+)", hooks) == ["local"]  # nothing is downloaded
    assert set(re.findall(r"language: (\S+)", hooks)) == {"system"}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run\n" in workflow
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f" {version}\n" in workflow
