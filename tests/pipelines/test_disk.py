import errno
import os

import pytest

from pipelines.disk import explain_system_failures
from vidflow.errors import VidflowError


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"no space left in {0} \(No space left on device, [\d,]+ bytes free\); free some space there"),
        (errno.EROFS, r"{0}/x.tar: Read-only file system; correct the disk or its permissions"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_sentence_with_its_path(tmp_path, number, said):
    with pytest.raises(VidflowError, match=said.format(tmp_path)), explain_system_failures(tmp_path, resumes=True):
        raise OSError(number, os.strerror(number), str(tmp_path / "x.tar"))
