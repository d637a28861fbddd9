"""Entry point of `python -m sharegpt4v.demo`."""

import sys

from .story import main


sys.exit(main())
