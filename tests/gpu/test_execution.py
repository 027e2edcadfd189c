"""How batches run on a GPU: flat against padded, whole against cut, and without a wait.

The same functions run on the CPU with fewer cases, so that none is broken where nobody looks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CUDA
from execution.test_padding_free import DECODERS, FAMILIES, build, is_flat, logits_and_gradients, make_batch
from torch import Tensor

from cross_trainer.errors import ConfigurationError
from cross_trainer.execution import attention
from cross_trainer.execution.attention import Layout, flat_attention
from cross_trainer.execution.padding_free import enable_padding_free, unpad_indices
from cross_trainer.execution.token_budget import budgeted_forward, budgeted_step
from cross_trainer.execution.transfer import send, to_device
from cross_trainer.training.losses import BinaryCrossEntropyLoss, ListNetLoss

HALVES = [torch.bfloat16, torch.float16]
CASES = [("cpu", name) for name in ("bert", "modernbert-mean", "mistral")]
CASES += [pytest.param("cuda", name, marks=pytest.mark.cuda) for name in FAMILIES]
WIDTHS = [("cpu", 8), *(pytest.param("cuda", width, marks=pytest.mark.cuda) for width in (8, 32, 64, 96, 128, 256))]
CAUSAL = [name for name in FAMILIES if FAMILIES[name][0] in DECODERS]
LISTS = torch.tensor([[1.0, 0.0, -100.0], [0.0, 1.0, 1.0], [0.0, -100.0, -100.0]])
LOSSES = {"pairs": (BinaryCrossEntropyLoss(), torch.linspace(0, 1, 6)), "lists": (ListNetLoss(), LISTS)}


@pytest.fixture
def kernels(monkeypatch) -> set[str]:
    """The kernels that attention was computed with."""
    used: set[str] = set()
    for name, function in attention._KERNELS.items():
        monkeypatch.setitem(attention._KERNELS, name, lambda *a, n=name, f=function: used.add(n) or f(*a))
    return used


@contextlib.contextmanager
def precision(model: torch.nn.Module, device: str, dtype: torch.dtype, weights: str) -> Iterator[None]:
    """Half precision, as a training has it or as a scoring has it."""
    if weights == "half":
        model.to(dtype)
        yield
    else:
        with torch.autocast(device, dtype):
            yield


def distance(found: tuple[Tensor, dict[str, Tensor]], exact: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """How far logits and gradients are off, relative to their size."""
    vectors = [(found[0].flatten(), exact[0].flatten())]
    vectors += [tuple(torch.cat([each[1][name].flatten() for name in exact[1]]) for each in (found, exact))]
    return tuple(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in vectors)


def check_half(device: str, family: str, dtype: torch.dtype, weights: str, side: str = "right", **options) -> None:
    """Flat tokens in half precision are as near to float32 as padded ones in half precision."""
    model, batch = build(family, **options).to(device).train(), to_device(make_batch(side=side), torch.device(device))
    exact = logits_and_gradients(model, batch)
    with precision(model, device, dtype, weights):
        padded = distance(logits_and_gradients(model, batch), exact)
        with enable_padding_free(model):
            assert is_flat(model, batch)
            flat = distance(logits_and_gradients(model, batch), exact)
    for ours, theirs in zip(flat, padded, strict=True):
        assert ours <= 2 * theirs + 2e-3
        assert ours < 0.2


@pytest.mark.parametrize("weights", ["half", "float32"])
@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
@pytest.mark.parametrize(("device", "family"), CASES)
def test_families_in_half_precision(kernels, device, family, dtype, weights) -> None:
    check_half(device, family, dtype, weights)
    assert kernels == ({"varlen"} if device == "cuda" else {"groups"})


@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("device", "family"),
    [("cpu", "qwen2"), *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in CAUSAL)],
)
def test_left_padding(device, family, dtype) -> None:
    check_half(device, family, dtype, "float32", side="left")


@pytest.mark.parametrize(("device", "family"), CASES)
def test_families_in_float32(kernels, device, family) -> None:
    model, batch = build(family).to(device).train(), to_device(make_batch(), torch.device(device))
    exact = logits_and_gradients(model, batch)
    with enable_padding_free(model):
        assert is_flat(model, batch)
        assert max(distance(logits_and_gradients(model, batch), exact)) < 1e-4
    assert kernels == ({"repad"} if device == "cuda" else {"groups"})


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_dropout(kernels, device, dtype, rate) -> None:
    """Dropout of hidden states leaves the kernel as it is; of attention weights, only padded attention has it."""
    model, batch = build("bert", **{rate: 0.5}).to(device), to_device(make_batch(), torch.device(device))
    exact = model(**batch).logits
    with enable_padding_free(model), torch.autocast(device, dtype):
        torch.testing.assert_close(model(**batch).logits.float(), exact, rtol=0.05, atol=0.1)
        kernels.clear()
        model.train()
        logits = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            logits.append(model(**batch).logits)
        logits[0].float().sum().backward()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    on_gpu = "varlen" if rate.startswith("hidden") else "repad"
    assert kernels == ({on_gpu} if device == "cuda" else {"groups"})


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
@pytest.mark.parametrize("heads", [4, 2], ids=["heads", "grouped-heads"])
@pytest.mark.parametrize(("device", "width"), WIDTHS)
def test_attention_follows_padded_attention(device, width, heads, causal, window) -> None:
    """The fast kernel in half precision, forward and backward, against padding and a mask in float64."""
    lengths = [2, 7, 7, 40]
    mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).to(device)
    generator, dtype = torch.Generator().manual_seed(0), torch.bfloat16 if device == "cuda" else torch.float32
    states = [torch.randn(1, h, sum(lengths), width, generator=generator).to(device, dtype) for h in (4, heads, heads)]
    towards = torch.randn(1, sum(lengths), 4, width, generator=generator).to(device, dtype)
    results = []
    for kernel, kind in (("repad", torch.float64), ("varlen" if device == "cuda" else "groups", dtype)):
        layout = Layout(unpad_indices(mask), mask, ((1, 2), (2, 7), (1, 40)), kernel)
        inputs = [x.to(kind).requires_grad_() for x in states]
        output = flat_attention(*inputs, layout, causal=causal, window=window)
        results.append([output, *torch.autograd.grad(output, inputs, towards.to(kind))])
    for exact, found in zip(*results, strict=True):
        assert (found.double() - exact).norm() <= (0.02 if device == "cuda" else 1e-5) * exact.norm() + 1e-3


@pytest.mark.cuda
def test_attention_refuses_what_its_kernel_has_not() -> None:
    model, batch = build("bert", attention_probs_dropout_prob=0.1).to("cuda", torch.bfloat16).train(), make_batch()
    with enable_padding_free(model, kernel="varlen"), pytest.raises(ConfigurationError, match="attention dropout to 0"):
        model(**to_device(batch, torch.device("cuda")))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_gradient_checkpointing(device, reentrant) -> None:
    model, batch = build("modernbert-cls").to(device).train(), to_device(make_batch(), torch.device(device))
    with enable_padding_free(model), torch.autocast(device, torch.bfloat16):
        expected = logits_and_gradients(model, batch)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        found = logits_and_gradients(model, batch)
    assert max(distance(found, expected)) < 0.02


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["bert", "modernbert-cls", "qwen3"])
def test_compiled_models(family, dtype) -> None:
    """With `unpad_idx`: one graph of any shape, forward and backward."""
    torch.compiler.reset()
    device, model = torch.device("cuda"), build(family).to("cuda").train()
    compiled = torch.compile(model, dynamic=True)
    for lengths in ((9, 3, 14, 5), (7, 2, 11), (3, 20, 6, 9)):
        batch = to_device(make_batch(lengths), device)
        exact = logits_and_gradients(model, batch)
        with enable_padding_free(model), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            indexed = {**batch, "unpad_idx": unpad_indices(batch["attention_mask"])}
            found = logits_and_gradients(compiled, indexed)
        found = found[0], {name.removeprefix("_orig_mod."): gradient for name, gradient in found[1].items()}
        assert max(distance(found, exact)) < (1e-3 if dtype == torch.float32 else 0.1)


# --- batches cut to a budget ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, *HALVES], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_budget_has_the_gradient_of_the_whole_batch(device, name, dtype) -> None:
    """Scaled, as a training in float16 is."""
    (loss_func, labels), model = LOSSES[name], build("bert", num_labels=1).to(device).train()
    batch, labels = to_device(make_batch(), torch.device(device)), send(labels, torch.device(device))
    gradients, losses = [], []
    for dtyped, budget in ((None, 1000), (dtype, 1000), (dtype, 15)):
        model.zero_grad()
        autocast = torch.autocast(device, dtyped) if dtyped else contextlib.nullcontext()
        with enable_padding_free(model), autocast:
            losses += [budgeted_step(model, batch, labels, loss_func, budget, backward=lambda x: (x * 1024).backward())]
        gradients += [torch.cat([p.grad.flatten() / 1024 for p in model.parameters() if p.grad is not None])]
    exact, whole, cut = gradients
    rounding = (whole - exact).norm()
    assert (cut - exact).norm() <= 2 * rounding + 1e-4 * exact.norm()
    torch.testing.assert_close(losses[2], losses[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_both_passes_of_a_budget_draw_the_same_dropout(device) -> None:
    model = build("bert", num_labels=1, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).to(device).train()
    calls: list[Tensor] = []
    model.register_forward_hook(lambda *given: calls.append(given[2].logits.detach().clone()))
    batch = to_device(make_batch(), torch.device(device))
    budgeted_step(model, batch, send(LISTS, torch.device(device)), ListNetLoss(), max_tokens=15)
    half = len(calls) // 2
    assert half > 2
    for first, second in zip(calls[:half], calls[half:], strict=True):
        torch.testing.assert_close(first, second)
    assert not torch.equal(calls[0], model(**batch).logits[: len(calls[0])])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_scores_within_a_budget(device) -> None:
    model, batch = build("roberta").to(device), to_device(make_batch(), torch.device(device))
    with torch.inference_mode(), enable_padding_free(model):
        found, expected = (budgeted_forward(model, batch, budget) for budget in (15, 1000))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=pytest.mark.cuda)])
def test_one_process_of_a_distributed_training(tmp_path: Path, device, backend, name) -> None:
    (loss_func, labels), model = LOSSES[name], build("bert", num_labels=1).to(device).train()
    batch, labels = to_device(make_batch(), torch.device(device)), send(labels, torch.device(device))
    enable_padding_free(model)
    budgeted_step(model, batch, labels, loss_func, 15)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0] if device == "cuda" else None)
        budgeted_step(wrapped, batch, labels, loss_func, 15, no_sync=wrapped.no_sync)
    finally:
        torch.distributed.destroy_process_group()
    for gradient, found in zip(expected, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)


# --- time and memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_wait() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("lengths", [(9, 3, 14, 9, 5, 1), (8, 8, 8, 8, 8, 8)], ids=["padding", "no-padding"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", ["bert", "modernbert-mean", "qwen3"])
def test_no_step_waits_for_the_gpu(family, name, lengths) -> None:
    device, (loss_func, labels) = torch.device("cuda"), LOSSES[name]
    model = build(family, num_labels=1).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with enable_padding_free(model), torch.autocast("cuda", torch.bfloat16):
        for step in range(3):
            if step:  # the first one builds what later ones find
                torch.cuda.set_sync_debug_mode("error")
            for budget in (15, 1000):
                batch = to_device(make_batch(lengths, seed=step), device)
                budgeted_step(model, batch, send(labels, device), loss_func, budget)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.cuda
@pytest.mark.parametrize("family", ["bert", "modernbert-cls"])
def test_memory_is_that_of_real_tokens(family) -> None:
    """A batch with two thirds of padding, in less than half of the padded batch's memory."""
    lengths = (256, *[48] * 31)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "max_position_embeddings": 512}
    model = build(family, **size, vocab_size=100).to("cuda", torch.bfloat16).train()
    batch, peaks = to_device(make_batch(lengths), torch.device("cuda")), []
    for flat in (False, True):
        with enable_padding_free(model) if flat else contextlib.nullcontext():
            logits_and_gradients(model, batch)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            logits_and_gradients(model, batch)
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.5 * peaks[0]
