//! Operations of ours that a CUDA device computes besides ggml's (vendor/ggml-sys/src/spts_ops.h has their definitions).
//!
//! A graph holds them as nodes of an operation that ggml knows and our graphs have no other use for, so one that holds them
//! runs only on the device that [`Kernels`] was asked about.

use ggml_sys as sys;

use super::ops::Ops;
use super::{Tensor, cpu_attention, type_id};
use crate::gguf::GgmlType;
use crate::attributes::{Activation, DeltaHeads, Heads, Join, Rope, RopeLayout};

/// Weights of which a CUDA device holds copies in 16 bits, made ahead of their products (`BUFFERS` in wide_weights.cu).
pub const WIDE_WEIGHTS: usize = 3;

/// Bytes of logits that probing holds at a time by ggml's operations: four for each of `LOGITS` in selection.cu, which our kernel
/// holds.
pub const PROBE_LOGITS: usize = 128 << 20;

/// What a device's kernels take, ggml's and ours: the one place that knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// Whether it is the CPU.
    is_cpu: bool,
    /// Whether attention on the CPU is ours ([`Ops::cpu_attention`]).
    cpu_attention: bool,
    /// Number of the CUDA device, if it is one.
    cuda_device: Option<i32>,
}

/// Rows from which ggml takes its tiled kernels for a product on the CPU.
const TILED_FROM: usize = 8;

/// Rows from which ggml's blocked F32 kernel, behind a conversion of the weight, is faster on the CPU than kernels that take a
/// row at a time.
const WIDENED_FROM: usize = 64;

impl Kernels {
    /// Those of a device by ggml's name (`CUDA0`).
    pub fn of(device: &str) -> Self {
        let number = device.strip_prefix("CUDA").and_then(|n| n.parse().ok());
        let is_cpu = device == "CPU";
        let cpu_attention = is_cpu && cpu_attention::is_ours();
        Self { is_cpu, cpu_attention, cuda_device: if cfg!(feature = "cuda") { number } else { None } }
    }

