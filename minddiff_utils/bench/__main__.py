"""`python -m minddiff_utils.bench NAME` is `minddiff bench NAME`."""

from minddiff_utils.bench import app
from minddiff_utils.cli import main

if __name__ == "__main__":
    main(app)
