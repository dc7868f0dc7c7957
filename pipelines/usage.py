"""What a trial's process and its machine use, measured once an epoch and named as MLflow's UI expects it."""

from contextlib import suppress
from typing import Any

import psutil
import pynvml
import torch


class Usage:
    """Means since the last reading for processors, and the present state for memory.

    The names begin with `system/`, so that MLflow shows them apart from the metrics of the model.
    """

    def __init__(self, device: torch.device) -> None:
        """Start to measure.

        Args:
            device: Where the trial computes.
        """
        self._process = psutil.Process()
        self._gpu = _gpu_handle(device) if device.type == "cuda" else None
        self._device = device
        self.read()

    def read(self) -> dict[str, float]:
        """Return the metrics by name; percentages of the whole machine or GPU, and megabytes."""
        memory = psutil.virtual_memory()
        metrics = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            metrics["system/gpu_memory_usage_percentage"] = 100 * (1 - free / total)
            metrics["system/gpu_memory_usage_megabytes"] = (total - free) / 1e6
        if self._gpu is not None:
            # A GPU that is divided into parts does not tell how busy a part is.
            with suppress(pynvml.NVMLError):
                metrics["system/gpu_utilization_percentage"] = float(
                    pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu
                )
        return metrics


def _gpu_handle(device: torch.device) -> Any:
    """Return NVML's handle of a GPU, which it knows by its UUID; None if NVML cannot be used."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return None
