"""The trials as a CSV table for other programs, and as a LaTeX table for a paper."""

import csv
import io
from collections.abc import Mapping, Sequence

from vidflow.report.formats import format_magnitude, is_share
from vidflow.report.sections import TaskSection
from vidflow.report.tables import RankedTrial, rank_trials, shared_settings

CSV, TEX = "trials.csv", "trials.tex"
# Backslash first: the other replacements contain one.
_TEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def trials_csv(sections: Sequence[TaskSection], runs: Mapping[str, str]) -> str:
    """Return one row per trial with all its settings, best first within a task; what is not known is empty.

    Args:
        sections: The tasks and their trials.
        runs: Key of a trial -> id of its MLflow run.
    """
    rows = [_csv_row(section, rank, row, runs) for section in sections for rank, row in enumerate(_rank(section), 1)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def trials_tex(sections: Sequence[TaskSection]) -> str:
    """Return a booktabs table per task: the settings that differ, the score with its interval, parameters, seconds."""
    head = "% \\usepackage{booktabs} in the preamble, then \\input{trials.tex}\n"
    return head + "\n".join(_tex_table(section) for section in sections)


def _rank(section: TaskSection) -> list[RankedTrial]:
    return rank_trials(section.trials, section.objective, section.mode)


def _csv_row(section: TaskSection, rank: int, row: RankedTrial, runs: Mapping[str, str]) -> dict[str, object]:
    result = row.result
    return {
        "task": section.task,
        "rank": rank,
        "objective": section.objective,
        "score": row.score,
        "interval_low": row.low,
        "interval_high": row.high,
        "baseline": section.baseline.get(section.objective),
        "best_epoch": result.best.epoch if result.best else None,
        "num_epochs": len(result.history),
        "num_parameters": result.num_parameters,
        "seconds": round(row.seconds, 3),
        "status": result.status,
        "trial": result.key,
        "mlflow_run": runs.get(result.key),
        **{f"setting.{name}": value for name, value in result.settings.items()},
        **(result.best.metrics if result.best else {}),
        **result.test,
    }


def _tex_table(section: TaskSection) -> str:
    ranked = [row for row in _rank(section) if not row.failed]
    names = list(ranked[0].settings) or ["core"] if ranked else ["core"]
    metric = section.objective + (" (\\%)" if is_share(section.objective) else "")
    metric = _escape(section.objective) + metric.removeprefix(section.objective)
    heads = [*map(_escape, names), metric, "95\\,\\% interval", "parameters", "seconds"]
    lines = [
        f"% {section.task}; shared: "
        + ", ".join(f"{name}={value}" for name, value in shared_settings(section.trials).items() if name != "task"),
        f"\\begin{{tabular}}{{{'l' * len(names)}rrrr}}",
        "\\toprule",
        " & ".join(heads) + r" \\",
        "\\midrule",
        *(" & ".join(_tex_cells(section, row, names)) + r" \\" for row in ranked),
    ]
    if (baseline := section.baseline.get(section.objective)) is not None:
        words = f"\\multicolumn{{{len(names)}}}{{l}}{{\\emph{{{_escape(section.baseline_answer)}}}}}"
        lines += ["\\midrule", " & ".join([words, _number(section, baseline), "", "", ""]) + r" \\"]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex_cells(section: TaskSection, row: RankedTrial, names: Sequence[str]) -> list[str]:
    score = _number(section, row.score)
    ends = [_number(section, end) for end in (row.low, row.high) if end is not None]
    return [
        *(_escape(_plain(row.result.settings.get(name))) for name in names),
        f"\\textbf{{{score}}}" if row.is_best else score,
        "--".join(ends),
        format_magnitude(row.result.num_parameters).replace(" ", "\\,"),
        f"{row.seconds:.0f}",
    ]


def _number(section: TaskSection, value: float | None) -> str:
    if value is None:
        return "--"
    return f"{100 * value:.1f}" if is_share(section.objective) else f"{value:.4g}"


def _plain(value: object) -> str:
    return "--" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return "".join(_TEX.get(mark, mark) for mark in text)
