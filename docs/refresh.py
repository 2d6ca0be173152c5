"""Copy the outputs of the examples into the pages, from a real run of each.

    python docs/refresh.py                     every page
    python docs/refresh.py docs/tutorial.md    one page

Outputs that still agree are left as they are. `tests/test_docs.py` fails while a page is out of date.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doc_examples import REPOSITORY, pages, refreshed, run_page


def main(names: list[str]) -> None:
    """Rewrite the named pages, or all."""
    for path in [Path(name).resolve() for name in names] or pages():
        with tempfile.TemporaryDirectory() as folder:
            examples = list(run_page(path, Path(folder).resolve()))
        stale = [example for example in examples if not example.up_to_date]
        if stale:
            path.write_text(refreshed(path.read_text("utf-8"), examples), "utf-8")
        print(f"{path.relative_to(REPOSITORY)}: {len(stale)} of {len(examples)} outputs rewritten")


if __name__ == "__main__":
    main(sys.argv[1:])
