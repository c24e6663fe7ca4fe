"""Lines of a terminal table, and how a verdict is coloured.

The hazard is colour that carries meaning alone: the verdict is always a word, colour only helps.
"""

#: A line of a table: text and the style of its verdict ("" for none).
Line = tuple[str, str]

STYLES = {"healthy": "green", "impaired": "red", "inconclusive": "yellow"}
