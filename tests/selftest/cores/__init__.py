"""Correct cores, written from the interface alone and differently from the built-in one.

The hazard. A suite that only ever met the core it was written beside may demand that core's habits.
Whatever these fail is a false alarm, unless they are wrong themselves.
"""
