"""The egglog language of graph programs, generated from the operator table, and rules rendered into it.

Tensors are one sort; each operator is a constructor over tensors and an interned attribute record; kernels are
`Call(kernel, arguments)`. `ty` gives each e-class its type (two different types for one class is a panic: a wrong
rule dies loudly), `is-const` marks what is known at compile time. Built-in and user rules are rendered alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial, reduce

from ..ir.attrs import EMPTY
from ..ir.errors import RuleError, TypeRuleError
from ..ir.graph import Graph
from ..ir.operator import OPERATORS, operator
from .folded import Folded
from .fusion_rules import POSITIONS, FusionRule, KernelRule, StagingRule
from .host import Host, call_text, test_text
from .kernel import (
    ANY,
    GENUS_AT,
    TRAITS,
    WIDTH_AT,
    Kernel,
    about,
    fuse,
    fuse_unit,
    keep_operand,
    merge_operands,
    of_operator,
)
from .pattern import (
    RESULT,
    Apply,
    Pattern,
    Record,
    Var,
    applications,
    calibrated_name,
    call,
    records,
    tensors,
    type_of,
    value_name,
)
from .rule import GraphRule
from .saturate import EggRule

#: Widest n-ary operator that is one e-node; wider ones are chained on import.
MAX_VARIADIC = 6
ANALYSES = "analyses"
#: What `readers` says of a tensor from which more than one is made, or that is made in more than one way, and of the
#: program's results.
SEVERAL = 2

#: No tensors. Sets of the program's tensors are numbers, with a bit for each: `own` is a tensor itself (none, if a rule
#: made it), `below` what it is computed from, as the program says it or the rule that made it.
NONE = "(bigint 0)"


def constructor(op: str, arity: int) -> str:
    """The egglog constructor of an operator (n-ary operators have one per number of operands)."""
    return f"op_{op}" if operator(op).arity is not None else f"op_{op}_{arity}"


#: A kind of terms: an operator and a number of operands.
Term = tuple[str, int]


def reachable(graph: Graph, rules: Iterable[GraphRule]) -> tuple[list[Term], list[GraphRule]]:
    """The kinds of terms that the graph and what rules make of it may hold, and the rules that may apply to them: the
    others need not be looked for."""
    found = {(n.op, k) for n in graph.nodes if n.op in OPERATORS for k in _widths(len(n.inputs), n.op)}
    waiting, useful = list(rules), []
    while ready := [r for r in waiting if all(_terms(w.left) <= found for w in r.rewrites)]:
        found |= {t for r in ready for w in r.rewrites for t in _terms(w.right)}
        useful += ready
        waiting = [r for r in waiting if r not in ready]
    order = {name: k for k, name in enumerate(OPERATORS)}
    return sorted(found, key=lambda t: (order[t[0]], t[1])), [r for r in rules if r in useful]


def _terms(p: Pattern) -> set[Term]:
    return {(a.op, len(a.args)) for a in applications(p)}


def _widths(operands: int, op: str) -> Iterator[int]:
    """Of the terms that an operator of so many operands is written as."""
    while operator(op).arity is None and operands > MAX_VARIADIC:
        yield MAX_VARIADIC
        operands -= MAX_VARIADIC - 1
    yield operands


def declarations(host: Host, terms: Iterable[Term]) -> str:
    """Sorts, constructors and analyses of the graph language."""
    lines = [
        "(sort T) (sort TV (Vec T))",
        "(constructor Input (i64) T) (constructor Const (PyObject) T) (constructor Call (PyObject TV) T)",
        "(function node (i64) T :merge old)",  # the program's tensors; a global each would be a table each
        "(function ty (T) PyObject :no-merge)",
        "(relation is-const (T)) (relation kernel (PyObject))",
        "(function constness (T) i64 :merge (max old new))",
        "(function stepped (T) i64 :merge (max old new))",
        "(function calibrated (T) PyObject :merge old) (function value (T) PyObject :merge old)",
        "(function own (T) BigInt :merge (| old new)) (function below (T) BigInt :merge old)",
        "(function beneath (PyObject TV) BigInt :merge (| old new))",
        "(relation uses (PyObject TV i64 T TV TV))",
        "(relation read-by (T T))",
        "(function readers (T) i64 :merge (max old new))",
        "(function made (T) i64 :merge (max old new))",
        "(function repeated (PyObject TV) i64 :merge (min old new))",
        "(function widest (T BigInt) BigInt :merge (max old new))",
        *(f"(relation trait-{name} (PyObject))" for name in TRAITS),
        *(f"(function {name} (PyObject) BigInt :merge old)" for name in ("about", "genus", "width")),
        "(relation chief (T PyObject))",
        f"(ruleset {ANALYSES})",
    ]
    lines += [f"(constructor {constructor(name, n)} ({'T ' * n}PyObject) T)" for name, n in terms]
    return "\n".join(lines)


def analyses(host: Host, terms: Sequence[Term], values: bool = False) -> str:
    """Rules that give every operator e-node its type, spread compile-time constness (and, for rules that ask for them,
    `values`), and index kernels' arguments."""
    out = [
        f"(rule ((= e (Call k xs)) (> (vec-length xs) {i}))"
        f" ((uses k xs {i} (vec-get xs {i}) {_before(i)} {_after(i)})) :ruleset {ANALYSES})"
        for i in POSITIONS
    ]
    out.append(f"(rule ((= e (Call k xs))) ((kernel k)) :ruleset {ANALYSES})")  # each is asked once, not each call
    out.append(
        "(rule ((trait-light_of_several k) (uses k xs i x l r) (= b (below x))) ((set (beneath k xs) b))"
        f" :ruleset {ANALYSES})"
    )
    about_it = call_text(host.function("about", about), ["k"])  # one call for all: each takes as long as a query
    out.append(f"(rule ((kernel k)) ((set (about k) (from-string (py-to-string {about_it})))) :ruleset {ANALYSES})")
    genus_of, width_of = f"(& (>> n {GENUS_AT}) (bigint {(1 << WIDTH_AT - GENUS_AT) - 1}))", f"(>> n {WIDTH_AT})"
    out.append(f"(rule ((= n (about k))) ((set (genus k) {genus_of}) (set (width k) {width_of})) :ruleset {ANALYSES})")
    for bit, name in enumerate(TRAITS):
        has = f"(!= {NONE} (& n (bigint {1 << bit})))"
        out.append(f"(rule ((= n (about k)) {has}) ((trait-{name} k)) :ruleset {ANALYSES})")
    for name, n in terms:
        infer = host.function(f"type rule of {name}", lambda a, *t, _n=name: operator(_n).check(t, a))
        xs, ts = [f"x{k}" for k in range(n)], [f"t{k}" for k in range(n)]
        node = f"(= e ({constructor(name, n)} {' '.join(xs)} a))"
        types = " ".join(f"(= {t} (ty {x}))" for t, x in zip(ts, xs, strict=True))
        const = " ".join(f"(is-const {x})" for x in xs)
        out.append(f"(rule ({node} {types}) ((set (ty e) {call_text(infer, ['a', *ts])})"
            f" (set (constness e) 0) (set (stepped e) 0) (set (own e) {NONE})) :ruleset {ANALYSES})")
        out.append(_below_rule(node, xs))
        if n:
            out.append(f"(rule ({node} {const}) ((is-const e) (set (constness e) 1)) :ruleset {ANALYSES})")
    return "\n".join([*out, *_step_rules(host, terms), *(_value_rules(host, terms) if values else ())])


