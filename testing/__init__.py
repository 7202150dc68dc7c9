"""For testing nestegg and what is built on it: random programs, and the check of rewrite rules.

Strategies are ordinary Hypothesis strategies. Importing this loads Hypothesis; JAX is loaded when a check
asks it.
"""

from .check import (
    RuleCheck,
    check_rule,
    check_rules,
    check_rules_command,
    rules_to_check,
    shipped_rules,
    to_json,
)
from .choosing import HypothesisChooser
from .instances import Instance
from .kernels import Tree
from .strategies import (
    graphs,
    inputs_of,
    kernels,
    operator_instances,
    schedule_space,
    schedules,
    staged_exprs,
    tensor_types,
    tensors,
    trees,
)
from .values import evaluate_kernel, evaluate_nest, first_difference, in_jax, in_numpy

__all__ = [  # noqa: RUF022 (grouped by purpose)
    # checking rules
    "RuleCheck",
    "check_rule",
    "check_rules",
    "check_rules_command",
    "rules_to_check",
    "shipped_rules",
    "to_json",
    # strategies
    "HypothesisChooser",
    "Instance",
    "Tree",
    "graphs",
    "inputs_of",
    "kernels",
    "operator_instances",
    "schedule_space",
    "schedules",
    "staged_exprs",
    "tensor_types",
    "tensors",
    "trees",
    # meanings, in float64
    "evaluate_kernel",
    "evaluate_nest",
    "first_difference",
    "in_jax",
    "in_numpy",
]
