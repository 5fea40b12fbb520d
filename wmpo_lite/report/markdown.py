"""Tables in Markdown."""


def markdown(header: list, rows: list) -> str:
    """A table of texts, without a newline at its end."""
    lines = [f"| {' | '.join(map(str, row))} |".replace("|  |", "| |") for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
