"""How the limits of ``precision-forensics mismatch`` are measured, and what it finds.

``python -m tools.mismatch noise`` emulates engines of every format on the embedded model.
``python -m tools.mismatch calibrate`` counts false alarms and the smallest faults that are found.
"""
