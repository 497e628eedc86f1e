"""Names in the scatter figure: Hangul, where a font has it, and what matplotlib would take for mathematics."""

import types
import warnings

import numpy as np
import pytest

from kf_deberta.evaluation import scatter
from kf_deberta.evaluation.scoring import FIGURES


@pytest.mark.parametrize("installed", [True, False])
def test_hangul_and_dollars_in_names(tmp_path, monkeypatch, capsys, installed):
    titles = []
    original = scatter.plt.Axes.set_title
    monkeypatch.setattr(scatter.plt.Axes, "set_title", lambda s, text, **kw: titles.append(text) or original(s, text))
    if not installed:
        monkeypatch.setattr(scatter, "HANGUL_FONTS", ())
    record = dict.fromkeys(FIGURES, 0.5) | {"model": "모델_$x_\\frac$", "dimensions": None, "precision": "float32"}
    gold = np.linspace(0, 1, 9)
    pairs = types.SimpleNamespace(scale=(0, 5), gold=gold)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scatter.plot(tmp_path / "plot.png", [(record, gold, pairs)])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    drawn = "no font with Hangul" not in capsys.readouterr().err
    assert installed or not drawn
    assert titles == [("모델" if drawn else "??") + "_$x_\\frac$"]
