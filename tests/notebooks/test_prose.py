"""What the notebooks say: captions below pictures, references, no figure copied by hand into a
sentence; the glossary's names exist.
"""

import importlib
import re

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wmpo_lite.report import notebooks

PATHS = notebooks.paths()
# Figures that may stand in prose: no result of this kit can change them.
ALLOWED = {
    "*": {
        "95 %": "the level of every interval",
        "5 %": "one minus that level",
        "100 %": "all",
    },
    "03": {"0.95": "the paper's F1, section 3.3"},
    "05": {
        **dict.fromkeys(("1.6", "1.0", "0.20", "0.28"), "settings, the paper's and this kit's"),
        **dict.fromkeys(("1.28", "0.80"), "the limits of the clip, from these settings"),
        **dict.fromkeys(("33.6 %", "33.2 %", "37.3 %", "47.1 %"), "the paper's rates, table 1"),
        **dict.fromkeys(("0.5", "0.7"), "settings of an exercise and of an example"),
        **dict.fromkeys(("1.7321", "1.5", "3 %", "15 %"), "from the formulas of two deviations"),
        **dict.fromkeys(("0.06", "0.92"), "of other programs, tests/golden/grpo_peers.json"),
        "0.3": "a version, RLinf 0.3.0",
    },
    "06": {
        **dict.fromkeys(("30 %", "60 %"), "rates that nobody measured, as an example"),
        **dict.fromkeys(("17.9", "9.4", "18.0", "8.6"), "the paper's gains, table 1"),
        **dict.fromkeys(("94.6", "98.0"), "the paper's lengths"),
        **dict.fromkeys(("80 %", "45 %", "50 %"), "settings of a simulation"),
    },
    "09": {
        **dict.fromkeys(("47.1", "37.1 %"), "the paper's means, table 1"),
        **dict.fromkeys(("14.1", "46.1", "10.9", "22.3", "50.0", "16.4"), "its table 2"),
        **dict.fromkeys(("3.9", "8.2"), "gaps of these"),
        **dict.fromkeys(("94.6", "98.0 %", "98.9", "99.7", "99.4", "102.1"), "its figure 5"),
        **dict.fromkeys(("46.9", "56.3", "63 %", "53.9"), "its rounds on StackThree"),
        "80 %": "the convention of power",
    },
}


def prose(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_lines_fit_the_page_and_pictures_have_captions_that_count(path):
    assert notebooks.layout_problems(path) == []
    assert any("**Figure 1.**" in text for text in prose(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_figure_in_a_sentence_is_copied_by_hand(path):
    allowed = ALLOWED["*"] | ALLOWED.get(path.name[:2], {})
    copied = [
        (figure, text[:60])
        for text in prose(path)
        for figure in notebooks.copied_figures(text)
        if figure not in allowed
    ]
    assert copied == [], "print the sentence with `say`, or add the figure and why to ALLOWED"


def test_every_allowed_figure_is_used():
    """So that the list does not grow beyond need."""
    for number, figures in ALLOWED.items():
        text = [t for path in PATHS if number in ("*", path.name[:2]) for t in prose(path)]
        found = {figure for part in text for figure in notebooks.copied_figures(part)}
        assert set(figures) <= found, number


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_goals_time_place_in_the_method_and_references(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(prose(path))
    assert "**Goals.**" in cells[0].source and "**Time.**" in cells[0].source
    assert any("method_loop(" in cell.source for cell in cells[:6])
    assert re.search(r"arXiv \d{4}\.\d{5}\]\(https://arxiv.org/abs/\d{4}\.\d{5}\)", text)
    assert "## References" in text and re.search(r"\bsections? \d", text.split("## References")[1])


@pytest.mark.parametrize(
    "text, figures",
    [
        ("a gain of 14.3 points", ["14.3"]),
        ("an interval of 95 % and 3%", ["95 %", "3%"]),
        ("$p = 0.05$, `0.95`, [a](x/2.0), arXiv 2511.09515, section 3.2, 64 pixels", []),
        ("sections 3.1 to 3.4, then 3.5", ["3.5"]),
        ("$$x = 1.5$$ but -0.5 here", ["-0.5"]),
    ],
)
def test_figures_are_told_from_formulas_and_sections(text, figures):
    assert notebooks.copied_figures(text) == figures


@pytest.mark.parametrize(
    "below, problems",
    [
        ("**Figure 1.** What is seen.", []),
        ("Nothing about it.", ["no caption stands below what the cell 'picture(x)' shows"]),
        ("**Figure 2.** What is seen.", ["the captions are numbered [2]"]),
    ],
)
def test_missing_captions_and_wrong_numbers_are_found(tmp_path, below, problems):
    shown = new_output("execute_result", {"text/html": "<img src='x'>"})
    cells = [new_code_cell("picture(x)", outputs=[shown]), new_markdown_cell(below)]
    path = tmp_path / "00_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    assert notebooks.layout_problems(path) == problems


def test_a_line_that_leaves_the_page_is_found(tmp_path):
    path = tmp_path / "00_small.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1  #" + 81 * "-")]), path)
    assert "more than 88 columns" in notebooks.layout_problems(path)[0]


def test_say_fills_in_values(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    notebooks.say("a gain of {gain:+.1f} points", gain=14.26)
    assert [paragraph.data for paragraph in shown] == ["a gain of +14.3 points"]
    with pytest.raises(KeyError):
        notebooks.say("{missing}")


def test_the_book_reads_formulas_in_the_middle_of_a_paragraph():
    """Jupyter does, and the notebooks have them; the book needs an option for it."""
    assert any(re.search(r"\S\n\$\$", text) for path in PATHS for text in prose(path))
    config = yaml.safe_load((notebooks.FOLDER / "_config.yml").read_text(encoding="utf-8"))
    assert config["sphinx"]["config"]["myst_dmath_double_inline"]


def exists(name: str) -> bool:
    """Whether `module.attribute...` of the package can be reached."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["wmpo_lite", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                return attribute in getattr(found, "__dataclass_fields__", {})
            found = getattr(found, attribute)
        return True
    return False


def test_the_glossarys_names_exist_and_its_words_are_in_order():
    text = (notebooks.FOLDER / "glossary.md").read_text(encoding="utf-8")
    entries = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(entries) > 50 and all(re.match(r"- \*\*[^*]+\*\*: \S", line) for line in entries)
    names = [
        name
        for line in entries
        for name in re.findall(r"`([\w.]+)`", re.split(r"(?<=[.;)]) (?=`)", line)[-1])
    ]
    assert len(names) > 40 and [name for name in names if not exists(name)] == []
    for section in text.split("\n## ")[1:]:
        words = re.findall(r"^- \*\*([^*]+)\*\*", section, re.MULTILINE)
        assert words == sorted(words, key=str.lower)
    assert "glossary" in (notebooks.FOLDER / "_toc.yml").read_text(encoding="utf-8")
    assert not exists("grpo.nothing") and not exists("nothing")
