"""Progress bars are silent where asked to be, in a terminal and in a notebook."""

from wmpo_lite.common.progress import progress


def test_silence_is_one_variable(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress(range(3), desc="quiet")) == [0, 1, 2] and not capsys.readouterr().err
    monkeypatch.delenv("TQDM_DISABLE")
    assert list(progress(range(3), desc="loud")) == [0, 1, 2] and "loud" in capsys.readouterr().err
    assert (
        list(progress(range(3), desc="off", disable=True)) == [0, 1, 2]
        and not capsys.readouterr().err
    )
