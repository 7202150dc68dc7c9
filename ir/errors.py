"""The one exception family: an error a user can cause is a `NesteggError`: what is wrong, where, and what to do."""


class NesteggError(Exception):
    """Base of all errors nestegg raises on bad input. The message is one line: what, where, what to do."""


class TypeRuleError(NesteggError):
    """An operator was applied to operands of shapes or dtypes it does not accept."""


class UnsupportedError(NesteggError):
    """A construct of the input program has no operator in nestegg's table."""


class NotConstantError(UnsupportedError):
    """An operand that decides shapes is only known at run time. `inputs`: the program's inputs it is computed from."""

    def __init__(self, message: str, inputs: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.inputs = inputs


class ImportFailure(NesteggError):
    """A model file or a JAX function could not be read."""


class RuleError(NesteggError):
    """A rewrite rule is malformed; the message names its file and line."""


class CallError(NesteggError):
    """A compiled program was called with the wrong number, shape or dtype of arguments."""


class EGraphFormatError(NesteggError):
    """A serialized e-graph is malformed; the message names the file and the node or class."""


class UnknownNameError(NesteggError):
    """A zoo model, target, operator or rule of that name does not exist."""


class CalibrationError(NesteggError):
    """Calibration data, or a file of ranges, does not fit the model; the message says what to give instead."""
