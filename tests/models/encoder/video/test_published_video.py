"""Tiny video transformers against recorded runs of the published code: every case, assignments and sizes exactly."""

from pathlib import Path

import pytest
import torch
from published import as_recorded, build_recorded, read_recording, run_case

FAMILIES = ("vivit", "videomae")


@pytest.mark.parametrize("attention", ["fused", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_case_is_reproduced(shared_dir: Path, tmp_path: Path, family: str, attention: str) -> None:
    recording = read_recording(shared_dir, family)
    classifier = build_recorded(recording, tmp_path, attention=attention)
    for case in recording.cases:
        state, logits = run_case(classifier, recording, case)
        found = as_recorded(recording, state, case)
        # The tolerances that came with the files; no matching in them hangs on a rounding.
        wanted = recording.of(case, "last_hidden_state")
        torch.testing.assert_close(found["tokens"], wanted, rtol=0, atol=5e-5, msg=lambda text: f"{case}: {text}")  # noqa: B023
        torch.testing.assert_close(logits, recording.of(case, "logits"), rtol=0, atol=2e-5)
        if case != "plain":
            assert torch.equal(found["sizes"], recording.of(case, "sizes")), case
            assert torch.equal(found["assignment"], recording.of(case, "assignment")), case
