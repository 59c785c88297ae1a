#!/usr/bin/env python3
"""Lists what the library shows to a program that embeds it, as docs/public-api.md holds it.

    RUSTC_BOOTSTRAP=1 cargo rustdoc --lib --no-default-features -- -Z unstable-options --output-format json
    scripts/public-api.py target/doc/spts.json > docs/public-api.md

Names at the crate's root, and how many methods, fields or variants each has; with --check FILE, ends with 1 if FILE says otherwise.
"""

import json
import sys
from pathlib import Path

ORDER = ["struct", "enum", "trait", "type_alias", "function", "constant", "module"]


def main():
    args = [a for a in sys.argv[1:] if a != "--check"]
    index = json.loads(Path(args[0]).read_text())
    items, root = index["index"], index["root"]
    found = []
    for ident in items[str(root)]["inner"]["module"]["items"]:
        item = items[str(ident)]
        kind, inner = next(iter(item["inner"].items()))
        name, attributes = item["name"], item["attrs"]
        if kind == "use":
            name = inner["name"]
            target = items.get(str(inner["id"]))
            if target is None:
                found.append((name, "struct", ""))
                continue
            kind, inner = next(iter(target["inner"].items()))
            attributes = target["attrs"]
        found.append((name, kind, parts(items, kind, inner, "non_exhaustive" in attributes)))
    lines = [
        "# What a program that embeds the library sees",
        "",
        f"{len(found)} names at the crate's root, without default features. `scripts/public-api.py` writes this list (its head has the commands). "
        "What is open (`#[non_exhaustive]`) may have more fields or variants in a later version.",
        "",
        "| | | |",
        "|---|---|---|",
    ]
    for kind in ORDER:
        for name, _, what in sorted(f for f in found if f[1] == kind):
            lines.append(f"| `{name}` | {kind.replace('_', ' ')} | {what} |")
    rest = [f for f in found if f[1] not in ORDER]
    assert not rest, rest
    text = "\n".join(lines) + "\n"
    if "--check" in sys.argv:
        if Path(args[1]).read_text() != text:
            sys.exit(f"public-api: {args[1]} is not what the library shows; run scripts/public-api.py again")
    else:
        sys.stdout.write(text)


def parts(items, kind, inner, is_open):
    """Public methods, fields and variants, and whether later versions may have more of the latter two."""
    out = ["open"] if is_open else []
    if kind == "struct":
        fields = inner["kind"].get("plain", {}).get("fields", []) if isinstance(inner["kind"], dict) else []
        out += count(len(fields), "field")
    if kind == "enum":
        out += count(len(inner["variants"]), "variant")
    if kind == "trait":
        out += count(len(inner["items"]), "method")
    if kind in ("struct", "enum"):
        own = [items[str(i)]["inner"]["impl"] for i in inner["impls"] if str(i) in items]
        methods = [m for i in own if i["trait"] is None for m in i["items"] if items[str(m)]["visibility"] == "public"]
        out += count(len(methods), "method")
    if kind == "module":
        out += count(len(inner["items"]), "item")
    return ", ".join(out)


def count(n, what):
    return [f"{n} {what}{'s' if n > 1 else ''}"] if n else []


if __name__ == "__main__":
    main()
