import csv
import dataclasses
import io
import shutil
import subprocess
from pathlib import Path

import pytest
from test_page import SECTION, TRIALS, Page, report

from vidflow.report.exports import trials_csv, trials_tex
from vidflow.report.page import render_page

ODD = "50%_a&b $x"


def test_the_csv_has_a_row_per_trial_with_its_run_its_settings_and_its_metrics() -> None:
    rows = list(csv.DictReader(io.StringIO(trials_csv([SECTION], {"gru0": "f00d"}))))
    assert [row["trial"] for row in rows] == ["gru0", "gru1", "mean0", "mean1"]
    best = rows[0]
    assert (best["rank"], best["score"], best["interval_low"], best["mlflow_run"]) == ("1", "0.864", "0.814", "f00d")
    assert (best["setting.core"], best["setting.num_heads"], best["train/loss"]) == ("gru", "", "0.136")
    assert rows[3]["status"] == "failed"


def test_the_best_epochs_score_on_the_test_split_is_in_the_csv_and_on_the_page() -> None:
    epochs = list(TRIALS[1].history)
    epochs[-1] = dataclasses.replace(epochs[-1], metrics={**epochs[-1].metrics, "test/top1": 0.811})
    tested = dataclasses.replace(SECTION, trials=[dataclasses.replace(TRIALS[1], history=tuple(epochs)), *TRIALS[2:]])
    rows = list(csv.DictReader(io.StringIO(trials_csv([tested], {}))))
    assert [row["test/top1"] for row in rows] == ["0.811", "", ""]
    assert (
        "On the test split, on which nothing was chosen, its best epoch gets 81.1"
        in Page(render_page(report(trials=tested.trials))).text
    )


def test_the_latex_table_has_the_best_in_bold_the_trivial_answer_and_no_failed_trial() -> None:
    section = dataclasses.replace(SECTION, baseline={"val/top1": 0.35}, baseline_answer="the usual class")
    text = trials_tex([section])
    assert r"core & seed & val/top1 (\%) & 95\,\% interval & parameters & seconds \\" in text
    assert r"gru & 0 & \textbf{86.4} & 81.4--90.4 & 9.86\,M & 30 \\" in text
    assert r"\multicolumn{2}{l}{\emph{the usual class}} & 35.0 &  &  &  \\" in text
    assert text.count(r"\\") == 5  # head, three trials, the trivial answer


def test_marks_that_latex_reads_as_commands_are_escaped() -> None:
    odd = [dataclasses.replace(row, settings={**row.settings, "core": ODD + row.settings["core"]}) for row in TRIALS]
    assert r"50\%\_a\&b \$xgru" in trials_tex([dataclasses.replace(SECTION, trials=odd)])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the path")
def test_latex_sets_the_table(tmp_path: Path) -> None:
    (tmp_path / "trials.tex").write_text(trials_tex([SECTION]))
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{trials.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    subprocess.run(["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, check=True, capture_output=True)
