"""What people forget: the rules that hold for all programs, kept by reading the files instead of trusting anybody.

Programs are found by looking: every top-level *.py that is not one of the shared modules is one, so a new program
has to follow all of this from its first day.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

import rhombus_logging

ROOT = Path(__file__).resolve().parent.parent
SHARED = {  # shared module -> the programs that may import it, None for all of them
    "rhombus_logging": None,
    "rhombus_mpd_info": {"copy_footage"},
}
TOP_LEVEL = {
    *("copy_footage.py", "rtsp_recorder.py", "capture_analyzer.py", "nas_sync.py"),
    *("rhombus_mpd_info.py", "rhombus_logging.py"),
    *("config.yaml", "requirements.txt", "README.md", "LICENSE", "tests"),
}
MADE_BY_RUNNING = {"__pycache__", "demo_footage"}
HEAVY = {
    "requests",
    "urllib3",
    "yaml",
    "rich",
    "dateparser",
    "cv2",
    "boto3",
    "botocore",
    "numpy",
    "pydantic",
    "apprise",
    "sqlalchemy",
    "watchdog",
    "distributed",
    "awscrt",
}
# The aim is 1,500 lines for a program and 400 for a shared module. What is already longer may only shrink.
PROGRAM_LINES = 1600
LINES_NOW = {
    "copy_footage": 3237,
    "rtsp_recorder": 3626,
    "nas_sync": 4166,
    "capture_analyzer": 5283,
    "rhombus_logging": 1133,
    "rhombus_mpd_info": 417,
}
FUNCTION_LINES = 60  # hardly one function of the codebases that we look up to is longer
MAIN_LINES = 35
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
PROGRAMS = [name for name in SCRIPTS if name not in SHARED]

every_script = pytest.mark.parametrize("script", SCRIPTS)
every_program = pytest.mark.parametrize("program", PROGRAMS)


def source(name: str) -> str:
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def config_text() -> str:
    return (ROOT / "config.yaml").read_text(encoding="utf-8")


# --- the house ---


@pytest.mark.parametrize(
    "name", ["copy_footage.py", "config.yaml", "README.md", "requirements.txt", "LICENSE", ".ci/run"]
)
def test_what_a_user_is_promised_is_there(name):
    assert (ROOT / name).is_file()


def test_the_top_level_holds_only_what_the_design_names():
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert sorted(found - TOP_LEVEL - MADE_BY_RUNNING) == []


def test_no_file_carries_the_name_of_a_standard_library_module():
    ours = [*ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [str(path) for path in ours if path.stem in sys.stdlib_module_names] == []


# --- imports ---


def imported_modules(module: ast.AST) -> set[str]:
    """Top names of every import, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import does not work in a script"
            names.add((node.module or "").partition(".")[0])
    return names


def normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def listed_packages(file: Path) -> set[str]:
    """Also those that a user may leave out: their line is commented out, `# apprise>=1.9  # more channels`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    names = [re.match(r"(?:# )?([A-Za-z0-9._-]+)(?:\[.*?\])?>=", line) for line in lines]
    return {normalised(name[1]) for name in names if name}


@every_script
def test_a_script_imports_only_the_standard_library_its_listed_packages_and_the_shared_modules(script):
    listed = listed_packages(ROOT / "requirements.txt")
    distributions = packages_distributions()
    foreign = []
    for name in sorted(imported_modules(tree(script)) - set(sys.stdlib_module_names)):
        if name in SHARED:
            allowed = SHARED[name]
            if script in SHARED or (allowed is not None and script not in allowed):
                foreign.append(name)
        elif not {normalised(package) for package in distributions.get(name, [name])} & listed:
            foreign.append(name)
    assert foreign == []


@every_script
def test_importing_a_script_prints_nothing_and_starts_nothing(script, tmp_path):
    check = f"import threading, {script}; assert threading.active_count() == 1"
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {check}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def assigned_names(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]


@every_script
def test_a_script_has_no_module_state(script):
    """At the top stand imports, constants, classes and functions; nothing is computed from the world or kept there."""
    odd = []
    for node in tree(script).body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING"):
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            empty = ast.unparse(node.value) in ("{}", "[]", "set()", "dict()", "list()") if node.value else True
            if not empty and all(re.fullmatch(r"_?[A-Z][A-Za-z0-9_]*|log", name) for name in assigned_names(node)):
                continue
        odd.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    kept = [f"line {node.lineno}: global" for node in ast.walk(tree(script)) if isinstance(node, ast.Global)]
    assert odd + kept == []


# --- --help and flags ---


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every flag of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        elif action.option_strings and action.dest != "help":
            yield action


def flags_of(program: str) -> list[argparse.Action]:
    return list(actions(importlib.import_module(program).build_parser()))


@every_program
def test_help_ends_with_status_0_shows_examples_and_is_instant(program):
    """Instant is checked by what is imported, because time depends on the machine."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / f"{program}.py"), "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert sorted(imported & HEAVY) == []
    summary = inspect.cleandoc(ast.get_docstring(tree(program)) or "").partition("\n")[0]
    before_flags = done.stdout.partition("\noptions:")[0]
    assert summary in before_flags, "the docstring is the top of --help"
    examples = [line for line in before_flags.splitlines() if f"{program}.py " in line and "usage:" not in line]
    assert len(examples) >= 2
    flags = {flag for example in examples for flag in re.findall(r"(?<=\s)--?[a-z][a-z_]*", example)}
    known = {option for action in flags_of(program) for option in action.option_strings}
    assert sorted(flags - known) == [], "an example uses a flag that does not exist"


@every_program
def test_flags_are_declared_in_the_house_style(program):
    parser = importlib.import_module(program).build_parser()
    assert parser.allow_abbrev is False
    for action in flags_of(program):
        name = action.option_strings[-1]
        assert any(option.startswith("--") for option in action.option_strings), f"{name}: has no long name"
        assert all("-" not in option.lstrip("-") for option in action.option_strings), f"{name}: flags use underscores"
        assert action.help, f"{name}: has no help"
        assert not action.required, f"{name}: the config file may have it, so it is checked after parsing"
        if action.nargs != 0:
            assert action.metavar or action.choices, f"{name}: has no metavar"


def test_a_flag_means_the_same_in_every_program():
    meanings: dict[str, dict[str, Any]] = {}
    for program in PROGRAMS:
        for action in flags_of(program):
            kind = getattr(action.type, "__name__", str(action.type))
            meaning = (sorted(action.option_strings), type(action).__name__, kind, action.metavar, action.nargs)
            for option in action.option_strings:
                meanings.setdefault(option, {}).setdefault(str(meaning), program)
    differing = {option: list(found.items()) for option, found in meanings.items() if len(found) > 1}
    assert differing == {}


# --- what a reader is told ---


