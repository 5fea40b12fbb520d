"""The stored notebooks: outputs belong to the sources, checked cells have some, sizes keep their
limits. `make test` runs them too (nbval).
"""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from wmpo_lite.report import notebooks

PATHS = notebooks.paths()
EXPECTED = [
    "00_start_here",
    "01_data_collection",
    "02_world_model",
    "03_reward_model",
    "04_imagined_rollouts",
    "05_policy_optimization",
    "06_evaluation",
    "07_deployment",
    "08_libero",
    "09_reproduction",
]


def test_all_notebooks_are_there():
    assert [path.stem for path in PATHS] == EXPECTED


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_as_executed(path):
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_reader_is_told_what_comes_and_what_to_try(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert (
        prose[0].startswith(f"# {path.name[:2]} - ")
        and "minutes" in prose[0]
        and "assets" in prose[0]
    )
    assert prose[-1].startswith("## Things to try")
    assert len(" ".join(prose).split()) > 4 * sum(
        len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A notebook of two code cells, executed and stored."""
    cells = [
        new_markdown_cell("# small"),
        new_code_cell("import os\nx = 1 + 1"),
        new_code_cell("print(x, os.environ['WMPO_STATIC'])"),
    ]
    cells[2].metadata["tags"] = [notebooks.CHECK]
    path = tmp_path_factory.mktemp("stored") / "00_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    notebooks.execute(path)
    return path


def test_executing_twice_stores_the_same_bytes(stored):
    assert notebooks.problems(stored) == []
    before = stored.read_bytes()
    notebooks.execute(stored)
    assert stored.read_bytes() == before and b"2 1" in before


def test_what_no_two_runs_share_is_kept_until_the_code_changes(tmp_path):
    def outputs():
        notebooks.execute(path)
        return [cell.outputs for cell in nbformat.read(path, as_version=4).cells[1:]]

    def write(source):
        clock = new_code_cell(source, metadata={"tags": [notebooks.KEEP]})
        cells = [new_markdown_cell("# small"), clock, new_code_cell("print(time.time_ns())")]
        nbformat.write(new_notebook(cells=cells), path)

    path = tmp_path / "00_small.ipynb"
    write("import time\nprint(time.time_ns())")
    first, second = outputs(), outputs()
    assert first[0] == second[0] and first[1] != second[1]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "  # changed"
    nbformat.write(notebook, path)
    assert outputs()[0] != first[0]


def test_text_may_change_without_a_run(stored, tmp_path):
    notebook = nbformat.read(stored, as_version=4)
    notebook.cells[0].source += "\n\nwith another sentence"
    path = tmp_path / "00_small.ipynb"
    nbformat.write(notebook, path)
    assert notebooks.problems(path) == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda cells: cells[1].update(source="x = 3"), "code changed"),
        (lambda cells: cells[2].update(outputs=[]), "no stored output"),
        (lambda cells: cells[1].update(execution_count=7), "in order"),
        (lambda cells: cells[2]["metadata"].pop("tags"), "no cell's output is checked"),
        (lambda cells: cells[1].update(source="\n".join(["x = 2"] * 41)), "more than 40 lines"),
        (
            lambda cells: cells.insert(1, new_code_cell("needs('json', 'how');")),
            "stands after needs",
        ),
        (lambda cells: cells[0].update(source="small"), "does not open with a title"),
        (lambda cells: cells.extend(new_code_cell("") for _ in range(30)), "at most 30"),
    ],
)
def test_every_problem_is_found(stored, tmp_path, change, message):
    notebook = nbformat.read(stored, as_version=4)
    change(notebook.cells)
    path = tmp_path / "00_small.ipynb"
    nbformat.write(notebook, path)
    assert any(message in problem for problem in notebooks.problems(path))


def test_the_profile_decides_sizes(monkeypatch):
    from wmpo_lite.common.errors import UserError

    monkeypatch.delenv("WMPO_PROFILE", raising=False)
    assert notebooks.size(laptop=5, smoke=1) == 5
    monkeypatch.setenv("WMPO_PROFILE", "smoke")
    assert notebooks.size(laptop=5, smoke=1) == 1
    monkeypatch.setenv("WMPO_PROFILE", "huge")
    with pytest.raises(UserError, match="WMPO_PROFILE"):
        notebooks.size(laptop=5, smoke=1)


def test_without_an_extra_the_rest_of_a_notebook_is_skipped_with_a_message(tmp_path):
    cells = [
        new_markdown_cell("# small"),
        new_code_cell("from wmpo_lite.report.notebooks import needs\nprint(needs('json', 'x'))"),
        new_code_cell("needs('nothing_of_this_name.inside', 'pip install nothing');"),
        new_code_cell("import nothing_of_this_name\nprint('never')"),
        new_code_cell("1 / 0"),
    ]
    path = tmp_path / "00_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    notebooks.execute(path)
    said = [
        [output.get("text", "") for output in cell.get("outputs", [])]
        for cell in nbformat.read(path, as_version=4).cells
    ]
    assert (
        said[1] == ["True\n"]
        and "needs nothing_of_this_name, which is not installed (pip install nothing)" in said[2][0]
        and said[3:] == [[], []]
    )


def test_a_notebook_whose_extra_is_missing_is_not_executed(tmp_path, monkeypatch, capsys):
    cells = [
        new_markdown_cell("# small"),
        new_code_cell("from wmpo_lite.report.notebooks import needs"),
        new_code_cell('needs("nothing_of_this_name.inside", "how");'),
    ]
    path = tmp_path / "00_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    before = path.read_bytes()
    monkeypatch.setattr(notebooks, "paths", lambda: [path])
    notebooks.main([])
    assert (
        "left as it is, nothing_of_this_name.inside is not installed" in capsys.readouterr().out
        and path.read_bytes() == before
    )
