"""Where a package can be changed on one line, and how: the usual mutation operators over the syntax tree.

`sites` lists every change in a file. No change is made where no test could see it, by these rules:

* text: strings (also where they are arguments), f-strings, what is inside `raise` and `warnings.warn`, keyword
  arguments in `TEXT`, `__repr__`;
* types: annotations, `if TYPE_CHECKING`, and bodies that are only `...`;
* `assert`, which states what always holds, `import`, and `if __name__ == "__main__"`;
* decorators (`@dataclass(frozen=True)`, `@lru_cache(maxsize=8)`), keyword arguments in `SPEED`, and powers of two from
  1024 on, which are sizes of buffers and of what is done at a time;
* keyword arguments in `LOOKS`, which only change how things look or what is shown meanwhile, and values of a dict under
  such a key ("grid.linewidth");
* arguments of `SEEDED`: any other stream of random numbers serves as well;
* calls in `DURABLE`, whose absence only a crash of the machine would show.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TEXT = {"help", "metavar", "rich_help_panel", "description", "encoding", "stacklevel", "title", "label"}
SPEED = {"maxsize", "max_workers", "chunksize", "non_blocking", "pin_memory"}
LOOKS = {
    "alpha", "lw", "linewidth", "linestyle", "color", "fontsize", "figsize", "dpi", "zorder", "marker", "markersize",
    "rotation", "ha", "va", "pad", "style", "justify", "bbox_inches", "indent", "progress",
}  # fmt: skip
SEEDED = {"default_rng", "Random", "manual_seed"}
DURABLE = {"flush", "fsync"}
COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.LShift: ">>", ast.RShift: "<<", ast.BitOr: "&", ast.BitAnd: "|", ast.BitXor: "&",
}  # fmt: skip
_BUILTIN = ("min max", "any all")
_METHODS = (*_BUILTIN, "amin amax", "argmin argmax", "minimum maximum", "floor ceil", "startswith endswith",
            "lstrip rstrip", "sum mean", "sin cos", "add discard")  # fmt: skip
SWAPS = {a: b for pair in _METHODS for a, b in (pair.split(), pair.split()[::-1])}
_Node = ast.stmt | ast.expr | ast.keyword
YES_OR_NO = {"any", "all", "isinstance", "startswith", "endswith", "exists", "is_dir", "is_file", "hasattr", "callable"}


@dataclass(frozen=True)
class Site:
    """One change: bytes `start` to `end` of a line become `now`.

    `lines` are the first and the last line of the smallest statement around it. `names` is None inside a function,
    whose lines run when it is called. At the top of a file or class it holds the names that get a value.
    """

    file: str
    line: int
    start: int
    end: int
    now: str
    kind: str
    lines: tuple[int, int]
    names: frozenset[str] | None

    def apply(self, text: str) -> str:
        """Make the change in the file's text."""
        lines = text.splitlines(keepends=True)
        raw = lines[self.line - 1].encode()
        lines[self.line - 1] = (raw[: self.start] + self.now.encode() + raw[self.end :]).decode()
        return "".join(lines)


