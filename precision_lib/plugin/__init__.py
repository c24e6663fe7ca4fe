"""The door that pip installs: ``pytest --target=mypkg.rlhf`` in anybody's repository.

Every pytest run of the environment imports this module, so it imports nothing but pytest, registers
no option, and does nothing unless ``--target`` stands on the command line. A project or another
plug-in may have an option ``--target`` too: then the run is theirs, and
``precision-forensics conformance`` is the way in. That is known only once the project's own
``conftest.py`` files are loaded, so the decision falls there, and the run is handed over whole:
the suite runs under its own settings, not under those of the project (see ``packaged.py``).
"""

import pytest

OPTION = "--target"
#: The command line of a run that is handed over to the suite.
HANDED_OVER = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> object:
    """Take the arguments out of the project's run when they ask for the suite."""
    result = yield
    given = [str(word) for word in early_config.invocation_params.args]
    if any(map(_is_target, given)):
        _, nobodys = parser.parse_known_and_unknown_args(args)
        if any(map(_is_target, nobodys)):
            early_config.stash[HANDED_OVER] = given
            args.clear()
    return result


def _is_target(word: str) -> bool:
    return word == OPTION or word.startswith(f"{OPTION}=")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the suite instead of the project's tests, when it was asked for."""
    if HANDED_OVER not in config.stash:
        return None
    from precision_lib.plugin.packaged import run

    arguments: list[str] = config.stash[HANDED_OVER]
    return run(arguments)
