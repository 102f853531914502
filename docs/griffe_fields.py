"""Extensions of the API pages' reader.

Equinox modules without an `__init__` show the one that their fields make, and the shapes in jaxtyping annotations stay
strings: without this, "c *shape" is read as a product.
"""

import ast
import dataclasses

from griffe import (
    Attribute,
    Class,
    Expr,
    ExprName,
    ExprSubscript,
    ExprTuple,
    Extension,
    Function,
    Parameter,
    ParameterKind,
)
from griffe import Parameters as ParameterList

_SHAPED = {"Float", "Int", "Bool", "UInt8", "PyTree"}


class FieldsAsInit(Extension):
    """Give a module without `__init__` the signature that its fields make."""

    def on_class(self, *, cls: Class, **kwargs) -> None:
        if "__init__" in cls.members or not cls.bases:
            return
        fields = [
            f for f in cls.members.values() if f.is_attribute and "instance-attribute" in f.labels and f.annotation
        ]
        parameters = [parameter for field in fields if (parameter := _parameter(field)) is not None]
        if parameters:
            parameters.sort(key=lambda parameter: parameter.kind is ParameterKind.keyword_only)
            parameters.insert(0, Parameter("self", kind=ParameterKind.positional_or_keyword))
            init = Function(
                "__init__", parameters=ParameterList(*parameters), lineno=cls.lineno, endlineno=cls.endlineno
            )
            cls.set_member("__init__", init)


class ShapesAsStrings(Extension):
    """Keep the shapes in jaxtyping annotations as they were written."""

    def on_function(self, *, func: Function, **kwargs) -> None:
        for parameter in func.parameters:
            _restore(parameter.annotation)
        _restore(func.returns)

    def on_attribute(self, *, attr, **kwargs) -> None:
        _restore(attr.annotation)


def _parameter(field: Attribute) -> Parameter | None:
    """The argument of `__init__` that a field makes, or `None`."""
    if "AbstractVar[" in str(field.annotation) or "AbstractClassVar[" in str(field.annotation):
        return None
    default, options = field.value, {}
    if default is not None:
        call = ast.parse(str(default), mode="eval").body
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "eqx.field":
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            factory = options.get("default_factory")
            default = f"{factory}()" if factory else options.get("default")
    if options.get("init") == "False":
        return None
    kind = ParameterKind.keyword_only if options.get("kw_only") == "True" else ParameterKind.positional_or_keyword
    return Parameter(field.name, annotation=field.annotation, default=default, kind=kind)


def _restore(expression) -> None:
    if isinstance(expression, list | tuple):
        for part in expression:
            _restore(part)
        return
    if not isinstance(expression, Expr):
        return
    if (
        isinstance(expression, ExprSubscript)
        and isinstance(expression.left, ExprName)
        and expression.left.name in _SHAPED
        and isinstance(expression.slice, ExprTuple)
    ):
        shape = expression.slice.elements[-1]
        text = str(shape)
        if text[:1] not in "'\"":
            expression.slice.elements[-1] = repr(text.replace("* ", "*"))
    for field in dataclasses.fields(expression):
        if field.name != "parent":
            _restore(getattr(expression, field.name))