    /// Those of several devices.
    pub fn of_each(devices: &[String]) -> Vec<Self> {
        devices.iter().map(|device| Self::of(device)).collect()
    }

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.is_cpu
    }

    /// Whether ggml's products of so many rows are asked for in BF16: on GPUs they go to 16-bit kernels, and BF16 keeps F32's
    /// range, while sums in F16 can overflow.
    pub fn multiplies_in_bf16(&self, rows: usize) -> bool {
        !self.is_cpu && rows > 1
    }

    /// Whether so many rows are multiplied faster by an F32 copy of a weight of this type, made for each tile: ggml's x86 kernels
    /// take Q4_1 and Q5_1 a row at a time, and its blocked F32 kernel is twice as fast from some dozens of rows on.
    pub fn widens(&self, weight: GgmlType, rows: usize) -> bool {
        let unblocked = matches!(weight, GgmlType::Q4_1 | GgmlType::Q5_1);
        self.is_cpu && cfg!(target_arch = "x86_64") && unblocked && rows >= WIDENED_FROM
    }

    /// Whether so many rows are multiplied faster by a weight as the file has it than by a repacked one. With VNNI ggml's tiled
    /// CPU kernels for K-quants are (1.4 times, Q4_K on Zen 4), while a single row wants the repacked weight (1.2 times).
    pub fn wants_unpacked(&self, weight: GgmlType, rows: usize) -> bool {
        self.is_cpu && rows >= TILED_FROM && cpu_kernels_use_vnni() && matches!(weight, GgmlType::Q2_K | GgmlType::Q4_K)
    }

    /// Whether it is a CUDA device.
    #[cfg(feature = "cuda")]
    pub(super) fn is_cuda(&self) -> bool {
        self.cuda_device.is_some()
    }

    /// Whether there is attention without a mask for so many queries, heads of this shape, and keys and values of these types:
    /// [`Ops::cpu_attention`], or [`Ops::causal_attention`], which knows no sinks.
    pub fn causal_attention(&self, n_q: usize, heads: &Heads, kv: [GgmlType; 2]) -> bool {
        let is_plain = heads.sinks.is_none() && kv.iter().all(|ty| *ty == GgmlType::F16);
        self.windowed_attention(heads)
            || is_plain && self.cuda_device.is_some_and(|device| takes_causal_attention(device, n_q, heads))
    }

    /// Whether [`Ops::cpu_attention`] computes heads of this shape; windows are no matter to it.
    pub fn windowed_attention(&self, heads: &Heads) -> bool {
        self.cpu_attention && heads.head_dim <= cpu_attention::MAX_HEAD
    }

    /// [`Ops::product`] of so many rows by a weight of this type: also [`Ops::gated_ffn`], where all its weights are such.
    pub fn product(&self, rows: usize, weight: GgmlType) -> bool {
        self.cuda_device.is_some_and(|device| takes_product(device, rows, weight))
    }

    /// [`Ops::proxy_norm`] of so many rows, with this activation, this rank and so many channels.
    pub fn proxy_norm(&self, act: Activation, rows: usize, rank: usize, d_low: usize) -> bool {
        act != Activation::ClampedSwiglu && self.product(rows, GgmlType::BF16) && rank.is_multiple_of(8) && d_low.is_multiple_of(8)
    }

    /// `Ops::ssm_conv` and `Ops::gated_delta_net` of this geometry: on GPUs ggml has kernels for some sizes alone.
    pub fn delta_net(&self, heads: &DeltaHeads) -> bool {
        self.is_cpu
            || (matches!(heads.head_dim, 16 | 32 | 64 | 128)
                && matches!(heads.d_conv, 3 | 4 | 5 | 9 | 15)
                && heads.n_channels().is_multiple_of(128))
    }

    /// Whether proxies are best kept in BF16.
    pub fn proxies_in_bf16(&self) -> bool {
        self.product(usize::MAX >> 1, GgmlType::BF16)
    }

    /// [`Ops::rms_norm_16`], [`Ops::scatter_add`] and [`Ops::scatter_add_normalized`] of rows of so many features.
    pub fn rows_of(&self, n_feat: usize) -> bool {
        self.cuda_device.is_some() && n_feat.is_multiple_of(8)
    }

    /// [`Ops::rope_rows`] with heads of this size.
    pub fn rope(&self, head_dim: usize, rope: &Rope) -> bool {
        self.cuda_device.is_some() && head_dim <= 512 && head_dim.is_multiple_of(2) && rope.ext_factor == 0.0
    }

    /// [`Ops::gather`], [`Ops::top_k`] and [`Ops::is_member`].
    pub fn selection(&self) -> bool {
        self.cuda_device.is_some()
    }

    /// [`Ops::store_f16`] of rows of so many elements, anywhere among others: each begins at a multiple of 16 bytes.
    pub fn store_f16(&self, n_feat: usize) -> bool {
        self.cuda_device.is_some() && n_feat.is_multiple_of(8)
    }

    /// [`Ops::probe_scores`] with keys of this type. It knows no sinks.
    pub fn probe_scores(&self, key: GgmlType, heads: &Heads) -> bool {
        self.cuda_device.is_some() && key == GgmlType::F16 && heads.sinks.is_none()
    }
}

/// Whether the CPU kernels of this build, or those that a portable build chose at start, use AVX-512 VNNI.
fn cpu_kernels_use_vnni() -> bool {
    // SAFETY: tells what was compiled.
    unsafe { sys::ggml_cpu_has_avx512_vnni() != 0 }
}

#[cfg(feature = "cuda")]
fn takes_causal_attention(device: i32, n_q: usize, heads: &Heads) -> bool {
    // SAFETY: plain numbers; the device exists, since its name came from ggml.
    unsafe {
        sys::spts_cuda_takes_causal_attention(
            device,
            n_q as i32,
            heads.head_dim as i32,
            heads.n_head as i32,
            heads.n_head_kv as i32,
        )
    }
}

#[cfg(feature = "cuda")]
fn takes_product(device: i32, rows: usize, weight: GgmlType) -> bool {
    // SAFETY: plain numbers; the device exists, since its name came from ggml.
    unsafe { sys::spts_cuda_takes_product(device, rows as i64, weight.id() as i32) }
}

#[cfg(not(feature = "cuda"))]
fn takes_causal_attention(_: i32, _: usize, _: &Heads) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn takes_product(_: i32, _: usize, _: GgmlType) -> bool {
    false
}

/// The operations, by their numbers in spts_ops.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    CausalAttention,
    BlockLists,
    Product,
    GatedFfn,
    ProxyNorm,
    RmsNorm,
    Rope,
    ScatterAdd,
    Gather,
    Store,
    TopK,
    IsMember,
    ProbeScores,
    Scratch,
}

