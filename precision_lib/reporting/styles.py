"""Lines of a terminal table, and how a verdict is coloured. The verdict is always a word, too."""

#: A line of a table: text and the style of its verdict ("" for none).
Line = tuple[str, str]

STYLES = {"healthy": "green", "impaired": "red", "inconclusive": "yellow"}
