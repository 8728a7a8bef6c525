"""Names that programs take for something else: markup, escape sequences, formulas, paths."""

# Of a path, a class, a metric, a status, …: what each would do where it is not taken as text.
HOSTILE = [
    "[bold]b[/bold][/]",
    "cat [red]",
    "[link=file:///x]y[/link]",
    ":smile: {0} %s",
    "\x1b]0;title\x07\x1b[31mRED",
    "\x9b31m\x7f\x08",
    "a\nb|c\r\nd",
    "a\tb  c",
    "\u202egpj.exe\u2066",
    "caf\udce9",
    "=1+1",
    "@SUM(A1)",
    "+1+1",
    "-x",
    "<script>alert(1)</script>&amp;",
    "`*_~#$x^2$ \\ \"'",
    "%&$#_{}~^\\--",
    "*[x] ---",
]
