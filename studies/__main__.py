"""`python -m studies NAME`, from the folder of the project; README.md says what each study is."""

from importlib import import_module

import typer

from minddiff_utils.cli import main

STUDIES = "betas compare cost decoders model_card needs published size stage2 tiny_decoder training"

app = typer.Typer(help="Measurements, comparisons, and training of the phantom's models.")
for name in STUDIES.split():
    app.command(name)(import_module(f"studies.{name}").main)

if __name__ == "__main__":
    main(app)
