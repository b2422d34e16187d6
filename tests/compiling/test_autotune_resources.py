"""Reading compiled code: the parsers on listings written by hand, and on kernels compiled for three architectures."""

import pytest
from triton.backends.compiler import GPUTarget

from grouped_conv.autotune.compiling.offline import compile_offline, gpu_target
from grouped_conv.autotune.machine_code import gcn, sass
from grouped_conv.autotune.machine_code.instructions import Mix, inner_loop
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.implicit_gemm.forward_terms import loop_instructions, mma_form
from grouped_conv.autotune.model.shared.machine import machine_of
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ConvProblem, DeviceSpec, ImplicitGemmConfig
from grouped_conv.kernels.implicit_gemm.forward_rules import shared_memory

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
                                                                                /* 0x000e700000000800 */
        /*0010*/               @P0 LDG.E.U16 R2, desc[UR4][R4.64] ;             /* 0x0 */
        /*0020*/                   HMMA.16816.F32 R4, R8.reuse, R2, R4 ;        /* 0x0 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R9+0x800], desc[UR4][R6.64], P2 ; /* 0x0 */
        /*0040*/               @P1 BRA 0x20 ;                                   /* 0x0 */
        /*0050*/                   UTMALDG.2D [UR8], [UR4] ;                    /* 0x0 */
        /*0060*/                   STL.64 [R1], R2 ;                            /* 0x0 */
        /*0070*/              @!P2 BRA 0x10 ;                                   /* 0x0 */
        /*0080*/                   STG.E.64 desc[UR4][R4.64], R2 ;              /* 0x0 */
        /*0090*/                   STG.E.ENL2.256 desc[UR4][R4.64], R2, R8 ;    /* 0x0 */
        /*00a0*/                   EXIT ;                                       /* 0x0 */
        /*00b0*/                   BRA 0xb0;                                    /* 0x0 */
        /*00c0*/                   NOP;                                         /* 0x0 */
"""

GCN = """
kernel:
\ts_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tglobal_load_ushort v9, v[4:5], off
\tv_mfma_f32_32x32x8_f16 v[16:31], v[0:1], v[2:3], v[16:31]
\tds_write_b128 v8, v[0:3]
\ts_cbranch_scc1 .LBB0_3
; %bb.2:
\ts_branch .LBB0_1
.LBB0_3:
\tbuffer_store_dwordx2 v[0:1], v2, s[0:3], 0 offen
\tglobal_store_short_d16_hi v[0:1], v2, off
\tscratch_store_dwordx2 off, v[0:1], s0
\ts_endpgm
\ts_code_end
    .private_segment_fixed_size: 8
    .sgpr_count:     65
    .vgpr_count:     120
    .vgpr_spill_count: 1
"""


def test_nvidia_listing():
    code = sass.parse(SASS)
    assert [i.opcode for i in code][-1] == "EXIT"  # the padding behind it is dropped
    mix = Mix.of(code)
    assert mix.load_widths == {2: 1, 16: 2}
    assert mix.store_widths == {8: 1, 32: 1}
    assert (mix.mma, mix.kinds["spill"], mix.kinds["branch"]) == (1, 1, 2)
    loop = inner_loop(code)
    assert [i.address for i in loop] == [0x20, 0x30, 0x40]  # the inner of two loops around the MMA


def test_amd_listing():
    assert gcn.usage(GCN) == (120, 8)
    code = gcn.parse(GCN)
    assert code[-1].opcode == "s_endpgm"
    mix = Mix.of(code)
    assert mix.load_widths == {2: 1, 16: 1}
    assert mix.store_widths == {2: 1, 8: 1}
    assert mix.kinds["spill"] == mix.kinds["shared_store"] == mix.mma == 1
    loop = inner_loop(code)
    assert loop is not None
    assert Mix.of(loop).instructions == 6


def test_no_loop_with_an_mma():
    assert inner_loop(sass.parse(SASS.replace("HMMA.16816.F32", "FFMA"))) is None
    assert Mix.of([]).per_mma is None


def test_formats_that_changed_are_noticed(monkeypatch):
    monkeypatch.setattr(sass, "_cuobjdump", lambda flag, cubin: "nothing known")
    with pytest.raises(RuntimeError, match="output format has changed"):
        sass.usage(b"")
    with pytest.raises(RuntimeError, match="format has changed"):
        gcn.usage("")


def test_targets():
    assert gpu_target(DeviceSpec.get("h100")) == GPUTarget("cuda", 90, 32)
    assert gpu_target(DeviceSpec.get("mi300x")) == GPUTarget("hip", "gfx942", 64)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_compiled_kernel(arch):
    device = DeviceSpec.get(arch)
    problem = workload("alexnet")["conv5"]
    config = ImplicitGemmConfig(
        block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=2, loop_order="channels_inner"
    )
    (launch,) = compile_offline(problem, arch, config)
    resources = launch.resources
    assert (launch.name, launch.config, launch.trips, launch.grid) == ("implicit_gemm", config, 54, (1352, 1, 1))
    assert 32 < resources.registers < 256
    assert resources.spill_bytes == 0
    assert resources.shared_bytes == launch.kernel.metadata.shared == shared_memory(problem, config, device)
    assert resources.loop is not None
    assert set(resources.loop.load_widths) == {16}
    assert resources.loop.mma == {"sm_80": 16, "sm_90": 2, "gfx942": 4}[arch]
    assert set(resources.total.store_widths) == {16}
    estimate = loop_instructions(problem, config, device, mma_form(problem, config, machine_of(device)))
    assert estimate == pytest.approx(resources.loop.instructions, rel=0.25)
    assert Resources.from_json(resources.to_json()) == resources


def test_every_launch_is_compiled():
    problem = ConvProblem.of((1, 32, 9, 9), (32, 32, 3, 3), 1, 1, channels_last=False)
    config = ImplicitGemmConfig(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=2, split_k=3)
    launches = compile_offline(problem, "a100", config)
    assert [launch.name for launch in launches] == [
        "pack_channels_last",
        "pack_channels_last",
        "implicit_gemm",
        "split_reduce",
    ]
    assert all(launch.resources.spill_bytes == 0 for launch in launches)
    assert launches[0].resources.loop is None


def test_bad_requests_are_explained():
    problem = workload("alexnet")["conv5"]
    with pytest.raises(ValueError, match="unknown device 'h900'; known: a10,"):
        compile_offline(problem, "h900")
    huge = ImplicitGemmConfig(block_m=256, block_n=256, block_k=128, num_warps=8, num_stages=5)
    with pytest.raises(ValueError, match=r"cannot run .* accumulators per thread spill"):
        compile_offline(problem, "a100", huge)
