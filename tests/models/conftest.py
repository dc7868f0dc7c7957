"""What the tests of the models share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Run tiny operations on one thread: two threads that wait for each other are slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
