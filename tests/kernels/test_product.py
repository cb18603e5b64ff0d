"""Products of rows that were kept as they are, as bits or as events, against torch's linear."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from spikecl.errors import KernelError
from spikecl.kernels import Kernels, events, product
from spikecl.kernels.events import Bits, Events, bits_of, events_of
from spikecl.kernels.product import dense, keep, linear, packed, weight_gradient

AUTO, LEAN = Kernels(), Kernels(memory="lean")
SOME = (70, 23)  # more rows than the least that a gradient is worth adding up for
FORMS = {
    "tensor": lambda x: x.detach(),
    "bits": bits_of,
    "events": events_of,
}
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(params=["compiled", "stock"])
def way(request, monkeypatch):
    """How events are added: by the C library, or by what torch has."""
    if request.param == "stock":
        monkeypatch.setattr(events, "_library", lambda *types: None)
    elif events._library(torch.float32) is None:
        pytest.skip("no C compiler here")


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def spikes(*shape, seed=0, density=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < density).to(dtype)


# What is kept


def test_events_are_kept_where_asked_for_and_where_they_are_worth_it(monkeypatch):
    x = spikes(40, 30)
    assert isinstance(keep(x, 7, Kernels(synapse="events")), Events)
    assert isinstance(keep(x, 7, AUTO), torch.Tensor)  # too little to do
    monkeypatch.setattr(product, "is_worth", lambda rows, outputs: outputs > 7)
    assert isinstance(keep(x, 8, AUTO), Events)
    assert isinstance(keep(x, 7, AUTO), torch.Tensor)
    assert isinstance(keep(x, 8, Kernels(synapse="dense")), torch.Tensor)
    for kept in (keep(x, 8, AUTO), keep(x, 8, LEAN), keep(x, 7, LEAN)):
        assert torch.equal(dense(kept), x)


def test_rows_are_looked_at_where_the_choice_is_free_alone(monkeypatch):
    monkeypatch.setattr(product, "is_worth", lambda *given: 1 / 0)
    for synapse in ("dense", "events"):
        keep(spikes(4, 3), 2, Kernels(synapse=synapse))
    with pytest.raises(ZeroDivisionError):
        keep(spikes(4, 3), 2, AUTO)


@pytest.mark.parametrize("synapse", ["dense", "auto"])
def test_lean_memory_packs_spikes_of_any_size_and_nothing_else(synapse):
    lean = Kernels(synapse=synapse, memory="lean")
    x = spikes(3, 5)
    kept = keep(x, 2, lean)
    assert isinstance(kept, Bits)
    assert kept.packed.numel() == 2
    assert torch.equal(dense(kept), x)
    graded = keep(0.5 * x, 2, lean)
    assert graded.data_ptr() == graded.untyped_storage().data_ptr()
    assert torch.equal(graded, 0.5 * x)
    full = Kernels(synapse=synapse)
    assert keep(x, 2, full).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("kernels", [AUTO, LEAN])
def test_large_arrays_of_spikes_are_packed(monkeypatch, kernels):
    monkeypatch.setattr(product, "LARGE", 60)
    for size in (59, 60, 61):
        x = spikes(1, size)
        assert isinstance(packed(x, kernels), Bits) == (size >= 60 or kernels is LEAN)
        assert isinstance(keep(x, 2, kernels), Bits) == (size >= 60 or kernels is LEAN)
        graded = x + 0.25
        assert packed(graded, kernels).data_ptr() == graded.data_ptr()
    maps = spikes(2, 3, 4, 5, dtype=torch.float32)
    assert torch.equal(dense(packed(maps, kernels)), maps)


@pytest.mark.parametrize("kernels", [AUTO, LEAN, Kernels(synapse="dense", memory="lean")])
def test_what_passes_is_not_packed(kernels, monkeypatch):
    monkeypatch.setattr(product, "LARGE", 1)
    monkeypatch.setattr(product, "bits_of", lambda x: 1 / 0)
    x = spikes(4, 30)
    kept = keep(x, 2, kernels, passing=True)
    assert kept.data_ptr() == x.data_ptr()
    assert isinstance(keep(x, 2, Kernels(synapse="events"), passing=True), Events)
    with pytest.raises(ZeroDivisionError):
        keep(x, 2, kernels)


@pytest.mark.parametrize("synapse", ["dense", "events"])
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_what_is_kept_is_cut_off_from_the_graph(synapse, memory):
    x = 1.0 * spikes(4, 30).requires_grad_()
    for kernels in (Kernels(synapse=synapse, memory=memory),):
        for passing in (False, True):
            assert not dense(keep(x, 2, kernels, passing=passing)).requires_grad
        assert not dense(packed(x, kernels)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_events_in_half_precision_are_refused(dtype):
    x = spikes(4, 3, dtype=dtype)
    for passing in (False, True):
        with pytest.raises(KernelError, match=f"rows are {dtype} on cpu") as caught:
            keep(x, 2, Kernels(synapse="events"), passing=passing)
    assert "use synapse='auto' or 'dense'" in str(caught.value)
    assert keep(x, 2, AUTO).data_ptr() == x.data_ptr()
    assert isinstance(keep(x, 2, LEAN), Bits)


def test_events_on_another_device_are_refused():
    with pytest.raises(KernelError, match="rows are torch.float32 on meta"):
        keep(torch.zeros(4, 3, device="meta"), 2, Kernels(synapse="events"))


# The product and its derivative


def solve(given, wanted, run):
    """Return the current, and gradients of what is ``wanted`` of rows, weight and bias."""
    at = {n: t.clone().requires_grad_(n in wanted) for n, t in given.items() if t is not None}
    current = run(at["rows"], at["weight"], at.get("bias"))
    found = {}
    if wanted:
        loss = (current * draw(*current.shape, seed=9, dtype=current.dtype)).sum()
        leaves = [at[n] for n in wanted if n in at]
        found = dict(zip((n for n in wanted if n in at), torch.autograd.grad(loss, leaves)))
    return current, found


WANTED = [
    ("rows", "weight", "bias"), ("rows",), ("weight",), ("bias",), ("weight", "bias"),
    ("rows", "weight"), (),
]  # fmt: skip


@forms
@pytest.mark.parametrize("wanted", WANTED, ids="+".join)
@pytest.mark.parametrize("shape", [SOME, (9, 23), (1, 1), (61, 130)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_equal_those_of_torch(way, form, wanted, shape, biased):
    if wanted == ("bias",) and not biased:
        return
    given = {
        "rows": spikes(*shape),
        "weight": draw(17, shape[1], seed=1),
        "bias": draw(17, seed=2) if biased else None,
    }
    kept = FORMS[form](given["rows"])
    ours = solve(given, wanted, lambda x, w, b: linear(x, kept, w, b, AUTO))
    expected = solve(given, wanted, functional.linear)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-12, atol=1e-12)
    assert ours[0].requires_grad == bool(wanted)
    assert list(ours[1]) == list(expected[1])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["tensor", "events"])
def test_graded_rows(way, form):
    rows = spikes(*SOME) * draw(*SOME, seed=3)
    given = {"rows": rows, "weight": draw(17, 23, seed=1), "bias": draw(17, seed=2)}
    kept = FORMS[form](rows)
    ours = solve(given, tuple(given), lambda x, w, b: linear(x, kept, w, b, AUTO))
    expected = solve(given, tuple(given), functional.linear)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-12, atol=1e-12)


@forms
def test_finite_differences(form):
    rows, weight, bias = spikes(5, 4), draw(3, 4, seed=1), draw(3, seed=2)
    at = [weight.requires_grad_(), bias.requires_grad_()]
    kept = FORMS[form](rows)
    assert gradcheck(lambda w, b: linear(rows, kept, w, b, AUTO), at)


@forms
def test_a_gradient_that_is_a_view_and_one_that_is_broadcast(form):
    rows, found = spikes(*SOME), []
    for run in (lambda w: linear(rows, FORMS[form](rows), w, None, AUTO), None):
        weight = draw(17, 23, seed=1).requires_grad_()
        current = functional.linear(rows, weight) if run is None else run(weight)
        loss = (current.T * draw(17, 70, seed=5)).sum() + current.sum()  # both in one
        loss = loss + current[:, 3].sum()
        found.append([
            *torch.autograd.grad(loss, weight, retain_graph=True),
            *torch.autograd.grad(current.sum(), weight, retain_graph=True),
            *torch.autograd.grad(current.T, weight, draw(17, 70, seed=6)),
        ])  # fmt: skip
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["bits", "events"])
def test_gradients_have_no_gradients(form):
    """Refused, not wrong."""
    rows, weight = spikes(6, 5), draw(3, 5, seed=1).requires_grad_()
    current = linear(rows, FORMS[form](rows), weight, None, AUTO)
    with pytest.raises(KernelError, match="second derivative"):
        torch.autograd.grad(current.square().sum(), weight, create_graph=True)


def saved(tensor):
    """Return the bytes of all that a graph saved, as autograd unpacks it."""
    made, waiting, seen = [], [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [other for other, _ in node.next_functions]
        made += [t for t in getattr(node, "saved_tensors", ()) if t is not None]
    return made


@pytest.mark.parametrize("form", ["bits", "events"])
def test_the_rows_are_not_kept_twice(form):
    rows = spikes(64, 100, density=0.05)
    kept = FORMS[form](rows)
    for wanted, ours in ((("weight",), []), (("rows", "weight"), ["weight"])):
        at = {"rows": rows.clone(), "weight": draw(17, 100, seed=1)}
        for name in wanted:
            at[name].requires_grad_()
        current = linear(at["rows"], kept, at["weight"], None, AUTO)
        assert current.grad_fn.kept is kept
        assert [t.data_ptr() for t in saved(current)] == [at[name].data_ptr() for name in ours]
    current = linear(rows.requires_grad_(), kept, at["weight"].detach(), None, AUTO)
    assert current.grad_fn.kept is None  # no gradient of the weight, no rows


@forms
@pytest.mark.parametrize("shape", [(9, 23), SOME, (0, 4)])
def test_the_gradient_of_a_weight_from_what_was_kept(way, form, shape):
    rows, delta = spikes(*shape), draw(shape[0], 6, seed=1)
    expected = delta.T @ rows
    found = weight_gradient(FORMS[form](rows), delta)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@forms
def test_the_bias_is_not_written_into(form):
    """Events are added up in a new array, and the bias added in place."""
    rows, weight, bias = spikes(6, 5), draw(3, 5, seed=1), draw(3, seed=2)
    copies = [t.clone() for t in (rows, weight, bias)]
    kept = FORMS[form](rows)
    first = linear(rows, kept, weight, bias, AUTO)
    assert torch.equal(linear(rows, kept, weight, bias, AUTO), first)
    assert all(torch.equal(a, b) for a, b in zip((rows, weight, bias), copies))


# Precision

HALF = Kernels(precision="bfloat16")


@pytest.mark.parametrize("form", ["tensor", "bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_rounds_as_torch_does(form, dtype, biased):
    rows, weight = spikes(*SOME, dtype=dtype), draw(17, 23, seed=1, dtype=dtype)
    bias = draw(17, seed=2, dtype=dtype) if biased else None
    half = None if bias is None else bias.bfloat16()
    expected = functional.linear(rows.bfloat16(), weight.bfloat16(), half).to(dtype)
    found = linear(rows, FORMS[form](rows), weight, bias, HALF)
    assert found.dtype is dtype
    assert torch.equal(found, expected)
    full = functional.linear(rows, weight, bias)
    assert not torch.equal(found, full)
    assert float((found - full).norm()) < 0.01 * float(full.norm())
    assert torch.equal(linear(rows, FORMS[form](rows), weight, bias, AUTO), full)


def test_events_are_added_in_full_precision():
    rows, weight = spikes(*SOME), draw(17, 23, seed=1)
    found = linear(rows, events_of(rows), weight, None, HALF)
    torch.testing.assert_close(found, rows @ weight.T, rtol=1e-12, atol=1e-12)


@forms
def test_the_gradient_in_bfloat16_is_near_that_in_full(form):
    given = {"rows": spikes(*SOME), "weight": draw(17, 23, seed=1), "bias": draw(17, seed=2)}
    kept = FORMS[form](given["rows"])
    ours = solve(given, tuple(given), lambda x, w, b: linear(x, kept, w, b, HALF))
    expected = solve(given, tuple(given), functional.linear)
    for name, gradient in expected[1].items():
        assert ours[1][name].dtype is torch.float64
        assert float((ours[1][name] - gradient).norm()) < 0.02 * float(gradient.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_in_half_precision_are_multiplied_as_they_are(dtype):
    rows, weight = spikes(9, 23, dtype=dtype), draw(5, 23, seed=1, dtype=dtype)
    kept = keep(rows, 5, LEAN)
    found = linear(rows, kept, weight.requires_grad_(), None, LEAN)
    expected = functional.linear(rows, weight)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), weight)[0])