/// Names for [`super::profile`], by number.
const NAMES: [&str; 14] = [
    "causal_attention",
    "block_lists",
    "product",
    "gated_ffn",
    "proxy_norm",
    "rms_norm",
    "rope",
    "scatter_add",
    "gather",
    "store",
    "top_k",
    "is_member",
    "probe_scores",
    "scratch",
];

/// Where a product goes.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Memory of its own, in F32.
    F32,
    /// Memory of its own, rounded to BF16.
    Bf16,
    /// Added to this (F32).
    Added(Tensor<'a>),
}

impl Ops {
    /// Causal attention of `q [d, n_q, n_head]` over `k`, `v [d, n_kv, n_head_kv]` in F16, without a mask: query i sees the
    /// rows up to `first + i`, of which blocks are read that `lists` name (`Ops::block_lists`). `-> F32 or BF16 [d, n_head, n_q]`
    pub fn causal_attention<'a>(
        &'a self,
        [q, k, v]: [Tensor<'a>; 3],
        first: usize,
        scale: f32,
        lists: Option<Tensor<'a>>,
        bf16: bool,
    ) -> Tensor<'a> {
        let ty = if bf16 { GgmlType::BF16 } else { GgmlType::F32 };
        let out = self.fresh(ty, [q.ne(0), q.ne(2), q.ne(1)]);
        self.ours(Op::CausalAttention, out, &[Some(q), Some(k), Some(v), lists], &[first as i32, bits(scale)])
    }

    /// `Ops::block_lists` on a device with [`Ops::causal_attention`], by arguments in the order of spts_ops.h. `-> I32 ne`
    pub(super) fn cuda_block_lists<'a>(&'a self, qk: [Tensor<'a>; 2], arguments: [i32; 5], ne: [usize; 3]) -> Tensor<'a> {
        self.ours(Op::BlockLists, self.fresh(GgmlType::I32, ne), &qk.map(Some), &arguments)
    }

    /// `w [n_in, n_out] x [n_in, n]`, both rounded to BF16 (x may be so already), summed in F32. x is multiplied, feature by
    /// feature, by `factors [n_in]`, if there are any: w is, in fact, and rounded with them (types but Q4_K and Q6_K before, too).
    /// `-> [n_out, n]`
    pub fn product<'a>(
        &'a self,
        w: Tensor<'a>,
        x: Tensor<'a>,
        factors: Option<Tensor<'a>>,
        to: Target<'a>,
    ) -> Tensor<'a> {
        let (out, adds) = self.target(to, [w.ne(1), x.ne(1)]);
        self.ours(Op::Product, out, &[Some(w), Some(x), factors], &[adds])
    }

    /// `W_down (act(W_gate x) * (W_up x))` of `x [n_embd, n]` with the roundings and `factors [n_embd]` of [`Ops::product`]. Each
    /// row is multiplied by its factor in `row_factors [1, n]` (when the activation is rounded), if there are any. `-> [n_embd, n]`
    pub fn gated_ffn<'a>(
        &'a self,
        act: Activation,
        [gate, up, down]: [Tensor<'a>; 3],
        x: Tensor<'a>,
        factors: Option<Tensor<'a>>,
        row_factors: Option<Tensor<'a>>,
        to: Target<'a>,
    ) -> Tensor<'a> {
        let (out, adds) = self.target(to, [down.ne(1), x.ne(1)]);
        // Gate and up: in the graph's memory, which other operations use before and after.
        let hidden = self.fresh(GgmlType::BF16, [gate.ne(1), 2 * x.ne(1), 1]);
        let hidden = self.ours(Op::Scratch, hidden, &[Some(x)], &[]);
        let src = [Some(down), Some(x), Some(gate), Some(up), row_factors, factors, Some(hidden)];
        self.ours(Op::GatedFfn, out, &src, &[adds, activation(act)])
    }

    fn target<'a>(&'a self, to: Target<'a>, ne: [usize; 2]) -> (Tensor<'a>, i32) {
        match to {
            Target::F32 => (self.fresh(GgmlType::F32, [ne[0], ne[1], 1]), 0),
            Target::Bf16 => (self.fresh(GgmlType::BF16, [ne[0], ne[1], 1]), 0),
            Target::Added(h) => (self.alias(h), 1),
        }
    }

    /// Norm of a low-rank FFN's output (before its last, orthonormal factor) of `x [n_embd, n]`, multiplied by `factors [n_embd]`
    /// as in [`Ops::product`]; times `times [1, n]`; in `to` if that is given. `-> [1, n]`
    pub fn proxy_norm<'a>(
        &'a self,
        act: Activation,
        [u_gu, v_gu, v_down]: [Tensor<'a>; 3],
        x: Tensor<'a>,
        factors: Option<Tensor<'a>>,
        times: Option<Tensor<'a>>,
        to: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let out = self.place(to, GgmlType::F32, [1, x.ne(1)]);
        let src = [x, u_gu, v_gu, v_down].map(Some);
        self.ours(Op::ProxyNorm, out, &[&src[..], &[factors, times]].concat(), &[activation(act)])
    }

    /// `x [f, n] / rms(x)`, times `weight [f]` if there is one; in `to` if that is given. `-> BF16 [f, n]`
    pub fn rms_norm_16<'a>(
        &'a self,
        x: Tensor<'a>,
        weight: Option<Tensor<'a>>,
        eps: f32,
        to: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let out = self.place(to, GgmlType::BF16, [x.ne(0), x.ne(1)]);
        self.ours(Op::RmsNorm, out, &[Some(x), weight], &[bits(eps)])
    }

    /// Rotates the heads of `x [f, n]` by `positions [n]`, without YaRN's ramp; in `to` (F32 or F16, or x itself) if that is
    /// given. `-> [f, n]`
    pub fn rope_rows<'a>(
        &'a self,
        x: Tensor<'a>,
        positions: Tensor<'a>,
        factors: Option<Tensor<'a>>,
        head_dim: usize,
        rope: &Rope,
        to: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let out = self.place(to, GgmlType::F32, [x.ne(0), x.ne(1)]);
        let halves = i32::from(rope.layout == RopeLayout::HalfSplit);
        let scales = [rope.freq_base, rope.freq_scale, rope.attn_factor].map(bits);
        let arguments = [head_dim as i32, rope.n_rot as i32, halves, scales[0], scales[1], scales[2]];
        self.ours(Op::Rope, out, &[Some(x), Some(positions), factors], &arguments)
    }

    /// Adds the rows of `x [f, m]` (F32 or BF16) to the rows `idx` of `h [f, n]`, in h's memory.
    pub fn scatter_add<'a>(&'a self, h: Tensor<'a>, x: Tensor<'a>, idx: Tensor<'a>) -> Tensor<'a> {
        self.ours(Op::ScatterAdd, self.alias(h), &[Some(x), Some(idx)], &[])
    }

    /// [`Ops::scatter_add`], and the sums over their root mean squares in the rows `idx` of `normalized` (BF16 `[f, n]`).
    pub fn scatter_add_normalized<'a>(
        &'a self,
        h: Tensor<'a>,
        x: Tensor<'a>,
        idx: Tensor<'a>,
        normalized: Tensor<'a>,
        eps: f32,
    ) -> Tensor<'a> {
        self.ours(Op::ScatterAdd, self.alias(h), &[x, idx, normalized].map(Some), &[bits(eps)])
    }

    /// The rows `idx [n]` of `a [f, rows]`, of any type: in `to [f, n]` of the same, if that is given. `-> [f, n]`
    pub fn gather<'a>(&'a self, a: Tensor<'a>, idx: Tensor<'a>, to: Option<Tensor<'a>>) -> Tensor<'a> {
        let out = self.place(to, a.ty(), [a.ne(0), idx.n_elements()]);
        self.ours(Op::Gather, out, &[a, idx].map(Some), &[])
    }

    /// Copies `a` (F32) to `to` (F16), both contiguous, their rows of a multiple of 8 elements.
    pub fn store_f16<'a>(&'a self, to: Tensor<'a>, a: Tensor<'a>) -> Tensor<'a> {
        self.ours(Op::Store, self.alias(to), &[Some(a)], &[])
    }

    /// The indices of the `m` best `scores [n]` in ascending order, in `to` if that is given. The `first` and the `last`
    /// ones are always in; the lower index wins ties; NaN counts as -inf. `-> I32 [1, m]`
    pub fn top_k<'a>(
        &'a self,
        scores: Tensor<'a>,
        m: usize,
        [first, last]: [usize; 2],
        to: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let out = self.place(to, GgmlType::I32, [1, m]);
        self.ours(Op::TopK, out, &[Some(scores)], &[last as i32, first as i32])
    }

    /// Of the ascending `rows [m]`: 1 for those that are among the ascending `members [k]`, else 0; in `to` if that is given.
    /// `-> F32 [1, m]`
    pub fn is_member<'a>(&'a self, rows: Tensor<'a>, members: Tensor<'a>, to: Option<Tensor<'a>>) -> Tensor<'a> {
        let out = self.place(to, GgmlType::F32, [1, rows.n_elements()]);
        self.ours(Op::IsMember, out, &[rows, members].map(Some), &[])
    }

    /// Equation 4 of arXiv 2601.13155: mean over heads, joined over the last candidates' queries `q [head_dim * n_head, n_probe]`,
    /// of the softmax over keys `k [head_dim * n_head_kv, n]` in F16; in `to` if that is given. `-> [1, n]`
    pub fn probe_scores<'a>(
        &'a self,
        q: Tensor<'a>,
        k: Tensor<'a>,
        heads: &Heads,
        join: Join,
        to: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let out = self.place(to, GgmlType::F32, [1, k.ne(1)]);
        let arguments = [bits(heads.scale), heads.head_dim as i32, i32::from(join == Join::Max)];
        self.ours(Op::ProbeScores, out, &[q, k].map(Some), &arguments)
    }

    /// Where a result goes: a given place, or one of its own.
    fn place<'a>(&'a self, to: Option<Tensor<'a>>, ty: GgmlType, ne: [usize; 2]) -> Tensor<'a> {
        match to {
            Some(to) => self.alias(to),
            None => self.fresh(ty, [ne[0], ne[1], 1]),
        }
    }

    fn fresh(&self, ty: GgmlType, ne: [usize; 3]) -> Tensor<'_> {
        // SAFETY: a live context with room (nodes were counted).
        self.wrap(unsafe { sys::ggml_new_tensor_3d(self.c(), type_id(ty), ne[0] as i64, ne[1] as i64, ne[2] as i64) })
    }

    /// A node that is written in the memory of `to`.
    fn alias<'a>(&'a self, to: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: live context and tensor.
        self.wrap(unsafe { sys::ggml_view_tensor(self.c(), to.raw()) })
    }

    fn ours<'a>(&'a self, op: Op, out: Tensor<'a>, src: &[Option<Tensor<'a>>], arguments: &[i32]) -> Tensor<'a> {
        // SAFETY: a fresh tensor of this context that nobody computes yet; its sources live as long (they borrow from the
        // same run); at most seven sources and six arguments, of ten and fifteen.
        unsafe {
            let out = out.raw();
            (*out).op = HOST_OP;
            // What an alias is written in is a source, too, the last one: ggml has to know of it.
            (*out).src[sys::GGML_MAX_SRC as usize - 1] = (*out).view_src;
            for (to, from) in (*out).src.iter_mut().zip(src) {
                *to = from.map_or(std::ptr::null_mut(), |from| from.raw());
            }
            (*out).op_params[0] = op as i32;
            (&mut (*out).op_params)[1..=arguments.len()].copy_from_slice(arguments);
        }
        out
    }
}