def _before(i: int) -> str:
    """The first i of the arguments xs."""
    return f"(vec-of {' '.join(f'(vec-get xs {n})' for n in range(i))})" if i else "(vec-empty)"


def _after(i: int) -> str:
    """The arguments xs after the one at i."""
    return reduce(lambda rest, _: f"(vec-remove {rest} 0)", range(i + 1), "xs")


def _below_rule(node: str, xs: Sequence[str]) -> str:
    known = " ".join(f"(= b{k} (below {x})) (= o{k} (own {x}))" for k, x in enumerate(xs))
    union = together([s for k in range(len(xs)) for s in (f"b{k}", f"o{k}")])
    return f"(rule ({node} {known}) ((set (below e) {union})) :ruleset {ANALYSES})"


def together(sets: Sequence[str]) -> str:
    """The union of sets of tensors, as egglog text."""
    return reduce(lambda a, b: f"(| {a} {b})", sets, NONE)


def _step_rules(host: Host, terms: Iterable[Term]) -> Iterator[str]:
    """Which tensors an operator reads whose result jumps where they pass some value."""
    for name, n in terms:
        steps = operator(name).steps
        if steps is not None:
            xs = [f"x{k}" for k in range(n)]
            node = f"(= e ({constructor(name, n)} {' '.join(xs)} a))"
            test = test_text(host.function(f"steps of {name}", steps), ["a"])
            yield f"(rule ({node} {test}) ({' '.join(f'(set (stepped {x}) 1)' for x in xs)}) :ruleset {ANALYSES})"


