"""What the notebooks share, and `make notebooks`, which executes them and stores what they show."""

import hashlib
import os
import re
import sys
from pathlib import Path

from wmpo_lite.common.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHECK = "nbval-check-output"  # the tag of cells whose stored output a test compares
# The tag of cells that show what no two runs share, such as an arm that moves in real time: what is
# stored stays until the code of the notebook changes.
KEEP = "keep-output"
# code cells a notebook, lines a cell, columns a line, bytes a file
MAX_CELLS, MAX_LINES, MAX_COLUMNS, MAX_BYTES = 30, 40, 88, 1_400_000
CAPTION = re.compile(r"\*\*Figure (\d+)\.\*\* \S")
# What is no figure of a measurement: code, formulas, targets of links, arXiv numbers, sections.
NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|\b\d{4}\.\d{4,5}\b"
    r"|\b(?:sections?|version)\s+\d+(?:\.\d+)*(?:(?:,| and| to)\s+\d+(?:\.\d+)*)*",
    re.DOTALL | re.IGNORECASE,
)
FIGURE = re.compile(r"[+-]?\d+\.\d+(?: ?%)?|[+-]?\d+ ?%")
# Stored pictures stand where widgets would; training is as long as a laptop has patience for.
ENVIRONMENT = {
    "WMPO_STATIC": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

# -------------------------------------------------------------------------------- in the notebooks


def size(laptop, smoke):
    """`laptop`, or `smoke` where WMPO_PROFILE=smoke is set: as tests run the
    notebooks, in seconds.
    """
    profile = os.environ.get("WMPO_PROFILE", "laptop")
    if profile not in ("laptop", "smoke"):
        raise UserError(f"WMPO_PROFILE is '{profile}'; expected laptop or smoke")
    return smoke if profile == "smoke" else laptop


def film(frames, fps: float = 5, alt: str = "film"):
    """A film uint8 (T, H, W, 3) to be shown by the cell that ends with it."""
    from IPython.display import HTML

    from wmpo_lite.report.show import video_html

    return HTML(video_html(frames, fps, alt))


def picture(image, alt: str = "picture"):
    """An image uint8 (H, W, 3) or a matplotlib Figure to be shown by the cell that ends with it."""
    from IPython.display import HTML

    from wmpo_lite.report.show import image_html

    return HTML(image_html(image, alt))


def say(text: str, **values) -> None:
    """Show a paragraph of Markdown, its `{names}` replaced by `values`: so no number in a sentence
    is copied by hand.
    """
    from IPython.display import Markdown, display

    display(Markdown(text.format(**values)))


def figure(columns: int = 1, width: float = 6.4, height: float = 3.2, rows: int = 1):
    """A matplotlib (Figure, axes) without pyplot's global state; show it with `picture`."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns)


def installed(module: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package is
        return False


def needs(module: str, how: str) -> bool:
    """Whether `module` is installed; if not, say so and let the notebook's later
    cells do nothing.
    """
    found = installed(module)
    if not found:
        from IPython import get_ipython

        print(
            f"The rest of this notebook needs {module.partition('.')[0]}, which is not installed"
            f" ({how}). The cells that follow do nothing."
        )
        get_ipython().input_transformers_cleanup.append(lambda lines: [])
    return found


# -------------------------------------------------------------------------------------- about them


def paths() -> list[Path]:
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def fingerprint(notebook) -> str:
    """Of the code, so that outputs can be told to belong to it; text may change without a run."""
    text = "\0".join(
        f"{cell.source}\0{sorted(cell.metadata.get('tags', []))}"
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
    return hashlib.sha256(text.encode()).hexdigest()


def execute(path: Path) -> None:
    """Run a notebook in its own folder and store its outputs. A second run of the same code stores
    the same bytes: what differs from run to run is left out, or kept in cells tagged KEEP.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    same_code = notebook.metadata.get("wmpo_lite", {}).get("sources") == fingerprint(notebook)
    stored = {
        number: cell.outputs
        for number, cell in enumerate(notebook.cells)
        if same_code and KEEP in cell.metadata.get("tags", []) and cell.outputs
    }
    kept = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(Path(path).parent)}},
            record_timing=False,
            coalesce_streams=True,
        ).execute()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        if number in stored:
            cell.outputs = stored[number]
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "wmpo_lite": {"sources": fingerprint(notebook)},
    }
    nbformat.validate(notebook)
    temporary = Path(path).with_suffix(".part")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def problems(path: Path) -> list[str]:
    """What is wrong with a stored notebook, one sentence each: outputs not of these sources,
    checked cells without any, errors, sizes.
    """
    import nbformat

    notebook, found = nbformat.read(path, as_version=4), []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if notebook.metadata.get("wmpo_lite", {}).get("sources") != fingerprint(notebook):
        found.append("the code changed after the outputs were stored; run make notebooks")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells were not executed once each, in order; run make notebooks")
    if len(code) > MAX_CELLS:
        found.append(f"{len(code)} code cells, at most {MAX_CELLS}")
    checked = [cell for cell in code if CHECK in cell.metadata.get("tags", [])]
    if not checked:
        found.append("no cell's output is checked")
    past_needs = False
    for cell in code:
        start = cell.source.splitlines()[0] if cell.source else "(empty)"
        if len(cell.source.splitlines()) > MAX_LINES:
            found.append(f"the cell '{start}' has more than {MAX_LINES} lines")
        if cell in checked and not cell.outputs:
            found.append(f"the checked cell '{start}' has no stored output")
        if cell in checked and past_needs:
            found.append(
                f"the checked cell '{start}' stands after needs(...): without the extra it has no"
                " output to compare"
            )
        past_needs = past_needs or bool(re.search(r"^needs\(", cell.source, re.MULTILINE))
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"the cell '{start}' ended in an error")
    if Path(path).stat().st_size > MAX_BYTES:
        found.append(f"{Path(path).stat().st_size} bytes, at most {MAX_BYTES}")
    if notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        found.append("it does not open with a title")
    return found


