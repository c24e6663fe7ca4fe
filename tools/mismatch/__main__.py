"""``python -m tools.mismatch``: the measurements behind docs/mismatch.md."""

from tools.mismatch.calibration import main

raise SystemExit(main())