def _value_rules(host: Host, terms: Iterable[Term]) -> Iterator[str]:
    """How every compile-time tensor is made of others."""
    for name, n in terms:
        make = host.function(f"value of {name}", lambda a, *args, _n=name: Folded(_n, a, args))
        xs, vs = [f"x{k}" for k in range(n)], [f"v{k}" for k in range(n)]
        known = " ".join(f"(= {v} (value {x}))" for v, x in zip(vs, xs, strict=True))
        node = f"(= e ({constructor(name, n)} {' '.join(xs)} a))"
        yield f"(rule ({node} {known}) ((set (value e) {call_text(make, ['a', *vs])})) :ruleset {ANALYSES})"


def lowering_rules(host: Host, terms: Iterable[Term]) -> list[EggRule]:
    """`op(x…) -> Call(kernel of op, [x…])`, for every operator: what makes an operator executable.

    Of constants only layouts and conversions become kernels (a consumer may read through them); their arithmetic is
    done at compile time, and a kernel that computed it again would only multiply the choices.
    """
    out = []
    for name, n in terms:
        make = host.function(f"kernel of {name}", lambda a, *t, _n=name: of_operator(_n, a, *t))
        varies = "(= 0 (constness e))" if operator(name).folds else ""
        xs, ts = [f"x{k}" for k in range(n)], [f"t{k}" for k in range(n)]
        types = " ".join(f"(= {t} (ty {x}))" for t, x in zip(ts, xs, strict=True))
        out.append(
            f"(rule ((= e ({constructor(name, n)} {' '.join(xs)} a)) {types} {varies})"
            f" ((union e (Call {call_text(make, ['a', *ts])} (vec-of {' '.join(xs)})))) :ruleset lower_operator)"
        )
    return [EggRule("lower_operator", "lowering", "lower_operator", "(ruleset lower_operator)\n" + "\n".join(out))]


def fusion_rule(r: FusionRule, host: Host) -> EggRule:
    """A fusion rule as egglog text. The consumer is found through `uses`, which is indexed by the tensor it reads; the
    producer's arguments take the place of its result."""
    traits = [f"(trait-{trait} {k})" for trait, k in ((r.producer, "p"), (r.consumer, "k")) if trait != ANY]
    facts = ["(= x (Call p ys))", "(uses k xs i x before after)", "(= e (Call k xs))", *traits, *_between(r)]
    if r.widest:  # an e-class may hold terms of itself (x + 0): a kernel that reads its own result leads nowhere
        facts += ["(chief x p)", "(chief e k)"]
        facts += ["(vec-not-contains ys x)", "(vec-not-contains ys e)"]
    fused = call_text(host.function(r.name, partial(_fused, r)), ["k", "(py-from-int i)", "p"])
    facts += [f"(= kp {fused})", "(!= kp $nothing)"]
    actions = "(union e (Call kp (vec-append before ys after)))" + (" (subsume (Call k xs))" if r.dominates else "")
    text = f"(ruleset {r.name})\n(rule ({' '.join(facts)}) ({actions}) :ruleset {r.name})"
    return EggRule(r.name, r.kind, r.name, text, tuple(f"trait-{t}" for t in (r.consumer, r.producer) if t != ANY))


def _between(r: FusionRule) -> Iterator[str]:
    """What a fusion rule asks of the tensor x between the kernels."""
    if r.const:
        yield "(is-const x)"
    if r.sole:
        yield "(= 1 (readers x))"
    if r.renamed:
        yield "(= 0 (made x))"
    if r.apart:
        yield f"(= o (own x)) (= b (beneath k xs)) (= {NONE} (& b o))"


def _fused(r: FusionRule, consumer: Kernel, i: int, producer: Kernel) -> Kernel | bool:
    """The kernel that a rule makes of two, or False where it does not apply (the host's word for nothing)."""
    if not r.when(consumer, i, producer):
        return False
    return (fuse_unit if r.dominates else fuse)(consumer, i, producer)


