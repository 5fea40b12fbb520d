"""From a student's notebooks to the source of one function: its definition and what it needs.

Nothing else of a notebook is run: no prints, checks, downloads, endless loops or `sys.exit()`
around it. Functions are found by name, so it does not matter what a notebook or cell is called.
"""

import ast
import json
import symtable
from pathlib import Path

from wmpo_lite.common.errors import UserError

LARGEST = 50_000_000  # bytes of a notebook that is read


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells. UserError where it cannot be read as nbformat 4."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path.name} has {path.stat().st_size:,} bytes; remove its outputs")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        version = notebook["nbformat"]
        if version != 4:
            raise UserError(
                f"{path.name} has notebook format {version} where 4 is read; open it in a current"
                " Jupyter and save it again"
            )
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError) as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path.name} is not a notebook ({type(error).__name__}: {said})"
        ) from error


def parse(cell: str) -> list[ast.stmt]:
    """The statements of a cell; lines for IPython (%, !) are left out. SyntaxError as Python's."""
    lines = cell.splitlines()
    kept = [line if line.lstrip()[:1] not in ("%", "!") else "" for line in lines]
    try:
        return ast.parse("\n".join(kept)).body
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from error


def binds(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement gives a value to or changes."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            root = node
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            found |= {root.id} if isinstance(root, ast.Name) else set()
    return found


def uses(statement: ast.stmt) -> set[str]:
    """Global names that a top-level statement reads, in the functions inside it, too."""
    found, tables = set(), [symtable.symtable(ast.unparse(statement), "cell", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        read = [symbol for symbol in table.get_symbols() if symbol.is_referenced()]
        found |= {symbol.get_name() for symbol in read if top or symbol.is_global()}
        tables += table.get_children()
    return found


def extract(cells: list[str], name: str) -> str:
    """The statements that define `name` and, in turn, all that they use: imports first, the others
    in their order. UserError when no cell defines it.
    """
    statements, broken = [], None
    for cell in cells:
        try:
            statements += parse(cell)
        except SyntaxError as error:
            if name in cell:
                broken = f"line {error.lineno} of its cell is not valid Python ({error.msg})"
    bound = [binds(statement) for statement in statements]
    if not any(name in names for names in bound):
        raise UserError(broken or f"no cell defines `{name}`")
    needed, chosen, grows = {name}, set(), True
    while grows:
        grows = False
        for i, statement in enumerate(statements):
            if i not in chosen and (bound[i] & needed or "*" in bound[i]):
                chosen.add(i)
                needed |= uses(statement)
                grows = True
    # The definitions that a later one replaces entirely would only cost time.
    last = {n: i for i in sorted(chosen) for n in bound[i] if _defines(statements[i])}
    kept = [
        i for i in sorted(chosen) if not _defines(statements[i]) or last[statements[i].name] == i
    ]
    kept.sort(key=lambda i: not isinstance(statements[i], (ast.Import, ast.ImportFrom)))
    return "\n".join(ast.unparse(statements[i]) for i in kept)


def _defines(statement) -> bool:
    return isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and not statement.decorator_list
