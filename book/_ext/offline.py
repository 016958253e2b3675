"""Keep the pages free of scripts that fetch something: sphinx-thebe loads code from outside and fails without it."""


def setup(app):
    """Remove sphinx-thebe's handlers and style sheet once all extensions are loaded."""
    app.connect("config-inited", _drop_thebe, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _drop_thebe(app, config):
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if not entry.handler.__module__.startswith("sphinx_thebe")]
    app.registry.css_files[:] = [entry for entry in app.registry.css_files if "thebe" not in entry[0]]
