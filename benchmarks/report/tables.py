"""Rows of results as lines of the terminal and as tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.rows import ALL_MODES, Row
from benchmarks.report import gpu_tables
from benchmarks.report.markdown import table
from benchmarks.report.targets import TARGETS, check, check_table, machine


def line(row: Row) -> str:
    """One row for the terminal, while the run goes on."""
    figures = "  ".join(_cells(row))
    if "rounds" in row:
        figures += f"  best {_time(min(row['rounds']))} of {len(row['rounds'])}"
    if "host" in row:
        figures += f"  host {_time(row['host']['median'])}"
    threads = f"{row['threads']} threads" if row["threads"] > 1 else "1 thread"
    return f"   {row['measurement']:10} {row['variant']:18} {row['mode']:17} {threads:10} {figures}"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: targets, tables by measurement and machine, and the runs; then GPUs."""
    on_cpu = [row for row in rows if not gpu_tables.is_about(row)]
    parts = [f"### Targets\n\n{check_table(check(on_cpu, TARGETS))}"]
    for measurement, (title, headings) in _TABLES.items():
        chosen = [row for row in on_cpu if row["measurement"] == measurement]
        if chosen:
            parts.append(f"### {title}\n\n{_by_machine(chosen, headings)}")
    if on_cpu:
        parts.append(_runs(on_cpu))
    devices: dict[str, list[Row]] = {}
    for row in filter(gpu_tables.is_about, rows):
        devices.setdefault(row["device"], []).append(row)
    for device, found in devices.items():
        parts += [f"### On {device}", gpu_tables.section(found), _runs(found, gpu_tables.FIELDS)]
    return "\n\n".join(parts) + "\n"


_TIMES = ["time [quartiles]", "times the first"]
_TIMES_PLAIN = "times the plain one"
_TABLES = {
    "latency": ("Latency", _TIMES),
    "memory": ("Peak extra memory", ["peak", "times the first"]),
    "bandwidth": (
        "Gather bandwidth",
        ["achieved", "reading the same rows", "L1", "L2", "L3", "DRAM"],
    ),
    "parts": ("Time by part of the CPU kernels", ["time [quartiles]", "processor time"]),
    "scaling": ("Thread scaling", ["time [quartiles]", "times all threads"]),
    "threads": (
        "Threads, and processes at once",
        ["time [quartiles]", "times the best", "processors busy"],
    ),
    "growth": ("Growth with T * H * W", ["time [quartiles]", "times the smaller"]),
    "overhead": ("Host overhead per call", ["time [quartiles]", "times the first"]),
    "attention block": ("Attention with its projections", _TIMES),
    "encoder layer": ("Encoder layers", _TIMES),
    "model": ("Whole models", [*_TIMES, "frames per second"]),
    "memory of models": ("Peak of live tensors in whole models", ["peak", "times the first"]),
    "memory of modules": (
        "Peak of live tensors by module",
        ["peak", "times the first", "alive after it"],
    ),
    "transformers model": (
        "Models of transformers, processor time",
        [*_TIMES, "wall-clock time"],
    ),
    "memory of transformers models": (
        "Peak of live tensors in models of transformers",
        ["peak", "times the first"],
    ),
    "exported model": (
        "Exported models, processor time",
        [_TIMES[0], _TIMES_PLAIN, "wall-clock time", "nodes", "file"],
    ),
    "memory of exported models": (
        "Peak extra memory of a call of exported models",
        ["peak", _TIMES_PLAIN],
    ),
    "complexity": ("More and more frames", [*_TIMES, "multiply-adds of the forward"]),
    "exponent": ("Exponents of T * H * W", ["measured [95 % interval]", "counted"]),
    "crossover": ("Deformable is cheaper", ["from this many cells on"]),
}


def _by_machine(rows: Sequence[Row], headings: Sequence[str]) -> str:
    """A table per machine, under its name: times of two machines say nothing side by side."""
    machines: dict[str, dict[tuple[str, ...], Row]] = {}
    for row in rows:  # of two about the same the last counts
        machines.setdefault(machine(row), {})[(*_key(row), row["mode"])] = row
    return "\n\n".join(
        f"On {name}:\n\n{_measured(list(own.values()), headings)}" for name, own in machines.items()
    )