def staging_rule(r: StagingRule, host: Host) -> EggRule:
    """A rule that gives a kernel a stage, as egglog text."""

    def staged(k: Kernel, i: int) -> Kernel | bool:
        return r.when(k, i) and keep_operand(k, i)

    made = call_text(host.function(r.name, staged), ["k", "(py-from-int i)"])
    facts = "(uses k xs i x before after) (= 0 (constness x)) (trait-reducing k) (= e (Call k xs))"
    facts += f" (uses k xs j y left right) (!= i j) (= 0 (constness y)) (= kp {made})"
    text = f"(ruleset {r.name})\n(rule ({facts} (!= kp $nothing)) ((union e (Call kp xs))) :ruleset {r.name})"
    return EggRule(r.name, r.kind, r.name, text, ("trait-reducing",))


def count_readers() -> EggRule:
    """How many tensors are made from each: 1, or `SEVERAL`; `SEVERAL` too if the tensor itself is made in several ways:
    what reads it must then stay, for the ways that do not fuse. And which are `made`: not aliases of others alone, and
    what is aliased is read by all that read its aliases. To be run while every call is of one operator."""
    texts = (
        "(rule ((= e (Input n))) ((set (made e) 1))",
        "(rule ((= e (Call k xs)) (= 0 (constness e)) (trait-alias k)) ((set (made e) 0))",
        "(rule ((= e (Call k xs)) (trait-making k)) ((set (made e) 1))",
        "(rule ((= e (Call k xs)) (uses k xs i x l r) (= 0 (constness x))) ((read-by x e) (set (readers x) 1))",
        "(rule ((= e (Call k xs)) (trait-alias k) (uses k xs i x l r) (= n (readers e))) ((set (readers x) n))",
        f"(rule ((read-by x e) (read-by x f) (!= e f)) ((set (readers x) {SEVERAL}))",
        f"(rule ((= x (Call k xs)) (= x (Call l ys)) (!= k l)) ((set (readers x) {SEVERAL}))",
        f"(rule ((= x (Call k xs)) (= x (Call k ys)) (!= xs ys)) ((set (readers x) {SEVERAL}))",
    )
    text = "\n".join(["(ruleset count_readers)", *(f"{t} :ruleset count_readers)" for t in texts)])
    return EggRule("count_readers", "fusion", "count_readers", text)


def merging_rules(host: Host) -> list[EggRule]:
    """Calls that read a tensor as several operands read it as one; the first pair is merged at a time, in one order."""
    i, j = f"(/ d {len(POSITIONS)})", f"(% d {len(POSITIONS)})"
    numbers = [f"(py-from-int {n})" for n in (i, j)]
    make = call_text(host.function("merge_operands", merge_operands), ["k", *numbers])
    pair = f"(+ (* i {len(POSITIONS)}) j)"
    texts = {
        "repeated_operands": f"((uses k xs i x l r) (uses k xs j x m s) (< i j)) ((set (repeated k xs) {pair}))",
        "merge_operands": (
            f"((= d (repeated k xs)) (= e (Call k xs)))"
            f" ((union e (Call {make} (vec-remove xs {j}))) (subsume (Call k xs)))"
        ),
    }
    return [_analysis(name, text) for name, text in texts.items()]


def widest_kernels() -> list[EggRule]:
    """Which kernel of a tensor fuses the most operators, of each genus: its `chief`."""
    texts = {
        "widest_kernel": "((= e (Call k xs)) (= g (genus k)) (= w (width k))) ((set (widest e g) w))",
        "chief_kernel": "((= e (Call k xs)) (= g (genus k)) (= w (width k)) (= w (widest e g))) ((chief e k))",
        "former_chief": "((chief e k) (= g (genus k)) (= w (width k)) (< w (widest e g))) ((delete (chief e k)))",
    }
    return [_analysis(name, text) for name, text in texts.items()]


def _analysis(name: str, text: str) -> EggRule:
    return EggRule(name, "fusion", name, f"(ruleset {name})\n(rule {text} :ruleset {name})")


