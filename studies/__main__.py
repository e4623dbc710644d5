"""`python -m studies NAME`, from the folder of the project."""

import typer

from minddiff_utils.cli import main
from studies import betas, decoders, published, sd14, stage2, variants

app = typer.Typer(help="Measurements and comparisons.", no_args_is_help=True)
for module in (betas, decoders, published, sd14, stage2, variants):
    app.command(module.__name__.removeprefix("studies."))(module.main)

if __name__ == "__main__":
    main(app)
