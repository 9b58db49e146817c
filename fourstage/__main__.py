"""`python -m fourstage` is `fourstage`."""

import sys

from fourstage.cli import main

sys.exit(main())
