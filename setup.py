"""Builds `stdeform._C`, the native core, with ninja and without torch.

One rule: a missing tool is not an error, a failing tool is. Without a C++ compiler the install
succeeds as pure Python; if the compiler fails, so does the install. What a compiler may lack is
tried with a small program, csrc/probes/*.cpp. `_build.json` inside the package records what was
built, and why the rest was not.

Environment:
    STDEFORM_NATIVE, STDEFORM_CUDA  1: must be built; 0: left out; unset: built if the tools exist.
    STDEFORM_CUDA_ARCHS  CUDA architectures to build instead of all of them: "90" or "80;90".
    CXX, CXXFLAGS, LDFLAGS  the C++ compiler, further flags for it, further flags for linking; on
        macOS also ARCHFLAGS.
    CUDA_HOME, CUDA_PATH  where CUDA is installed; if one is set, no other place is searched.
    MAX_JOBS  number of compilers that run at once; unset: one per usable core.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROJECT = Path(ROOT, "pyproject.toml").read_text(encoding="utf-8")
RECORD = "_build.json"

# No debug information, for which Python's own flags would add megabytes; no errno and no
# floating-point traps, which block vectorisation. NaN and infinity keep their meaning, so no
# -ffast-math.
CXX_FLAGS = shlex.split(
    "-std=c++17 -O3 -DNDEBUG -g0 -fvisibility=hidden -Wall -Wextra"
    " -ffp-contract=fast -fno-math-errno -fno-trapping-math -Icsrc"
)
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
AVX512_FLAGS = shlex.split(
    "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
    " -Wno-uninitialized"  # GCC 12 warns about its own intrinsics
)
# Further flags of csrc/cpu/isa_<name>.cpp, slowest first; which one runs is chosen at run time.
ISA_FLAGS = {"portable": [], "avx2": AVX2_FLAGS, "avx512": AVX2_FLAGS + AVX512_FLAGS}
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    # #pragma unroll is for the device compiler; the host compiler does not know it.
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas",
    "-Icsrc",
]
FLAGS_FROM = ("CXX", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS")
# The system and the processor that are compiled for, also where another machine does it.
PLATFORM = sysconfig.get_platform()
SYSTEM = PLATFORM.partition("-")[0]
# A universal Python of macOS builds for the processor it runs on, unless ARCHFLAGS says more.
PROCESSOR = PLATFORM
if PLATFORM.endswith("universal2"):
    PROCESSOR = os.environ.get("ARCHFLAGS") or platform.machine()
IS_X86 = bool(re.search("x86_64|amd64", PROCESSOR)) and "arm64" not in PROCESSOR
# By system; others are built as Linux is.
COMPILE_FLAGS = {"linux": ["-fPIC"], "macosx": ["-fPIC"], "win": []}
LINK_FLAGS = {
    "linux": ["-shared", "-ldl", "-lpthread"],
    "macosx": ["-bundle", "-undefined", "dynamic_lookup"],
    "win": ["-shared"],
}
CUDA_ARCHS = ["75", "80", "86", "89", "90", "100", "120"]  # compute capability 7.5 to 12.0

NINJA_RULES = """\
rule compile
  command = $tool -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule link
  command = $tool $in -o $out $flags
  description = link $out
