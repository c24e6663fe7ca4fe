"""One self-contained HTML page of everything in a results directory.

Pictures, styles and tables are inside; nothing is fetched, no script runs, every text is escaped.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence

from precision_lib.reporting.provenance import alarms, headline
from precision_lib.reporting.reproduction import drawing
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section

PAGE = "index.html"
#: Above this an SVG is embedded as PNG instead.
LARGEST_SVG = 250_000


def page(
    results: Results,
    sections: Sequence[Section],
    drawn: Mapping[str, Mapping[str, bytes]],
    output: str,
) -> str:
    """The page.

    Args:
        drawn: name of each picture to its ``png`` and ``svg``.
        output: how the page's directory is called in the commands.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("precision_lib.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        alarms=alarms(results),
        headline=headline(results),
        sections=sections,
        images={name: data_uri(files) for name, files in drawn.items()},
        drawing=drawing(results, output),
    )


def data_uri(files: Mapping[str, bytes]) -> str:
    """A picture inside the page: its SVG, or its PNG where the SVG is large."""
    kind, name = ("svg+xml", "svg") if len(files["svg"]) <= LARGEST_SVG else ("png", "png")
    return f"data:image/{kind};base64,{b64encode(files[name]).decode()}"
