"""What a release says of itself, and the programs and workflows that let it out."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import stdeform

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*")
}
JOBS = {
    (workflow, job): content
    for workflow, jobs in WORKFLOWS.items()
    for job, content in jobs["jobs"].items()
}
CUDA = {"version": "13.0", "architectures": ["90"], "ptx": "90"}
CPU_WHEEL = f"stdeform-{stdeform.__version__}-cp311-cp311-manylinux_2_28_x86_64.whl"
CUDA_WHEEL = CPU_WHEEL.replace("-cp311", "+cu13-cp311", 1)


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_has_its_notes() -> None:
    notes = program("release_notes").notes_of(f"v{stdeform.__version__}")
    assert "\n- `" in notes
    assert "\n## " not in notes


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("stdeform/__init__.py", "0.1.0", "0.1.1", "the tag must be v0.1.1"),
        ("CITATION.cff", "version: 0.1.0", "version: 0.1.1", "CITATION.cff must say"),
        ("CITATION.cff", "date-released: 2", "date-released: 1", "CITATION.cff must say"),
        ("CHANGELOG.md", "## 0.1.0 - 2", "## 0.1.0 (2", "CHANGELOG.md must have a section"),
        (
            "CHANGELOG.md",
            "\n## 0.1.0",
            "\n## 0.1.0 - 2026-11-30\n\n## 0.0.9",
            "must have a section",
        ),
    ],
)
def test_a_release_that_is_not_ready_is_stopped(
    file: str, old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = program("release_notes")
    old, new, message = (
        text.replace("0.1.0", stdeform.__version__) for text in (old, new, message)
    )
    real = notes.read

    def read(name: str) -> str:
        if name != file:
            return real(name)
        assert old in real(name)
        return real(name).replace(old, new, 1)

    monkeypatch.setattr(notes, "read", read)
    with pytest.raises(SystemExit, match=re.escape(message)):
        notes.notes_of(f"v{stdeform.__version__}")


def make_wheel(
    folder: Path,
    name: str = CPU_WHEEL,
    cuda: dict[str, Any] | None = None,
    files: tuple[str, ...] = ("stdeform/_C.cpython-311-x86_64-linux-gnu.so",),
    size: int = 0,
) -> Path:
    metadata = f"{'-'.join(name.split('-')[:2])}.dist-info/METADATA"
    native = {"compiler": "c++ 1.2.3"} if files else None
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in ("stdeform/", "stdeform/__init__.py", metadata, *files):
            archive.writestr(file, "")
        archive.writestr("stdeform/_build.json", json.dumps({"native": native, "cuda": cuda}))
        archive.writestr("stdeform/large.py", " " * size)
    return folder / name


WINDOWS = {
    "name": CPU_WHEEL.replace("manylinux_2_28_x86_64", "win_amd64"),
    "files": ("stdeform/_C.cp311-win_amd64.pyd",),
}


@pytest.mark.parametrize(
    "wheel",
    [
        {},
        WINDOWS,
        {"name": CPU_WHEEL.replace("_28_", "_27_x86_64.manylinux_2_28_")},
        {"name": CUDA_WHEEL, "cuda": CUDA, "size": 3_000_000},
    ],
    ids=["linux", "windows", "older linux", "cuda"],
)
def test_good_wheels_pass(wheel: dict[str, Any], tmp_path: Path) -> None:
    assert program("check_wheel").faults_of(make_wheel(tmp_path, **wheel)) == []


@pytest.mark.parametrize(
    ("wheel", "fault"),
    [
        ({"files": ()}, "must hold one native core, and holds none"),
        ({"files": ("stdeform/_C.so", "stdeform.libs/libgomp.so.1")}, "it holds stdeform.libs/"),
        ({"files": ("stdeform/_C.so", "stdeform/.dylibs/libomp.dylib")}, "it holds stdeform/.dy"),
        ({"files": ("stdeform/_C.so", "stdeform/_D.so")}, "must hold one native core"),
        (
            {"name": CPU_WHEEL.replace("many", "")},
            "must be manylinux_2_28 or older, got linux_2_28",
        ),
        ({"name": CPU_WHEEL.replace("_28", "_34")}, "or older, got manylinux_2_34_x86_64"),
        ({"size": 3_000_000}, "more than 3000000"),
        ({"cuda": CUDA}, "the label None, and it was built with cu13"),
        ({"name": CUDA_WHEEL}, "the label cu13, and it was built with None"),
        ({"name": CUDA_WHEEL, "cuda": {**CUDA, "version": "12.9"}}, "built with cu12"),
    ],
)
def test_bad_wheels_are_stopped(wheel: dict[str, Any], fault: str, tmp_path: Path) -> None:
    faults = program("check_wheel").faults_of(make_wheel(tmp_path, **wheel))
    assert fault in "; ".join(faults)


def test_every_cuda_has_its_label() -> None:
    labels = {path.stem: configparser.ConfigParser() for path in ROOT.glob(".ci/cu*.cfg")}
    for label, config in labels.items():
        config.read(ROOT / ".ci" / f"{label}.cfg")
        assert dict(config["egg_info"]) == {"tag_build": f"+{label}"}
    built = JOBS["wheels", "cuda"]["strategy"]["matrix"]["cuda"]
    assert {cuda["label"] for cuda in built} == set(labels)
    for cuda in built:
        assert cuda["label"] == "cu" + cuda["release"].partition(".")[0]


def test_the_docs_install_this_version() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    version = stdeform.__version__
    assert re.findall(r"stdeform==(\S+)\+cu", text) == [version]
    assert re.findall(r"expanded_assets/v(\S+)", text) == [version]


def test_wheels_are_for_every_supported_python() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    ((first, last),) = re.findall(r'^build = "cp31\[(\d)-(\d)\]-\*"$', text, re.MULTILINE)
    named = [int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", text)]
    assert named == list(range(10 + int(first), 11 + int(last)))
    assert f'requires-python = ">=3.{named[0]}"' in text


def test_the_tests_of_a_wheel_can_be_imported_on_windows() -> None:
    """Which has none of these modules."""
    files = re.findall(r"tests/operator/\w+\.py", (ROOT / "pyproject.toml").read_text())
    assert len(files) == 3
    code = f"""
import sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{files}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs_may_write_only_what_they_must() -> None:
    assert set(WORKFLOWS) == {"checks", "docs", "release", "wheels"}
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert granted == {
        ("docs", "publish"): {"pages": "write", "id-token": "write"},
        ("release", "pypi"): {"id-token": "write"},
        ("release", "github"): {"contents": "write"},
    }


def test_actions_have_a_version_and_jobs_an_end() -> None:
    steps = [step for job in JOBS.values() for step in job.get("steps", [])]
    used = {step["uses"] for step in steps if "uses" in step}
    assert len(used) > 5
    assert [use for use in used if not re.search(r"@(v\d+(\.\d+)*|release/v1)$", use)] == []
    endless = [name for name, job in JOBS.items() if "timeout-minutes" not in job]
    assert endless == [("release", "wheels")]  # its jobs are those of wheels.yml


def test_what_is_published_was_built_and_checked() -> None:
    """By names of artifacts, which no linter follows."""
    uploads, downloads = set(), set()
    for (workflow, _), job in JOBS.items():
        if workflow not in ("release", "wheels"):
            continue
        for step in job.get("steps", []):
            name = step.get("with", {}).get("name") or step.get("with", {}).get("pattern", "*")
            if "upload-artifact" in step.get("uses", ""):
                uploads.add(name.partition("-")[0])
            if "download-artifact" in step.get("uses", ""):
                downloads.add(name.partition("-")[0])
    assert uploads == {"pypi", "cuda", "notes"}
    # Never all of them: the notes of a release are no distribution.
    assert downloads == {"pypi", "cuda", "notes", "{pypi,cuda}"}
    assert JOBS["wheels", "check"]["needs"] == ["sdist", "cpu", "cuda"]
    release = WORKFLOWS["release"]["jobs"]
    needs = {name: job.get("needs") for name, job in release.items()}
    assert needs == {"notes": None, "wheels": "notes", "pypi": "wheels", "github": "pypi"}
    assert release["pypi"]["environment"]["name"] == "pypi"
