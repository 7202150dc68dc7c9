"""The VTA back end: instructions, static checker, simulators and runtime of a tensor accelerator.

`lower.conv2d` and `lower.dense` compile layers. docs/vta.md is the tour; what is to come: PLAN.md in this folder.
"""