/// The operation of ggml whose nodes carry ours.
const HOST_OP: sys::ggml_op = sys::GGML_OP_TIMESTEP_EMBEDDING;

/// The name of one of these operations; `None` for ggml's own.
///
/// # Safety
/// `node` points to a live tensor.
pub(super) unsafe fn name(node: *const sys::ggml_tensor) -> Option<&'static str> {
    // SAFETY: as the caller says.
    let (op, number) = unsafe { ((*node).op, (*node).op_params[0]) };
    if op == HOST_OP { NAMES.get(number as usize).copied() } else { None }
}

fn bits(x: f32) -> i32 {
    x.to_bits() as i32
}

fn activation(act: Activation) -> i32 {
    match act {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::ClampedSwiglu => unreachable!("experts alone have it, which ggml's operations compute"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_have_delta_nets_of_some_sizes() {
        let heads = |head_dim, d_conv| DeltaHeads { n_head_k: 16, n_head_v: 48, grouped: false, head_dim, d_conv };
        let (cpu, gpu) = (Kernels::of("CPU"), Kernels::of("CUDA0"));
        for (head_dim, d_conv, expected) in [(128, 4, true), (64, 3, true), (96, 4, false), (128, 6, false)] {
            assert!(cpu.delta_net(&heads(head_dim, d_conv)));
            assert_eq!(gpu.delta_net(&heads(head_dim, d_conv)), expected, "{head_dim}, {d_conv}");
        }
        assert!(!gpu.delta_net(&DeltaHeads { n_head_k: 1, n_head_v: 1, grouped: false, head_dim: 32, d_conv: 4 }));
    }
}
