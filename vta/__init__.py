"""The VTA back end: instructions, static checker, simulators and runtime of a tensor accelerator.

docs/vta.md is the tour. Lowering from e-graphs is to come: PLAN.md in this folder.
"""
