"""Writes copies of sources with faults that a test switches on one at a time: mutations of our own code.

Of faults, a table of (name, source, text, replacement): each replaces text that must stand exactly once in its source, so
that the table stays true. `PLANTED` is true while the fault is switched on. A name that stands there more than once is one
fault in several places.
"""

import pathlib
import sys

PROLOGUE = "namespace lockstep::test {\nbool planted(int number) noexcept;\n}\n"


def names_of(faults):
    """In the order of their numbers."""
    return list(dict.fromkeys(name for name, *_ in faults))


def sources_of(faults):
    return sorted({source for _, source, *_ in faults})


def out_name(source):
    return "planted_" + source.replace("/", "_")


def write(faults, folder, top):
    """The sources into `folder`, and names.cpp with the list."""
    folder, top = pathlib.Path(folder), pathlib.Path(top)
    names = names_of(faults)
    for source in sources_of(faults):
        path = top / "src" / source
        text = path.read_text()
        for name, where, old, new in faults:
            if where != source:
                continue
            if text.count(old) != 1:
                sys.exit(f"planting: '{name}': this stands {text.count(old)} times in {path}:\n{old}")
            text = text.replace(old, new.replace("PLANTED", f"lockstep::test::planted({names.index(name)})"))
        (folder / out_name(source)).write_text(f'{PROLOGUE}#line 1 "{path}"\n{text}')
    listed = "".join(f'    "{name}",\n' for name in names)
    (folder / "planted_names.cpp").write_text(
        f'#include "planted.hpp"\n\nnamespace lockstep::test {{\n\n'
        f"const std::vector<std::string> planted_faults = {{\n{listed}}};\n\n}}  // namespace lockstep::test\n")


def main(faults):
    """FOLDER TOP: writes; --sources: prints the names of the sources."""
    if sys.argv[1] == "--sources":
        print("\n".join(sources_of(faults)))
    else:
        write(faults, sys.argv[1], sys.argv[2])
