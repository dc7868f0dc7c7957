"""What infra/ adds to jobs: a job that waits for nodes, and ends that KubeRay does not retry."""

import re
import sys
from pathlib import Path

import pytest
from cluster import running_cluster
from jobs import submitted, wait_for_job_server


@pytest.mark.slow
def test_a_job_waits_until_the_nodes_are_there_and_names_them() -> None:
    with running_cluster(dashboard=True) as cluster:
        cluster.add(1)
        wait_for_job_server(cluster)
        with submitted(cluster, sys.executable, "infra/wait_for_nodes.py", "2") as job:
            assert job.process.wait(120) == 0, job.said
            assert "2 of 2 machines: 127.0.0.2, 127.0.0.3" in job.said
        with submitted(cluster, sys.executable, "infra/wait_for_nodes.py", "3", "2") as job:
            assert job.process.wait(120) == 1
            assert "wanted 3 machines, got 2 after 2 s" in job.said


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
