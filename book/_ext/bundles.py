"""A link at the end of every page that has a bundle, and the bundles beside the pages."""

import shutil
from pathlib import Path, PurePosixPath

FOLDER = "downloads"  # in the sources, where the build puts the bundles, and beside the pages


def setup(app):
    """Register the link and the copy."""
    app.connect("html-page-context", _link)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link(app, pagename, templatename, context, doctree):
    name = f"{PurePosixPath(pagename).name}.zip"
    bundle = Path(app.srcdir) / FOLDER / name
    if doctree is None or "/" not in pagename or not bundle.is_file():
        return
    address = f"{'../' * pagename.count('/')}{FOLDER}/{name}"
    size = f"{bundle.stat().st_size / 1e6:.1f} MB"
    context["body"] += (
        f'<p class="poq-download"><a href="{address}" download>Download this chapter</a>'
        f" (zip, {size}): the notebook, its data, the simulator and the versions of all packages, ready to run.</p>"
    )


def _copy(app, exception):
    source = Path(app.srcdir) / FOLDER
    if exception is None and source.is_dir():
        shutil.copytree(source, Path(app.outdir) / FOLDER, dirs_exist_ok=True)