def lacks(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is None


@every_program
def test_every_flag_stands_in_the_readme(program):
    text = readme()
    options = [option for action in flags_of(program) for option in action.option_strings]
    assert [option for option in options if lacks(text, option)] == []


def config_keys(keys: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, key in keys.items():
        yield f"{above}.{name}", key
        yield from config_keys(key.keys, f"{above}.{name}")


def all_config_keys() -> list[tuple[str, Any]]:
    sections = rhombus_logging.CONFIG_KEYS.items()
    return [found for section, keys in sections for found in config_keys(keys, section)]


def test_every_config_key_stands_in_the_readme():
    """As `section.key`, or as `key` in backticks in a table about that section."""
    text = readme()
    parts = re.split(r"(?m)^#+ .*$|^$", text)
    missing = []
    for path, _key in all_config_keys():
        section, name = path.partition(".")[0], path.rpartition(".")[2]
        in_part = any(f"`{name}`" in part and not lacks(part, section) for part in parts)
        if lacks(text, path) and not in_part:
            missing.append(path)
    assert missing == []


def test_every_environment_variable_stands_in_the_readme():
    text = readme()
    assert [name for name in rhombus_logging.ENVIRONMENT_OF.values() if lacks(text, name)] == []


def test_every_exit_status_stands_in_a_table_of_the_readme():
    first_cells = [line.split("|")[1] for line in readme().splitlines() if line.startswith("|")]
    missing = [
        status for status in rhombus_logging.Status if all(lacks(cell, str(int(status))) for cell in first_cells)
    ]
    assert missing == []


# --- config.yaml ---


def section_lines(section: str) -> list[str]:
    """The lines of a section, in use or commented out, as they would stand without the comment sign."""
    lines: list[str] = []
    inside = False
    for line in config_text().splitlines():
        bare = re.sub(r"^(\s*)#\s?", r"\1", line)
        start = re.match(r"([a-z0-9_]+):(?:\s|$)", bare)
        if start and start[1] in rhombus_logging.CONFIG_KEYS:
            inside = start[1] == section
        elif inside:
            lines.append(bare)
    return lines


def written_values(section: str, name: str) -> list[Any]:
    """What the file gives for a key, wherever in the section it stands."""
    values = []
    for line in section_lines(section):
        found = re.match(rf"\s*(?:- )?{re.escape(name)}:(?:\s+(.*))?$", line)
        if found:
            values.append(yaml.safe_load(found[1] or ""))
    return values


def test_the_config_file_lists_every_key_with_its_default():
    """A key may be commented out, but it is there, and what has a default shows it."""
    missing, differing = [], []
    for path, key in all_config_keys():
        section, name = path.partition(".")[0], path.rpartition(".")[2]
        values = written_values(section, name)
        if not values:
            missing.append(path)
        elif key.default not in (None, [], {}) and key.default not in values:
            differing.append(f"{path}: {values[0]!r} where the default is {key.default!r}")
    assert (missing, differing) == ([], [])


def test_the_config_file_as_it_comes_is_accepted_and_changes_nothing(monkeypatch):
    for variable in rhombus_logging.ENVIRONMENT_OF.values():
        monkeypatch.delenv(variable, raising=False)
    sections = tuple(rhombus_logging.CONFIG_KEYS)
    loaded = rhombus_logging.load_config(ROOT / "config.yaml", sections, ROOT)
    for section in sections:
        if section in rhombus_logging.LIST_SECTIONS:
            continue
        for name, key in rhombus_logging.CONFIG_KEYS[section].items():
            if key.default is not None and not key.keys:
                assert loaded[section][name] == key.default, f"{section}.{name}"


# --- the log ---


def texts_in(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


@every_script
def test_the_word_error_appears_only_in_error_lines(script):
    """People grep their logs for it."""
    found = []
    for node in ast.walk(tree(script)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("debug", "info", "warning") and ast.unparse(node.func.value).endswith(("log", "logger")):
            texts = [text for argument in node.args for text in texts_in(argument)]
            found += [f"line {node.lineno}: {text}" for text in texts if "error" in text.lower()]
    assert found == []


# --- sizes ---


def functions(script: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(script)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@every_script
def test_a_script_keeps_its_size(script):
    assert len(source(script).splitlines()) <= LINES_NOW.get(script, PROGRAM_LINES)


def test_the_readme_names_every_file_below_tests():
    found = subprocess.run(["git", "ls-files", "tests/*.py"], cwd=ROOT, check=False, capture_output=True, text=True)
    names = found.stdout.split() if found.returncode == 0 else [str(file) for file in (ROOT / "tests").rglob("*.py")]
    assert names
    assert [name for name in names if f"{Path(name).name}`" not in readme()] == []


@every_script
def test_no_name_of_a_script_is_given_twice(script):
    """The second would silently take the place of the first, above all after two branches were merged."""
    names: list[str] = []
    for node in ast.parse(source(script)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [name.id for one in targets for name in ast.walk(one) if isinstance(name, ast.Name)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@every_script
def test_no_function_is_too_long(script):
    limits = {"main": MAIN_LINES}
    long = [(name, lines) for name, lines in functions(script) if lines > limits.get(name, FUNCTION_LINES)]
    assert long == []


@every_program
def test_a_program_ends_with_the_same_two_lines(program):
    assert source(program).rstrip().splitlines()[-2:] == ['if __name__ == "__main__":', "    sys.exit(run(main))"]


# --- requirements ---


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_has_a_tested_floor_and_says_why(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    wanted = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?>=[0-9][^;#\s]*(\s*;[^#]+)?\s+# \S.*|-r \S+|#.*|")
    assert [line for line in lines if not wanted.fullmatch(line)] == []
