import inspect

import pytest


@pytest.fixture
def concrete_classes():
    """The public concrete classes of a package that derive from `base`: those a contract's table must hold."""

    def find(package, base):
        classes = {c for c in vars(package).values() if inspect.isclass(c) and issubclass(c, base)}
        return {c for c in classes if not c.__name__.startswith("Abstract")}

    return find
