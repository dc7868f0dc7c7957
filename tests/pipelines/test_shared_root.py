"""Whether a node sees the root: what a worker answers, and what the command makes of it."""

import pytest
import ray

from pipelines.shared_root import Proof, answer, check_home, checked_root, session_proof
from vidflow.errors import VidflowError


def test_a_worker_that_does_not_see_the_file_under_the_root_is_refused_with_its_node(in_one_ray, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.shared_root._SECONDS_TO_APPEAR", 0.1)
    ask = ray.remote(answer).options(num_cpus=0)
    with checked_root(tmp_path / "root"):
        proof = session_proof()
        home, apart = ray.get([ask.remote(proof), ask.remote(Proof(proof.folder, f"{proof.word[:8]} of another disk"))])
        with pytest.raises(VidflowError, match="it does not see the file that this command wrote there"):
            check_home(apart._replace(node="another"))
        with pytest.raises(VidflowError, match=f"root: {tmp_path / 'root'} is not shared by node {home.ip}"):
            check_home(home._replace(node="which wrote elsewhere"))
        check_home(home)
    assert session_proof() is None
    assert list((tmp_path / "root").iterdir()) == []
