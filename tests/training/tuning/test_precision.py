"""Mixed precision on one device: the same numbers as FSDP2's policy, fp32 masters, and a refusal with a reason."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from umbel.backbone.loading import load_backbone
from umbel.core.errors import ConfigError, Interrupted
from umbel.training import tune
from umbel.training.precision import PRECISIONS, Caster, precision_of
from umbel.training.tuning.own import trained_parameters
from umbel.training.tuning.tune import resume_tuning, start
from umbel.training.window import take_window

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def plain(six):
    return load_backbone(six.folder, dtype="fp32")


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(decoder, precision) -> None:
    policy = MixedPrecisionPolicy(param_dtype=precision.compute, reduce_dtype=precision.reduce)
    mesh = dist.init_device_mesh("cpu", (1,))
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(decoder, mesh=mesh, mp_policy=policy)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # nobody writes into the logits
@pytest.mark.parametrize("name", ["bf16-mixed", "fp32"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_one_device_computes_what_fsdp2_computes_to_the_last_bit(plain, own_task, settings, alone, name, checkpointing):
    task = own_task("generate", train="all", precision=name, steps=3)
    mine, my_trainee = start(plain, task, settings, checkpointing=checkpointing)
    theirs, their_trainee = start(plain, task, settings, checkpointing=checkpointing)
    Caster(mine.backbone.decoder, PRECISIONS[name])
    shard(theirs.backbone.decoder, PRECISIONS[name])
    their_trainee.tuned = trained_parameters(theirs.backbone.decoder)
    their_trainee.optimizer = type(my_trainee.optimizer)(
        list(their_trainee.tuned.values()), lr=1.0, weight_decay=0.0, fused=True
    )
    for _ in range(3):
        one, other = take_window(mine, [my_trainee])[0], take_window(theirs, [their_trainee])[0]
        assert one.loss == other.loss
    for key, parameter in my_trainee.tuned.items():
        assert parameter.equal(their_trainee.tuned[key].full_tensor()), key


def test_bf16_mixed_holds_and_moves_fp32_masters_and_computes_in_bf16(plain, own_task, settings):
    machine, trainee = start(plain, own_task("classify", train="layers=last:2", precision="bf16-mixed"), settings)
    decoder = machine.backbone.decoder
    Caster(decoder, PRECISIONS["bf16-mixed"])
    seen = []
    decoder.layers[5].qkv.register_forward_hook(lambda module, args, out: seen.append((module.weight.dtype, out.dtype)))
    take_window(machine, [trainee])
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    for parameter in trainee.tuned.values():
        state = trainee.optimizer.state[parameter]
        assert parameter.dtype == state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    assert decoder.layers[0].qkv.weight.dtype == torch.bfloat16
    assert decoder.inverse_frequencies.dtype == torch.float32


def test_pure_bf16_holds_everything_in_bf16_and_so_loses_steps_that_fp32_masters_keep(plain, own_task, settings):
    def changed(name: str) -> int:
        machine, trainee = start(plain, own_task("classify", train="all", precision=name, lr=1e-6, clip=0.0), settings)
        before = {key: parameter.detach().clone() for key, parameter in trainee.tuned.items()}
        Caster(machine.backbone.decoder, PRECISIONS[name])
        take_window(machine, [trainee])
        return sum(int((parameter != before[key]).sum()) for key, parameter in trainee.tuned.items())

    assert changed("bf16") < 0.2 * changed("bf16-mixed")


def test_mixed_precision_learns_what_fp32_learns(plain, own_task, settings):
    def loss(name: str) -> float:
        task = own_task("classify", train="all", precision=name, steps=12)
        return sum(tune(plain, task, settings=settings).trained.losses[-4:]) / 4

    assert loss("bf16-mixed") == pytest.approx(loss("fp32"), rel=0.15)


def test_what_leaves_the_decoder_has_the_output_dtype(plain, own_task, settings):
    precision = precision_of("bf16-mixed,output=fp32", backbone=torch.float32, device=CPU)
    machine, trainee = start(plain, own_task("generate"), settings, precision=precision)
    seen = []
    Caster(machine.backbone.decoder, precision)
    machine.backbone.decoder.register_forward_hook(lambda module, args, out: seen.append(out.logits.dtype))
    take_window(machine, [trainee])
    assert set(seen) == {torch.float32}


def test_the_default_is_the_backbones_own_dtype_over_fp32_masters():
    for dtype, name in ((torch.bfloat16, "bf16-mixed"), (torch.float32, "fp32"), (torch.float64, "fp64")):
        assert precision_of(None, backbone=dtype, device=CPU).name == name


def test_fp16_is_refused_on_cpu_with_the_reason_and_another_way():
    with pytest.raises(ConfigError, match="needs CUDA") as caught:
        precision_of("fp16-mixed", backbone=torch.float32, device=CPU)
    assert "bf16-mixed" in caught.value.hint


def test_a_backbone_that_was_rounded_is_not_trained_in_a_wider_dtype(six, own_task, settings):
    """Its frozen tensors would be others than those that serving reads from the parent's files."""
    half = load_backbone(six.folder, dtype="bf16")
    with pytest.raises(ConfigError, match="rounded") as caught:
        start(half, own_task("classify", precision="fp32"), settings)
    assert caught.value.code == "precision_refused"
    start(half, own_task("classify", precision="bf16-mixed"), settings)


@pytest.mark.parametrize("name", ["fp8", "bf16-mixed,reduce=fp8", "bf16,colour=red"])
def test_a_precision_that_nobody_knows_is_refused(name):
    with pytest.raises(ConfigError):
        precision_of(name, backbone=torch.float32, device=CPU)


def three_steps(plain, task, settings, precision, scale: float | None):
    """(losses, trained tensors, windows taken)."""
    machine, trainee = start(plain, task, settings, precision=precision)
    Caster(machine.backbone.decoder, precision)
    trainee.scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    windows = 0
    while trainee.step < 3:
        take_window(machine, [trainee])
        assert trainee.error is None
        windows += 1
    return trainee.losses, dict(trainee.tuned), windows


def test_a_loss_scaled_by_a_power_of_two_changes_no_bit_of_the_step(plain, own_task, settings):
    task = own_task("classify", train="layers=last:1")
    losses, plainly, _ = three_steps(plain, task, settings, PRECISIONS["fp32"], None)
    again, scaled, _ = three_steps(plain, task, settings, PRECISIONS["fp32"], 2.0**10)
    assert again == losses
    assert all(scaled[key].equal(plainly[key]) for key in plainly)


def test_a_scale_that_overflows_fp16_is_halved_and_the_step_tried_again(plain, own_task, settings):
    """What CUDA will run, computed on CPU, where users are refused it."""
    task = own_task("classify", train="layers=last:1")
    losses, _, _ = three_steps(plain, task, settings, PRECISIONS["fp32"], None)
    again, moved, windows = three_steps(plain, task, settings, PRECISIONS["fp16-mixed"], 2.0**24)
    assert windows > 3
    assert again == pytest.approx(losses, rel=0.01)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in moved.values())


def test_resume_under_mixed_precision_gives_the_same_bytes(plain, own_task, settings, tmp_path):
    task = own_task("classify", precision="bf16-mixed", steps=5)
    never = tune(plain, task, settings=settings)
    left = iter([None, None, "Ctrl-C"])
    with pytest.raises(Interrupted):
        tune(plain, task, settings=settings, folder=tmp_path / "run", stop=lambda: next(left))
    again = resume_tuning(plain, tmp_path / "run", settings=settings)
    assert again.backbone.fingerprint == never.backbone.fingerprint
    assert again.backbone.dtype == torch.bfloat16
