"""Measurements of time and memory, one module a bench: `minddiff bench NAME` prints them."""

import typer

from minddiff_utils.bench import betas, decoders, published, sd14, stage2, variants

__all__ = ["app"]

app = typer.Typer(help="Measure time and memory on this machine.", no_args_is_help=True)
app.command("betas")(betas.main)
app.command("decoders")(decoders.main)
app.command("published")(published.main)
app.command("sd14")(sd14.main)
app.command("stage2")(stage2.main)
app.command("variants")(variants.main)


@app.callback()
def _group() -> None:
    """Measure time and memory on this machine."""
