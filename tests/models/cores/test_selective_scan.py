import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.bench.scan import plain_scan
from vidflow.models.cores import selective_scan as module
from vidflow.models.cores.selective_scan import selective_scan


def arguments(num_sequences, num_steps, channels, num_states, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return (
        torch.nn.functional.softplus(normal(num_sequences, num_steps, channels) - 2),
        normal(num_sequences, num_steps, channels),
        -normal(num_states, channels).exp(),
        normal(num_sequences, num_steps, num_states),
        normal(num_sequences, num_steps, num_states),
        normal(num_sequences, num_states, channels),
    )


sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))


@given(size=sizes, seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_outputs_and_gradients_equal_those_of_the_plain_recurrence(size, seed):
    ours, theirs = ([part.requires_grad_() for part in arguments(*size, seed=seed)] for _ in range(2))
    results = []
    for scan, inputs in ((selective_scan, ours), (plain_scan, theirs)):
        y, last = scan(*inputs)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad((weights * y).sum() + last.square().sum(), inputs)
        results.append((y, last, *grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_the_gradient_passes_gradcheck():
    inputs = tuple(part.requires_grad_() for part in arguments(2, 3, 3, 2))
    assert torch.autograd.gradcheck(selective_scan, inputs)


def test_blocks_do_not_change_the_result(monkeypatch):
    inputs = tuple(part.requires_grad_() for part in arguments(7, 4, 3, 2))
    whole = selective_scan(*inputs)
    whole_grads = torch.autograd.grad(whole[0].sum() + whole[1].sum(), inputs)
    # Two sequences of 3 x 2 numbers per block: three full blocks and one of a single sequence.
    monkeypatch.setattr(module, "_CPU_STEP", 12)
    parts = selective_scan(*inputs)
    part_grads = torch.autograd.grad(parts[0].sum() + parts[1].sum(), inputs)
    torch.testing.assert_close((*parts, *part_grads), (*whole, *whole_grads), rtol=1e-12, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.numel())
        return result


def test_the_states_of_all_sequences_and_steps_are_never_held(monkeypatch):
    size = (64, 8, 4, 4)
    monkeypatch.setattr(module, "_CPU_STEP", 64)
    inputs = tuple(part.requires_grad_() for part in arguments(*size))
    saved = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda part: saved.append(part.numel()) or part, lambda part: part),
    ):
        y, _ = selective_scan(*inputs)
        y.sum().backward()
    # The largest inputs have S T E numbers; the states of all steps would be n = 4 times that.
    assert largest.numel <= 64 * 8 * 4
    assert sum(saved) == sum(part.numel() for part in inputs)


def test_half_precision_is_computed_in_single_precision():
    exact = arguments(3, 5, 4, 2, dtype=torch.float32)
    half = tuple(part.bfloat16() for part in exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = selective_scan(*half)
    assert y.dtype == last.dtype == torch.float32
    torch.testing.assert_close(y, plain_scan(*(part.float() for part in half))[0], rtol=1e-5, atol=1e-5)


def test_autocast_does_not_lower_the_gradient():
    inputs = tuple(part.requires_grad_() for part in arguments(3, 5, 4, 2, dtype=torch.float32))
    exact = torch.autograd.grad(selective_scan(*inputs)[0].sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = torch.autograd.grad(selective_scan(*inputs)[0].sum(), inputs)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0)


@pytest.mark.slow
def test_the_scan_takes_a_third_of_the_time_of_the_plain_recurrence():
    inputs = tuple(part.requires_grad_() for part in arguments(201, 16, 768, 16, dtype=torch.float32))
    gradient = torch.randn(201, 16, 768)
    best = {selective_scan: float("inf"), plain_scan: float("inf")}
    # Processor time of one thread, which other processes do not change much, the best of several taken in turns.
    for _ in range(5):
        for scan in best:
            start = time.process_time()
            scan(*inputs)[0].backward(gradient)
            best[scan] = min(best[scan], time.process_time() - start)
    print(f"plain {best[plain_scan]:.3f} s, ours {best[selective_scan]:.3f} s")
    assert best[plain_scan] >= 3 * best[selective_scan]


@pytest.mark.gpu
def test_an_accelerator_gives_the_same_outputs_and_gradients():
    inputs = tuple(part.requires_grad_() for part in arguments(5, 4, 8, 3))
    remote = tuple(part.detach().cuda().requires_grad_() for part in inputs)
    results = []
    for group in (inputs, remote):
        y, last = selective_scan(*group)
        results.append([part.cpu() for part in (y, last, *torch.autograd.grad(y.sum() + last.sum(), group))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
