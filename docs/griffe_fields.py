"""Extensions of the API pages' reader.

Equinox modules without an `__init__` show the one that their fields make, and the shapes in jaxtyping annotations stay
strings: without this, "c *shape" is read as a product.
"""

import ast
import dataclasses

from griffe import Class, Expr, ExprName, ExprSubscript, ExprTuple, Extension, Function, Parameter, ParameterKind
from griffe import Parameters as ParameterList

_SHAPED = {"Float", "Int", "Bool", "UInt8", "PyTree"}


class FieldsAsInit(Extension):
    """Give a module without `__init__` the signature that its fields make."""

    def on_class(self, *, cls: Class, **kwargs) -> None:
        if "__init__" in cls.members or not cls.bases:
            return
        parameters = [Parameter("self", kind=ParameterKind.positional_or_keyword)]
        for field in cls.members.values():
            if field.is_attribute and field.annotation is not None and "instance-attribute" in field.labels:
                default, in_init = _default(field.value)
                if in_init and not str(field.annotation).startswith("Abstract"):
                    kind = ParameterKind.positional_or_keyword
                    parameters.append(Parameter(field.name, annotation=field.annotation, default=default, kind=kind))
        if len(parameters) > 1:
            init = Function("__init__", parameters=ParameterList(*parameters), lineno=cls.lineno, endlineno=cls.lineno)
            cls.set_member("__init__", init)


class ShapesAsStrings(Extension):
    """Keep the shapes in jaxtyping annotations as they were written."""

    def on_function(self, *, func: Function, **kwargs) -> None:
        for parameter in func.parameters:
            _restore(parameter.annotation)
        _restore(func.returns)

    def on_attribute(self, *, attr, **kwargs) -> None:
        _restore(attr.annotation)


def _default(value) -> tuple[str | None, bool]:
    """A field's default as source text, and whether it is an argument of `__init__`."""
    if value is None:
        return None, True
    call = ast.parse(str(value), mode="eval").body
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "eqx.field"):
        return str(value), True
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    return keywords.get("default"), keywords.get("init") != "False"


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
