"""`python -m pipelines` is `vidflow`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
