"""`python -m oaplug VERB ...`."""

import sys

from oaplug.commands.oaplug import main

sys.exit(main())
