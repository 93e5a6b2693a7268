"""The package's logger."""

import logging

logger = logging.getLogger("amct_pytorch")
