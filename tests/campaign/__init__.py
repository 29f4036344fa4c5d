"""A campaign of accidents and attacks: damaged files, evil names, bombs, kills, full disks, floods on loopback.

`python -m tests.campaign --seed 0 --minutes 20` tries as many as fit and writes a table of what became of
them; `tests/test_campaign.py` tries a sample. The suite is a black box here: the command `prle`, and a few
public functions. Linux only: processes are forked from one that has paid for the imports.
"""

import sys
from pathlib import Path

if (_tests := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_tests)  # conftest, studies, clips
