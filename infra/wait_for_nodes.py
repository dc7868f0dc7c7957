"""Wait until a Ray cluster has a number of machines, the head included.

    ray job submit --working-dir . -- python infra/wait_for_nodes.py 3

`ray up` returns when the head runs, and the other machines join while they are being installed. Work may be submitted
before: workers start on machines as they join. Wait if a job should not start with a part of them.
"""

import sys
import time

import ray

_SECONDS_BETWEEN_LOOKS = 2


def main(number: int, seconds: float) -> None:
    """Wait for `number` machines, the head included, and exit with 1 if they are not there after `seconds`."""
    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    deadline, shown = time.monotonic() + seconds, -1
    while True:
        machines = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
        if len(machines) != shown:
            shown = len(machines)
            print(f"{shown} of {number} machines: {', '.join(machines)}", flush=True)
        if shown >= number:
            return
        if time.monotonic() > deadline:
            sys.exit(
                f"wanted {number} machines, got {shown} after {seconds:.0f} s. `ray monitor infra/ray-cluster.yaml` "
                "shows what the installation of the others says"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not all(word.isdigit() for word in sys.argv[1:]):
        sys.exit("usage: wait_for_nodes.py NUMBER_OF_MACHINES [SECONDS]")
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) == 3 else 900)
