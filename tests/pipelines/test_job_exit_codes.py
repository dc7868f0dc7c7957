"""How a job of KubeRay's ends: what a retry cannot repair is STOPPED, which KubeRay does not retry."""

import re
import sys
from pathlib import Path

import pytest
from cluster import running_cluster
from jobs import submitted, wait_for_job_server


@pytest.mark.slow
def test_exit_codes_2_and_3_stop_the_job_and_others_fail_it(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("trials: {wrong: 1}\n")
    path = f"PATH={Path(sys.executable).parent}:$PATH"
    too_many = tmp_path / "vidflow"  # in place of the command: three rejects too many would take a run
    too_many.write_text("#!/bin/bash\nexit $1\n")
    too_many.chmod(0o755)
    job = "infra/kuberay/vidflow-job"
    expected = {
        f"{path} bash {job} run {bad}": "stopped",
        f"PATH={tmp_path}:{path[5:]} bash {job} 3": "stopped",
        f"PATH={tmp_path}:{path[5:]} bash {job} 1": "failed",
        f"PATH={tmp_path}:{path[5:]} bash {job} 0": "succeeded",
    }
    with running_cluster(dashboard=True) as cluster:
        wait_for_job_server(cluster)
        for command, status in expected.items():
            with submitted(cluster, "bash", "-c", command) as done:
                code = done.process.wait(180)
                said = done.said
            assert re.findall(r"Job '\S+' (?:was )?(stopped|failed|succeeded)", said) == [status], said
            assert code == (status == "failed"), said
            assert ("retry cannot repair" in said) == (status == "stopped"), said