def copied_figures(text: str) -> list[str]:
    """Percentages and decimals in Markdown that stand in no code, formula, link or section
    number: a sentence that quotes a result is printed with `say`.
    """
    return FIGURE.findall(NOT_PROSE.sub(" ", text))


def layout_problems(path: Path) -> list[str]:
    """What a reader would stumble over: lines wider than a page, pictures without a caption in the
    cell below, captions whose numbers do not count 1, 2, 3, ...
    """
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    found, numbers = [], []
    for cell, after in zip(cells, [*cells[1:], None]):
        if cell.cell_type == "markdown":
            numbers += [int(number) for number in CAPTION.findall(cell.source)]
            continue
        start = cell.source.splitlines()[0] if cell.source else "(empty)"
        if any(len(line) > MAX_COLUMNS for line in cell.source.splitlines()):
            found.append(f"the cell '{start}' has lines of more than {MAX_COLUMNS} columns")
        shown = "".join(str(out.get("data", {}).get("text/html", "")) for out in cell.outputs)
        captioned = after is not None and after.cell_type == "markdown"
        captioned = captioned and CAPTION.match(after.source)
        if re.search(r"<img|<video", shown) and not captioned:
            found.append(f"no caption stands below what the cell '{start}' shows")
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"the captions are numbered {numbers}")
    return found


def main(names: list[str]) -> None:
    """Execute and store the notebooks whose names begin with one of `names` (all without names)."""
    import time

    chosen = [
        path for path in paths() if not names or any(path.name.startswith(name) for name in names)
    ]
    if not chosen:
        raise SystemExit(
            f"no notebook begins with {' or '.join(names)}; there are"
            f" {', '.join(path.stem for path in paths())}"
        )
    for path in chosen:
        missing = [
            module
            for module in re.findall(
                r'^\s*"needs\(\\"([\w.]+)', path.read_text(encoding="utf-8"), re.MULTILINE
            )
            if not installed(module)
        ]
        if missing:
            print(
                f"{path.name}: left as it is, {' and '.join(missing)} is not installed", flush=True
            )
            continue
        clock = time.monotonic()
        execute(path)
        print(
            f"{path.name}: {time.monotonic() - clock:.0f} s, {path.stat().st_size / 1e6:.1f} MB",
            flush=True,
        )
        for problem in problems(path) + layout_problems(path):
            print(f"  {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
