"""All stages in order: `python -m pipelines.run CONFIG.yaml` is `vidflow run CONFIG.yaml`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
