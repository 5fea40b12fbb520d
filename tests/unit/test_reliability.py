"""The instruments of `make reliability`: a share of its damaged inputs in every run of the tests,
and a table that names tests that exist.
"""

import ast
import json

import numpy as np
import pytest
from reliability import damage, fuzz, kinds

from wmpo_lite.common.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound files of a kind, made once and read without a word."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("sound")
            fuzz.KINDS[kind][0](made[kind])
            fuzz.KINDS[kind][1](made[kind])
        return made[kind]

    return of


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_inputs_end_in_success_or_one_sentence_and_stay_as_they_are(sound, kind):
    for number in range(1000, 1002 if kind == "report" else 1006):
        end = fuzz.try_one(kind, sound(kind), number)
        assert end["end"] in ("success", "sentence"), end


@pytest.mark.parametrize(
    "reader, end",
    [
        (lambda folder: None, "success"),
        (lambda folder: (_ for _ in ()).throw(UserError("it is broken; mend it")), "sentence"),
        (lambda folder: (_ for _ in ()).throw(UserError("one\ntwo")), "several lines"),
        (lambda folder: {}["a"], "traceback"),
        (lambda folder: (folder / "new").write_text("x"), "changed"),
    ],
)
def test_the_fuzz_test_tells_how_an_input_ended(tmp_path, monkeypatch, reader, end):
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setitem(fuzz.KINDS, "run", (None, reader))
    assert fuzz.try_one("run", tmp_path, 0)["end"] == end


def test_a_process_that_dies_is_an_end_of_its_input_and_the_others_are_tried(monkeypatch):
    monkeypatch.setattr(
        fuzz,
        "worker_command",
        lambda kind, first, count, seed: [
            "python3",
            "-c",
            f"""
import json, sys
for n in range({first}, {first + count}):
    end = dict(number=n, how="", end="success", said="")
    sys.exit(9) if n == 1 else print(json.dumps(end), flush=True)
""",
        ],
    )
    assert [end["end"] for end in fuzz.run("journal", 4)] == [
        "success",
        "died",
        "success",
        "success",
    ]


def test_damage_is_seeded_and_harms(tmp_path):
    for name in ("a.json", "b.npz"):
        data = json.dumps({"task": "place", "rows": [1, 2, {"x": [True, None]}]}).encode() * (
            1 if name == "a.json" else 40
        )
        found = []
        for number in (*range(60), *range(60)):
            (tmp_path / name).write_bytes(data)
            damage.damage(tmp_path / name, np.random.default_rng(number))
            left = (
                (tmp_path / name).read_bytes()
                if (tmp_path / name).is_file()
                else (tmp_path / name).exists()
            )
            found.append(left)
            if (tmp_path / name).is_dir():
                (tmp_path / name).rmdir()
        assert (
            found[:60] == found[60:]
            and sum(left != data for left in found) > 90
            and len(set(found)) > 30
        )


def test_every_kind_of_trouble_has_tests_that_exist():
    assert list(kinds.KINDS) == [f"T{n}" for n in range(1, 34)]
    for _, tests in kinds.KINDS.values():
        for file, names in tests.items():
            tree = ast.parse((kinds.ROOT / "tests" / file).read_text(encoding="utf-8"))
            there = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            for name in names:
                assert any(other.startswith(name) for other in there), f"{file} has no {name}"