def _measured(rows: Sequence[Row], headings: Sequence[str]) -> str:
    """One line per workload, variant and thread count; its modes side by side."""
    lines: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        lines.setdefault(_key(row), {})[row["mode"]] = _cells(row)
    modes = [mode for mode in ALL_MODES if any(mode in cells for cells in lines.values())]
    absent = ["-"] * len(headings)
    body = [
        [*key, *(cell for mode in modes for cell in cells.get(mode, absent))]
        for key, cells in lines.items()
    ]
    heads = [f"{mode}: {heading}" for mode in modes for heading in headings]
    return table(["workload", "variant", "threads", *heads], body)


def _key(row: Row) -> tuple[str, str, str]:
    about = f"{row['subject']}, " if row["measurement"] == "complexity" else ""
    return (f"{about}{row['label']}", row["variant"], str(row["threads"]))


def _cells(row: Row) -> list[str]:
    if row["measurement"] == "exponent":
        median, low, high = (row["exponent"][name] for name in ("median", "low", "high"))
        between = "once" if row.get("fitted_rounds") == 1 else f"[{low:.3f}, {high:.3f}]"
        return [f"{median:.3f} {between}", f"{row['counted']:.3f}"]
    if row["measurement"] == "crossover":
        cells = row["cells"]
        if cells is None:
            return ["not in these sizes"]
        return [f"all sizes, {cells:.0f}" if cells == row["smallest"] else f"{cells:.0f}"]
    if row["measurement"] == "bandwidth":
        achieved = row["bytes_per_second"]["median"]
        limits = [row["ceiling"].get(name) for name in ("same rows", "L1", "L2", "L3", "DRAM")]
        return [f"{achieved / 1e9:.1f} GB/s", *(_share(achieved, limit) for limit in limits)]
    if row["measurement"] == "parts":
        shares = sorted(row["parts"].items(), key=lambda part: -part[1])
        return [_spread(row), ", ".join(f"{name} {share:.0%}" for name, share in shares)]
    ratio = row["ratio"]["median"]
    times = "-" if ratio is None else f"{ratio:.2f}x"
    if row["measurement"].startswith("memory"):
        sizes = [row[name] for name in ("extra_bytes", "kept_bytes") if name in row]
        peak, *kept = (f"{size / 2**20:.1f} MiB" for size in sizes)
        return [peak, times, *kept]
    cells = [_spread(row), times]
    if "busy" in row:
        cells.append(f"{row['busy']['median']:.2f}")
    if "multiply_adds" in row:
        cells.append(f"{row['multiply_adds'] / 1e9:.3g} G")
    if row["measurement"] == "model":
        cells.append(f"{row['frames'] / row['seconds']['median']:.3g}")
    if "wall" in row:
        cells.append(_time(row["wall"]["median"]))
    if row["measurement"] == "exported model":
        size = row["file_bytes"]  # None in PyTorch
        cells += ["-", "-"] if size is None else [str(row["nodes"]), f"{size / 2**20:.2f} MiB"]
    return cells


def _spread(row: Row) -> str:
    median, q1, q3 = (_time(row["seconds"][name]) for name in ("median", "q1", "q3"))
    between = "once" if row["num_rounds"] == 1 else f"[{q1}, {q3}]"
    return f"{median} {between}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _share(achieved: float, limit: float | None) -> str:
    return "-" if limit is None else f"{limit / 1e9:.0f} GB/s ({achieved / limit:.0%} reached)"


_RUN = ("system", "python", "torch", "stdeform", "commit", "time", "load_average_at_start")


def _runs(rows: Sequence[Row], more: Sequence[str] = ()) -> str:
    """One line per run: which machine gave which file, with what, and how busy it was."""
    fields = (*more, *_RUN)
    runs = dict.fromkeys(
        (machine(row), *(str(row.get(field)) for field in (*fields, "command"))) for row in rows
    )
    heads = [field.replace("_", " ").replace("time", "started") for field in fields]
    return f"### Where\n\n{table(['machine', *heads, 'command'], runs)}"
