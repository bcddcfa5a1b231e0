"""`python -m vmstream`."""

import sys

from vmstream.cli.main import main

sys.exit(main())