def bound_names(statement: ast.stmt) -> set[str]:
    """Names that a statement gives a value to: its targets, or the function or class that it defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {n.id for t in targets if t is not None for n in ast.walk(t) if isinstance(n, ast.Name)}


def sites(file: str, text: str) -> list[Site]:
    """Every change of a file by the rules above."""
    finder = _Finder(file, text)
    finder.block(ast.parse(text).body)
    return list(dict.fromkeys(finder.found))


def is_change(site: Site, text: str) -> bool:
    """Whether the file with the change compiles, and is not the same program as before."""
    try:
        return ast.dump(ast.parse(site.apply(text))) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _is_listed(node: ast.AST) -> bool:
    return _is_text(node) or isinstance(node, (ast.List, ast.Tuple, ast.ListComp))


def _is_buffer(number: int) -> bool:
    return number >= 1024 and number & (number - 1) == 0


def _is_look(key: object) -> bool:
    return isinstance(key, str) and key.split(".")[-1] in LOOKS


def _called(node: ast.AST) -> str:
    """The last name of what is called: "warn" of `warnings.warn(...)`; "" where it has none."""
    func = getattr(node, "func", None)
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


class _Finder:
    """Walks a file's tree; `found` holds the sites."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.raw, self.found = file, [line.encode() for line in text.splitlines()], list[Site]()
        self.lines = (1, 1)
        self.names: frozenset[str] | None = frozenset()

    def put(self, kind: str, line: int, start: int, end: int, now: str) -> None:
        """Note a change."""
        self.found.append(Site(self.file, line, start, end, now, kind, self.lines, self.names))

    def text(self, node: ast.expr) -> str | None:
        """The node's source, None where it goes over more than one line."""
        return self.raw[node.lineno - 1][node.col_offset : node.end_col_offset].decode() if _one_line(node) else None

    def replace(self, kind: str, node: ast.stmt | ast.expr, now: str) -> None:
        """Put `now` in the place of a node of one line."""
        if _one_line(node):
            self.put(kind, node.lineno, node.col_offset, node.end_col_offset or 0, now)

    def operator(self, kind: str, left: ast.expr, right: ast.expr, now: str) -> None:
        """Put `now` in the place of the operator between two nodes on one line."""
        if left.end_lineno != right.lineno:
            return
        between = self.raw[right.lineno - 1][left.end_col_offset : right.col_offset]
        if found := re.search(rb"[^\s()](?:.*[^\s()])?", between):
            start = left.end_col_offset or 0
            self.put(kind, right.lineno, start + found.start(), start + found.end(), now)

    def negate(self, kind: str, node: ast.expr) -> None:
        """Turn a condition round, unless it has a `not` that can be taken away."""
        source = self.text(node)
        if source is not None and not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            self.replace(kind, node, f"(not ({source}))")

    def block(self, body: list[ast.stmt]) -> None:
        """Visit statements; the bodies of functions and classes among them too."""
        for statement in body:
            outer = self.lines, self.names
            inner = getattr(statement, "body", None)
            last = inner[0].lineno - 1 if isinstance(inner, list) else statement.end_lineno
            self.lines = (statement.lineno, max(statement.lineno, last or 0))
            if self.names is not None:
                self.names |= bound_names(statement)
            self.statement(statement)
            self.lines, self.names = outer

    def statement(self, node: ast.stmt) -> None:
        """The changes of a statement, then those inside it."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                self.expression(default)
            if node.name != "__repr__":
                self.names = None
                self.block(node.body)
        elif isinstance(node, ast.ClassDef):
            self.block(node.body)
        elif isinstance(node, ast.Raise):
            self.replace("statement removed", node, "pass")
        elif isinstance(node, ast.AnnAssign):
            self.expression(node.value)
        elif isinstance(node, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(node.test)):
            self.block(node.orelse)
        elif not isinstance(node, (ast.Assert, ast.Import, ast.ImportFrom)):
            self.simple_changes(node)
            for _, value in ast.iter_fields(node):
                parts = value if isinstance(value, list) else [value]
                for part in parts:
                    if isinstance(part, ast.stmt):
                        self.block([part])
                    elif isinstance(part, (ast.ExceptHandler, ast.match_case)):
                        self.block(part.body)
                    elif isinstance(part, ast.withitem):
                        self.expression(part.context_expr)
                    elif isinstance(part, ast.expr):
                        self.expression(part)

    def simple_changes(self, node: ast.stmt) -> None:
        """Changes of the statement as a whole."""
        if isinstance(node, (ast.If, ast.While)):
            self.negate("condition negated", node.test)
        elif isinstance(node, (ast.Break, ast.Continue)):
            self.replace("break↔continue", node, "continue" if isinstance(node, ast.Break) else "break")
        elif isinstance(node, ast.Return) and node.value is not None:
            yes_or_no = isinstance(node.value, (ast.Compare, ast.BoolOp)) or _called(node.value) in YES_OR_NO
            if yes_or_no:
                self.negate("return value", node.value)
            else:
                self.replace("return value", node.value, "None")
        elif isinstance(node, ast.AugAssign):
            self.replace("statement removed", node, "pass")
            if (now := ARITHMETIC.get(type(node.op))) and not _is_listed(node.value):
                self.operator("arithmetic", node.target, node.value, f"{now}=")
        else:
            stored = isinstance(node, ast.Assign) and any(
                not isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets
            )
            called = (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value) not in DURABLE
            )
            if stored or called or isinstance(node, ast.Delete):
                self.replace("statement removed", node, "pass")

    def expression(self, node: ast.AST | None) -> None:
        """Changes of an expression, then those inside it."""
        if node is None or isinstance(node, ast.JoinedStr) or _called(node) == "warn":
            return
        change = getattr(self, f"change_{type(node).__name__}", None)
        if change is not None:
            change(node)
        hidden = {k.value for k in getattr(node, "keywords", ()) if k.arg in TEXT | SPEED | LOOKS}
        if isinstance(node, ast.Dict):
            hidden = {v for k, v in zip(node.keys, node.values) if isinstance(k, ast.Constant) and _is_look(k.value)}
        for child in ast.iter_child_nodes(node) if _called(node) not in SEEDED else ():
            value = child.value if isinstance(child, ast.keyword) else child
            if value not in hidden and not isinstance(child, (ast.arguments, ast.expr_context)):
                self.expression(child)

    def change_Compare(self, node: ast.Compare) -> None:
        """`<` to `<=` and so on."""
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators):
            self.operator("comparison", left, right, COMPARISONS[type(op)])

    def change_BoolOp(self, node: ast.BoolOp) -> None:
        """`and` to `or`."""
        for left, right in zip(node.values, node.values[1:]):
            self.operator("and↔or", left, right, "or" if isinstance(node.op, ast.And) else "and")

    def change_BinOp(self, node: ast.BinOp) -> None:
        """`+` to `-` and so on, but not of text, lists and types, where there is nothing but a TypeError."""
        listed = _is_listed(node.left) or _is_listed(node.right)
        of_types = isinstance(node.op, ast.BitOr) and self.names is not None
        if (now := ARITHMETIC.get(type(node.op))) and not listed and not of_types:
            self.operator("arithmetic", node.left, node.right, now)

    def change_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Take away `not` and minus."""
        if isinstance(node.op, (ast.Not, ast.USub)) and (source := self.text(node.operand)) is not None:
            self.replace("not removed" if isinstance(node.op, ast.Not) else "sign", node, f"({source})")

    def change_Constant(self, node: ast.Constant) -> None:
        """A number plus and minus 1; True to False."""
        if isinstance(node.value, bool):
            self.replace("constant", node, str(not node.value))
        elif isinstance(node.value, float) or (isinstance(node.value, int) and not _is_buffer(node.value)):
            for step in (1, -1):
                self.replace("constant", node, f"({node.value + step})" if node.value < 1 else str(node.value + step))

    def change_IfExp(self, node: ast.IfExp) -> None:
        """`a if c else b` to `a if not c else b`."""
        self.negate("condition negated", node.test)

    def change_comprehension(self, node: ast.comprehension) -> None:
        """`for x in y if c` to `for x in y if not c`."""
        for condition in node.ifs:
            self.negate("condition negated", condition)

    def change_Call(self, node: ast.Call) -> None:
        """`min` to `max` and so on; a keyword argument, or the last of several others, left out."""
        name = _called(node)
        known = isinstance(node.func, ast.Attribute) or any(name in pair.split() for pair in _BUILTIN)
        if name in SWAPS and known and node.func.end_col_offset is not None:
            line, end = node.func.end_lineno or 0, node.func.end_col_offset
            self.put("swapped call", line, end - len(name), end, SWAPS[name])
        every: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        for number, argument in enumerate(every):
            if isinstance(argument, ast.keyword):
                fine = argument.arg is not None and argument.arg not in TEXT | SPEED | LOOKS
            else:
                fine = number == len(node.args) - 1 > 0 and not isinstance(argument, ast.Starred)
            value = argument.value if isinstance(argument, ast.keyword) else argument
            if fine and not _is_text(value) and _one_line(argument):
                self.leave_out([node.func, *every][number], argument, every[number + 1 :])

    def leave_out(self, before: _Node, argument: _Node, after: Sequence[_Node]) -> None:
        """Take away an argument with one of the commas beside it."""
        start, end = argument.col_offset, argument.end_col_offset or 0
        if (
            before.end_lineno == argument.lineno
            and self.raw[argument.lineno - 1][before.end_col_offset : start].strip(b" ") == b","
        ):
            start = before.end_col_offset or 0
        elif after and after[0].lineno == argument.lineno:
            end = after[0].col_offset
        self.put("argument left out", argument.lineno, start, end, "")


def _one_line(node: _Node) -> bool:
    return node.lineno == node.end_lineno


def function_lines(text: str) -> set[int]:
    """The lines that run when a function is called, not when the file is imported."""
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {line for f in functions for line in range(f.body[0].lineno, (f.end_lineno or 0) + 1)}


def mentions(text: str) -> Iterator[tuple[str, int, frozenset[str] | None]]:
    """(name, line, names) of every name, attribute, keyword and name-like string of a file; `names` as in Site."""

    def walk(node: ast.AST, names: frozenset[str] | None) -> Iterator[tuple[str, int, frozenset[str] | None]]:
        if isinstance(node, ast.stmt) and names is not None:
            names |= bound_names(node)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and child in node.body
            yield from walk(child, None if inside else names)
        found = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
        if found is None and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = node.value if node.value.isidentifier() else None
        if found is not None:
            yield found, getattr(node, "lineno", 0), names

    yield from walk(ast.parse(text), frozenset())
