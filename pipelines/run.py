"""All stages in order: `python -m pipelines.run CONFIG.yaml` is `vidflow run CONFIG.yaml`."""

from pipelines.cli import run_stage

if __name__ == "__main__":
    run_stage("run")
