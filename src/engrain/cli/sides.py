"""Two replies side by side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_sides(prompt: str, base: str, edited: str, what: str) -> None:
    """Print the base model's reply on the left and the edited model's on the right."""
    table = Table(title=Text(prompt, style="bold"), expand=True, show_lines=True)
    table.add_column("base", ratio=1)
    table.add_column(what, ratio=1)
    # Model output is untrusted text: Text takes it as it is, markup in it stays letters.
    table.add_row(Text(base), Text(edited))
    Console().print(table)