"""


def stop(reason: str) -> NoReturn:
    """Ends the install with one message and no traceback."""
    raise SystemExit(f"error: {reason}")


def check_python() -> None:
    """Stops if Python is too old. pip runs this file before it looks at `requires-python`."""
    minimum = re.findall(r'requires-python = ">=3\.(\d+)"', PROJECT)[0]
    if sys.version_info < (3, int(minimum)):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        stop(f"stdeform needs Python 3.{minimum} or newer, and this is Python {version}")


def check_requirements(*names: str) -> None:
    """Stops if build requirements are missing or too old: pip does not look without isolation."""
    faults = []
    required = re.findall(r'"([\w-]+)(?:>=([\d.]+))?"', re.findall(r"requires = (.*)", PROJECT)[0])
    for name, minimum in (pair for pair in required if pair[0] in names):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append(f"{name}{'>=' * bool(minimum)}{minimum}, which is not installed")
            continue
        if _numbers(version) < _numbers(minimum):
            faults.append(f"{name}>={minimum}, and {version} is installed")
    if faults:
        wanted = " ".join(f"'{name}>={minimum}'" if minimum else name for name, minimum in required)
        stop(
            f"the build of stdeform needs {'; '.join(faults)}. Without --no-build-isolation,"
            f" pip gets what it needs; with it, first: pip install {wanted}"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def split_words(text: str) -> list[str]:
    """Splits a command or flags; on Windows, a backslash is part of a path."""
    if os.name != "nt":
        return shlex.split(text)
    return [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*")+', text)]


def join_words(words: list[str]) -> str:
    """Joins a command for the system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def read_switch(name: str) -> bool | None:
    """Reads an environment variable: 1 is True, 0 is False, unset is None."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        stop(f"{name} must be 0, 1 or unset, got {value!r}")
    return value == "1" if value else None


def output_of(tool: str, *options: str) -> str:
    """Runs a tool and returns its standard output, then its standard error."""
    done = subprocess.run([tool, *options], text=True, capture_output=True, check=False)
    if done.returncode:
        stop(f"{tool} {' '.join(options)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def is_command(name: str) -> bool:
    """Whether a command is there. macOS has compilers that only offer to install them."""
    path = shutil.which(name) or ""
    if sys.platform != "darwin" or not path.startswith("/usr/bin/"):
        return bool(path)
    return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode == 0


def find_compiler() -> tuple[list[str], str]:
    """Finds the C++ compiler. Returns its command and "", or [] and why there is none."""
    if read_switch("STDEFORM_NATIVE") is False:
        return [], "it was left out by STDEFORM_NATIVE=0"
    named = os.environ.get("CXX")
    usual = ["clang++"] if SYSTEM == "win" else ["c++", "g++", "clang++"]
    names = [named] if named else [sysconfig.get_config_var("CXX") or "", *usual]
    commands = ([name] if Path(name).is_file() else split_words(name) for name in names)
    found = [words for words in commands if words and is_command(words[0])]
    if not found and named:
        stop(f"CXX is {named!r}, which was not found")
    if not found and SYSTEM == "win":
        return [], "clang++ of LLVM was not found, and Microsoft's cl cannot compile the kernels"
    if not found:
        on_mac = "; xcode-select --install brings one" if SYSTEM == "macosx" else ""
        return [], f"no C++ compiler (g++ or clang++) was found{on_mac}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return [], "the header Python.h was not found (Debian and Ubuntu: install python3-dev)"
    return found[0], ""


def find_nvcc() -> tuple[str, str]:
    """Finds the CUDA compiler. Returns its path and "", or "" and why there is none."""
    if read_switch("STDEFORM_CUDA") is False:
        return "", "CUDA was left out by STDEFORM_CUDA=0"
    if SYSTEM == "win":
        return "", "nvcc on Windows takes Microsoft's cl alone, which cannot compile the kernels"
    homes = [name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [os.path.join(os.environ[name], "bin") for name in homes]
    for place in places or [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]:
        if nvcc := shutil.which("nvcc", path=place):
            return nvcc, ""
    return "", "no CUDA compiler (nvcc) was found" + f" in {' or '.join(homes)}" * bool(homes)


def cuda_archs(nvcc: str) -> list[str]:
    """Chooses the architectures to build for, oldest first."""
    known = re.findall(r"sm_(\d+)\b", output_of(nvcc, "--list-gpu-code"))
    requested = os.environ.get("STDEFORM_CUDA_ARCHS", "").replace(".", "")
    archs = re.findall(r"[^\s;,]+", requested) or [arch for arch in CUDA_ARCHS if arch in known]
    if unknown := [arch for arch in archs if arch not in known]:
        stop(f"STDEFORM_CUDA_ARCHS names {', '.join(unknown)}, but nvcc knows {', '.join(known)}")
    if not archs:
        stop(f"nvcc knows none of {', '.join(CUDA_ARCHS)}, but {', '.join(known)}")
    return sorted(archs, key=int)


def static_cudart(nvcc: str) -> str:
    """Finds the static CUDA runtime of the toolkit that nvcc belongs to, as nvcc prints it."""
    commands = output_of(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "unused")
    for top in re.findall(r"TOP=(.*)", commands):
        for folder in ("lib64", "lib", "targets/*/lib"):
            for library in Path(top.strip()).glob(f"{folder}/libcudart_static.a"):
                return str(library.resolve())
    stop("nvcc was found, but not libcudart_static.a in its toolkit")


def write_record(package: str | Path, **facts: object) -> None:
    """Writes what `stdeform._build` reads: versions and choices, never a path of this machine."""
    Path(package, RECORD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class NinjaBuild:
    """A ninja file, run in the checkout. Objects are kept, so a rebuild compiles only changes.

    Only the bindings depend on Python: builds for several versions share all other objects.
    """

    def __init__(self, folder: str) -> None:
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        self.folder = folder  # relative to the checkout, like every path in the file
        self.text = f"builddir = {folder}\n{NINJA_RULES}"
        self.objects: list[str] = []

    def compile(self, source: str, tool: list[str], flags: list[str], name: str = "") -> None:
        self.objects.append(f"{self.folder}/{name or source}.o")
        self._step("compile", source, self.objects[-1], tool, flags)

    def link(self, tool: list[str], flags: list[str]) -> Path:
        """Adds the link step, runs all steps and returns the shared object."""
        import ninja

        output = f"{self.folder}/_C.{sys.implementation.cache_tag}"
        self._step("link", " ".join(self.objects), output, tool, flags)
        path = ROOT / self.folder / f"{sys.implementation.cache_tag}.ninja"
        path.write_text(self.text, encoding="utf-8")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-f", str(path), *jobs]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            stop(
                "the native core could not be built; see the compiler's messages above.\n"
                "STDEFORM_CUDA=0 builds it without CUDA. STDEFORM_NATIVE=0 installs without it:"
                " the operators then use the slow reference"
            )
        return ROOT / output

    def _step(self, rule: str, inputs: str, output: str, tool: list[str], flags: list[str]) -> None:
        words = {
            name: join_words(w).replace("$", "$$") for name, w in (("tool", tool), ("flags", flags))
        }
        self.text += f"build {output}: {rule} {inputs}\n"
        self.text += "".join(f"  {name} = {value}\n" for name, value in words.items())


def sources(pattern: str) -> list[str]:
    """Lists the files of csrc/ that match, relative to the checkout."""
    return sorted(path.relative_to(ROOT).as_posix() for path in Path(ROOT, "csrc").glob(pattern))


class BuildNative(build_ext):
    """Builds `stdeform._C` and the record of how it was built."""

    def build_extension(self, ext: Extension) -> None:
        check_requirements("pybind11", "ninja")
        self.cxx = COMPILER
        # CXXFLAGS where it links as well, as some choose a library: -stdlib=libc++, -fsanitize=...
        chosen = split_words(os.environ.get("CXXFLAGS", ""))
        chosen += split_words(os.environ.get("ARCHFLAGS", "")) if SYSTEM == "macosx" else []
        self.cxx_flags = CXX_FLAGS + COMPILE_FLAGS.get(SYSTEM, COMPILE_FLAGS["linux"]) + chosen
        self.link_flags = chosen + split_words(os.environ.get("LDFLAGS", ""))
        self.steps = NinjaBuild(f"build/native-{self.plat_name}")
        nvcc, no_cuda = find_nvcc()
        if read_switch("STDEFORM_CUDA") and not nvcc:
            stop(f"STDEFORM_CUDA=1, but {no_cuda}")
        native = self.add_cpp(with_cuda=bool(nvcc))
        cuda = self.add_cuda(nvcc) if nvcc else None

        # Another copy of the CUDA runtime in the process must not find this one's symbols.
        flags = [static_cudart(nvcc), "-lrt", "-Wl,--exclude-libs,ALL"] if nvcc else []
        flags += LINK_FLAGS.get(SYSTEM, LINK_FLAGS["linux"]) + self.link_flags
        # Where Windows' Python keeps its import library, which Python.h names.
        flags += [f"-L{Path(sys.base_prefix, 'libs')}"] if sys.platform == "win32" else []
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.steps.link(self.cxx, flags), output)
        write_record(output.parent, native=native, no_native="", cuda=cuda, no_cuda=no_cuda)

    def add_cpp(self, *, with_cuda: bool) -> dict[str, object]:
        """Adds the C++ sources and returns their part of the record."""
        import pybind11

        if reason := self.try_probe("cxx17", []):
            used = [f"{name}={text}" for name in FLAGS_FROM if (text := os.environ.get(name))]
            stop(
                f"the C++ compiler cannot build a C++17 program: {reason}\n"
                f"It is {self.describe_compiler()}{' with ' * bool(used)}{', '.join(used)}."
                " docs/install.md names compilers that can; CXX chooses one."
                " STDEFORM_NATIVE=0 installs without: the operators then use the slow reference"
            )
        refused = {}
        for isa in ("avx2", "avx512") if IS_X86 else ():
            if reason := self.try_probe(isa, ISA_FLAGS[isa]):
                refused[isa] = reason
        for name, reason in refused.items():
            print(f"stdeform: the compiler cannot build {name}: {reason}")
        isas = [isa for isa in ISA_FLAGS if isa == "portable" or (IS_X86 and isa not in refused)]
        flags = self.cxx_flags + [f"-DSTDEFORM_ISA_{isa.upper()}=1" for isa in isas]
        # Only the bindings depend on Python and on CUDA.
        bindings = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
        bindings += ["-DSTDEFORM_WITH_CUDA=1"] * with_cuda
        name = f"csrc/bindings-{sys.implementation.cache_tag}"
        self.steps.compile("csrc/bindings.cpp", self.cxx, flags + bindings, name)
        for source in sources("cpu/**/*.cpp"):
            if not Path(source).stem.startswith("isa_"):
                self.steps.compile(source, self.cxx, flags)
        # Last, slowest first: of an inline function that is in several objects, the linker keeps
        # the first, which must run on every processor.
        for isa in isas:
            self.steps.compile(f"csrc/cpu/isa_{isa}.cpp", self.cxx, flags + ISA_FLAGS[isa])
        return {
            "compiler": self.describe_compiler(),
            "isas": isas,
            "refused": refused,
        }

    def add_cuda(self, nvcc: str) -> dict[str, object]:
        """Adds the CUDA sources and returns their part of the record."""
        archs = cuda_archs(nvcc)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # PTX
        host = next((word for word in self.cxx if "++" in word), self.cxx[0])  # not ccache
        for source in sources("cuda/**/*.cu"):
            self.steps.compile(source, [nvcc, "-ccbin", host], NVCC_FLAGS + codes)
        version = re.findall(r"release ([\d.]+)", output_of(nvcc, "--version"))
        return {"version": (version or ["?"])[0], "architectures": archs, "ptx": archs[-1]}

    def describe_compiler(self) -> str:
        # Zig also makes an empty object, which must not lie in the checkout.
        unused = f"{self.steps.folder}/unused"
        return output_of(*self.cxx, "--version", "-o", unused).splitlines()[0]

    def try_probe(self, name: str, flags: list[str]) -> str:
        """Compiles and links csrc/probes/<name>.cpp. Returns "", or why that failed."""
        source, output = f"csrc/probes/{name}.cpp", f"{self.steps.folder}/probe"
        command = [*self.cxx, *flags, *self.cxx_flags, source, "-o", output, *self.link_flags]
        environment = {**os.environ, "LC_ALL": "C"}  # messages in English
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
        if not done.returncode:
            return ""
        messages = r"error: (?!linker|ld returned).+|undefined reference to .+|cannot find .+"
        said = re.findall(messages, done.stderr) or done.stderr.splitlines()[-1:] or ["no message"]
        return re.sub(r"/\S*/", "", said[0].removeprefix("error: "))  # no path of this machine

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: copies the record next to the module."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib, *ext.name.split(".")[:-1], RECORD)
            shutil.copy(built, Path(self.get_ext_fullpath(ext.name)).parent)


class BuildPython(build_py):
    """Copies the modules; if no native core is built, records why."""

    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            print(f"stdeform: no native core: {NO_COMPILER}; the operators use the slow reference")
            package = Path(ROOT if self.editable_mode else self.build_lib, "stdeform")
            write_record(
                package, native=None, no_native=NO_COMPILER, cuda=None, no_cuda=NO_COMPILER
            )


check_python()
check_requirements("setuptools")
COMPILER, NO_COMPILER = find_compiler()
# Checked here: without an extension, a command like build_ext has nothing to do and succeeds.
for switch in ("STDEFORM_NATIVE", "STDEFORM_CUDA"):
    if read_switch(switch) and not COMPILER:
        stop(f"{switch}=1, but there is no native core: {NO_COMPILER}")

setup(
    # Without a compiler there is no extension at all, so that the wheel is tagged as pure Python.
    ext_modules=[Extension("stdeform._C", [])] if COMPILER else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
