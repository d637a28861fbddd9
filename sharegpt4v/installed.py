"""What of an optional extra is missing, as an error that says what to install."""

import importlib.util


class NotInstalled(ImportError):
    """A command needs packages that are optional; the message names what installs them."""


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """
    Check that optional packages are there, without an import.

    Args:
        extra (`str`): Extra of this distribution that brings them.
        purpose (`str`): What needs them, to begin the message.
        modules (`str`): Names of their modules.

    Raises:
        `NotInstalled`: One is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise NotInstalled(f'{purpose} needs {" and ".join(missing)}. Install: pip install "sharegpt4v[{extra}]"')
