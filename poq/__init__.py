"""Proof of Quality: consensus, trust, attacks and rewards in decentralized LLM inference, simulated on score logs."""

import contextlib as _contextlib
from pathlib import Path as _Path

__version__ = "0.1.0"


def _drop_stale_code(package: _Path) -> None:
    """Remove compiled code that is older than any module: it does not notice a change of a function that it took in
    from another file."""
    changed = max((path.stat().st_mtime for path in package.glob("*.py")), default=0.0)
    for compiled in (package / "__pycache__").glob("*.nb[ic]"):
        with _contextlib.suppress(OSError):  # gone already, or not ours to remove
            if compiled.stat().st_mtime < changed:
                compiled.unlink()


_drop_stale_code(_Path(__file__).parent)