def graph_rule(r: GraphRule, host: Host) -> EggRule:
    """An authored rule as egglog text: structure by e-matching, condition and attributes by calling back."""
    lefts = [w.left for w in r.rewrites]
    tensor_vars = sorted({n for p in lefts for n in tensors(p)})
    fixed: dict[str, Apply] = {}
    matched = [_left(p, fixed) for p in lefts]
    facts = [f"(= root{k} {text})" for k, text in enumerate(matched)]
    facts += [f"(= ty_{v} (ty {v}))" for v in tensor_vars]
    facts += [f"(is-const {v})" for v in r.const] + [f"(= 0 (constness {v}))" for v in r.varies]
    facts += [f"(= 0 (stepped root{k}))" for k in range(len(matched)) if r.rounds]
    facts += [f"(= cal_{v} (calibrated {'root0' if v == RESULT else v}))" for v in r.calibrated]
    facts += [f"(= val_{v} (value {v}))" for v in r.values]
    record_vars = sorted({n for p in lefts for n in records(p)} | set(fixed))
    names = [*tensor_vars, *record_vars, *map(calibrated_name, r.calibrated), *map(value_name, r.values)]
    arguments = [*(f"ty_{v}" for v in tensor_vars), *(f"at_{v}" for v in record_vars)]
    arguments += [*(f"cal_{v}" for v in r.calibrated), *(f"val_{v}" for v in r.values)]

    def applies(*values: object) -> bool:
        env = dict(zip(names, values, strict=True))
        if any(not _matches(p, env[v]) for v, p in fixed.items()) or not r.holds(env):
            return False
        for w in r.rewrites:
            _check_sides(r, w.left, w.right, env)
        return True

    facts.append(test_text(host.function(f"{r.where}: rule {r.name}", applies), arguments))
    actions = [
        f"(union root{k} {_right(w.right, r, names, arguments, host)})" for k, w in enumerate(r.rewrites)
    ]
    actions += [f"(subsume {text})" for text in matched if r.dominates]
    text = f"(ruleset {r.name})\n(rule ({' '.join(facts)}) ({' '.join(actions)}) :ruleset {r.name})"
    needed = dict.fromkeys(constructor(p.op, len(p.args)) for left in lefts for p in applications(left))
    return EggRule(r.name, r.kind, r.name, text, tuple(needed))


def _matches(pattern: Apply, attrs: object) -> bool:
    return all(attrs[k] == v for k, v in pattern.attrs)  # type: ignore[index, union-attr]


def _check_sides(r: GraphRule, left: Pattern, right: Pattern, env: dict[str, object]) -> None:
    """Both sides must have one type; said before egglog is told that they are equal."""
    try:
        want, got = type_of(left, env), type_of(right, env)
    except TypeRuleError as e:
        raise RuleError(f"{r.where}: rule {r.name}: the right side is ill-typed where the rule applies: {e}") from None
    if want != got:
        raise RuleError(f"{r.where}: rule {r.name}: rewrites {want} to {got}; add a condition (when=…)")


def _left(p: Pattern, fixed: dict[str, Apply]) -> str:
    if isinstance(p, Var):
        return p.name
    if isinstance(p.attrs, Record):
        attrs = f"at_{p.attrs.name}"
    else:
        name = f"fixed{len(fixed)}"
        fixed[name] = p
        attrs = f"at_{name}"
    return f"({constructor(p.op, len(p.args))} {' '.join(_left(a, fixed) for a in p.args)} {attrs})"


def _right(p: Pattern, r: GraphRule, names: Sequence[str], arguments: list[str], host: Host) -> str:
    if isinstance(p, Var):
        return p.name
    args = " ".join(_right(a, r, names, arguments, host) for a in p.args)
    if isinstance(p.attrs, Record):
        attrs = f"at_{p.attrs.name}"
    elif not p.attrs:
        attrs = f"(py-from-int {host.intern(EMPTY)})"
    else:
        attrs = call_text(host.function(f"{r.where}: rule {r.name}", _attribute_function(p, names)), arguments)
    return f"({constructor(p.op, len(p.args))} {args} {attrs})"


def _attribute_function(p: Apply, names: Sequence[str]):
    from ..ir.attrs import Attrs

    def make(*values: object) -> Attrs:
        env = dict(zip(names, values, strict=True))
        return Attrs(**{k: call(v, env) if callable(v) else v for k, v in p.attrs})  # type: ignore[union-attr]

    return make


def render(rules: Iterable[GraphRule | KernelRule], host: Host) -> list[EggRule]:
    return [_rendered(r, host) for r in rules]


def _rendered(r: GraphRule | KernelRule, host: Host) -> EggRule:
    if isinstance(r, FusionRule):
        return fusion_rule(r, host)
    return staging_rule(r, host) if isinstance(r, StagingRule) else graph_rule(r, host)
