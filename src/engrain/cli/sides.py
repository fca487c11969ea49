"""Two replies side by side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_sides(prompt: str, base: str, edited: str, what: str) -> None:
    """Print the base model's reply on the left and the edited model's on the right."""
    table = Table(title=Text(prompt, style="bold"), expand=True, show_lines=True)
    table.add_column("base", ratio=1)
    # Files' names and model output are untrusted text: Text takes them as they are, markup in them stays letters.
    table.add_column(Text(what), ratio=1)
    table.add_row(Text(base), Text(edited))
    Console().print(table)
