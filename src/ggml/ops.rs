//! One compute graph of ggml, and the operations that build it.
//!
//! Shapes are in ggml order. Views are checked here. Otherwise ggml asserts, which aborts, so graphs come from verified
//! IR only.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ggml_sys as sys;

use super::{Tensor, type_id};
use crate::gguf::GgmlType;
use crate::attributes::{Activation, Rope, RopeLayout};

/// A graph under construction, with the metadata of its tensors.
pub struct Ops {
    ctx: NonNull<sys::ggml_context>,
    graph: NonNull<sys::ggml_cgraph>,
    max_nodes: usize,
    /// Tells this graph from the one before a reset and from those of others.
    id: u64,
}

/// A tensor of a graph that is computed more than once, kept from one time to the next; see [`Ops::keep`].
#[derive(Clone, Copy, Debug)]
pub struct KeptTensor {
    ptr: NonNull<sys::ggml_tensor>,
    graph: u64,
}

// SAFETY: the pointer is followed only by `Ops::kept`, which checks that its graph is still there.
unsafe impl Send for KeptTensor {}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

// SAFETY: the graph owns its context; it is used by one thread at a time.
unsafe impl Send for Ops {}

impl Default for Ops {
    /// An empty graph of few operations, to be started.
    fn default() -> Self {
        Self::new(64)
    }
}

impl Ops {
    /// An empty graph of at most `max_nodes` operations.
    pub fn new(max_nodes: usize) -> Self {
        // SAFETY: the pool holds `max_nodes` results, as many leaves, and the graph itself.
        unsafe {
            let mem_size =
                2 * max_nodes * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead_custom(max_nodes, false);
            let ctx =
                sys::ggml_init(sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true });
            let ctx = NonNull::new(ctx).expect("memory for tensor headers");
            let graph = NonNull::new(sys::ggml_new_graph_custom(ctx.as_ptr(), max_nodes, false))
                .expect("the pool has room for its graph");
            Self { ctx, graph, max_nodes, id: next_id() }
        }
    }

    /// Begins another graph of at most `max_nodes` operations. It has the memory of the one before, if that is enough, and so
    /// the same addresses, by which the CUDA backend recognises a graph that it has captured.
    pub fn start(&mut self, max_nodes: usize) {
        if max_nodes > self.max_nodes {
            *self = Self::new(max_nodes);
        } else {
            self.reset();
        }
    }

    /// Forgets the graph and keeps its memory.
    pub(super) fn reset(&mut self) {
        self.id = next_id();
        // SAFETY: `&mut self`: no handle on a tensor of this graph is alive. The pool has room, as it had the first time.
        unsafe {
            sys::ggml_reset(self.ctx.as_ptr());
            self.graph = NonNull::new(sys::ggml_new_graph_custom(self.ctx.as_ptr(), self.max_nodes, false))
                .expect("the pool has room for its graph");
        }
    }

    pub(super) fn raw_graph(&self) -> *mut sys::ggml_cgraph {
        self.graph.as_ptr()
    }

    /// Says that this graph will be computed again with nothing but its inputs' contents changed: what a backend has captured
    /// of it then holds without a look at every node.
    pub fn will_repeat(&self) {
        // SAFETY: a live graph.
        #[cfg(feature = "cuda")]
        unsafe {
            sys::spts_graph_set_uid(self.raw_graph());
        }
    }

    pub(super) fn c(&self) -> *mut sys::ggml_context {
        self.ctx.as_ptr()
    }

    pub(super) fn wrap(&self, t: *mut sys::ggml_tensor) -> Tensor<'_> {
        // SAFETY: a result of a ggml operation in this context lives as long as the context.
        unsafe { Tensor::from_raw(t) }
    }

    /// Number of operations in the graph so far.
    pub fn n_nodes(&self) -> usize {
        // SAFETY: live graph.
        unsafe { sys::ggml_graph_n_nodes(self.raw_graph()) as usize }
    }

    /// Looks for an operation with a property; returns its name and shapes.
    pub(super) fn find_node(&self, wanted: impl Fn(*const sys::ggml_tensor) -> bool) -> Option<(String, String)> {
        (0..self.n_nodes()).find_map(|i| {
            // SAFETY: the index is in range; names are static strings.
            unsafe {
                let node = sys::ggml_graph_node(self.raw_graph(), i as i32);
                wanted(node).then(|| {
                    let op = CStr::from_ptr(sys::ggml_op_desc(node)).to_string_lossy().into_owned();
                    let side = |t: *const sys::ggml_tensor| {
                        if t.is_null() {
                            return String::from("-");
                        }
                        format!("{}{:?}", CStr::from_ptr(sys::ggml_type_name((*t).type_)).to_string_lossy(), (*t).ne)
                    };
                    (op, format!("{} x {}", side((*node).src[0]), side((*node).src[1])))
                })
            }
        })
    }

    /// Appends everything `t` depends on, and `t`, to the graph, in this order.
    pub fn expand(&self, t: Tensor<'_>) {
        // SAFETY: live graph and tensor; sizes were counted by the caller.
        unsafe { sys::ggml_build_forward_expand(self.raw_graph(), t.raw()) }
    }

    /// A tensor to be written by the host before computing ([`super::backend::Backend::write`]).
    pub fn input(&self, ty: GgmlType, ne: [usize; 2]) -> Tensor<'_> {
        // SAFETY: live context.
        unsafe {
            let t = sys::ggml_new_tensor_2d(self.c(), type_id(ty), ne[0] as i64, ne[1] as i64);
            sys::ggml_set_input(t);
            self.wrap(t)
        }
    }

    /// A handle on a tensor of this graph that does not borrow from it.
    pub fn keep(&self, t: Tensor<'_>) -> KeptTensor {
        KeptTensor { ptr: t.ptr, graph: self.id }
    }

    /// The tensor of a handle.
    ///
    /// # Panics
    /// If the graph was reset since.
    pub fn kept(&self, kept: KeptTensor) -> Tensor<'_> {
        assert_eq!(kept.graph, self.id, "a tensor of a graph that is gone");
        self.wrap(kept.ptr.as_ptr())
    }

    /// Keeps a result from being overwritten, so that the host can read it afterwards.
    pub fn output(&self, t: Tensor<'_>) {
        // SAFETY: live tensor.
        unsafe { sys::ggml_set_output(t.raw()) }
    }

    /// `w [k, m] x [k, n] -> [m, n]`.
    pub fn mul_mat<'a>(&'a self, w: Tensor<'a>, x: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: live tensors of matching shape.
        self.wrap(unsafe { sys::ggml_mul_mat(self.c(), w.raw(), x.raw()) })
    }

    /// Products of rows with the matrices that `ids` chooses for each: `w [k, m, e], x [k, 1 or u, n], ids I32 [u, n] -> [m, u,
    /// n]`.
    pub fn mul_mat_id<'a>(&'a self, w: Tensor<'a>, x: Tensor<'a>, ids: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: live tensors of matching shape.
        self.wrap(unsafe { sys::ggml_mul_mat_id(self.c(), w.raw(), x.raw(), ids.raw()) })
    }

    /// To each row the vector that `ids` chooses for it is added: `a [f, u, n], b [f, e], ids I32 [u, n] -> [f, u, n]`.
    pub fn add_id<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>, ids: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: live tensors of matching shape.
        self.wrap(unsafe { sys::ggml_add_id(self.c(), a.raw(), b.raw(), ids.raw()) })
    }

    /// Indices of the k largest values of each row, in any order: `[f, n] -> I32 [k, n]`.
    pub fn top_of_rows<'a>(&'a self, a: Tensor<'a>, k: usize) -> Tensor<'a> {
        // SAFETY: a live tensor with at least k columns.
        self.wrap(unsafe { sys::ggml_argsort_top_k(self.c(), a.raw(), k as i32) })
    }

    /// Asks a product to accumulate at least in this precision.
    pub fn accumulate_in(&self, product: Tensor<'_>, precision: Precision) {
        let prec = match precision {
            Precision::F32 => sys::GGML_PREC_F32,
            Precision::Bf16 => sys::GGML_PREC_BF16,
        };
        // SAFETY: `product` is a matrix product or attention, for which the call is defined.
        unsafe {
            sys::ggml_prec_set_acc(product.raw(), prec);
        }
    }

    /// Elementwise sum, `b` broadcast.
    pub fn add<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_add(self.c(), a.raw(), b.raw()) })
    }

    /// a += b, in a's memory.
    pub fn add_in_place<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_add_inplace(self.c(), a.raw(), b.raw()) })
    }

    /// Elementwise difference, `b` broadcast.
    pub fn sub<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_sub(self.c(), a.raw(), b.raw()) })
    }

    /// Elementwise product, `b` broadcast.
    pub fn mul<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_mul(self.c(), a.raw(), b.raw()) })
    }

    /// s * a + b
    pub fn scale_bias<'a>(&'a self, a: Tensor<'a>, s: f32, b: f32) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_scale_bias(self.c(), a.raw(), s, b) })
    }

    /// s * a
    pub fn scale<'a>(&'a self, a: Tensor<'a>, s: f32) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_scale(self.c(), a.raw(), s) })
    }

    /// Square root.
    pub fn sqrt<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_sqrt(self.c(), a.raw()) })
    }

    /// Square.
    pub fn sqr<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_sqr(self.c(), a.raw()) })
    }

    /// Hyperbolic tangent.
    pub fn tanh<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_tanh(self.c(), a.raw()) })
    }

    /// 1 / (1 + exp(-a))
    pub fn sigmoid<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_sigmoid(self.c(), a.raw()) })
    }

    /// a / (1 + exp(-a))
    pub fn silu<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_silu(self.c(), a.raw()) })
    }

    /// ln(1 + exp(a))
    pub fn softplus<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_softplus(self.c(), a.raw()) })
    }

    /// Convolves each channel of `x [d_conv - 1 + n, channels]` with its kernel in `w [d_conv, channels]`: `-> [channels, n]`.
    pub fn ssm_conv<'a>(&'a self, x: Tensor<'a>, w: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: live tensors of matching shape, F32.
        self.wrap(unsafe { sys::ggml_ssm_conv(self.c(), x.raw(), w.raw()) })
    }

    /// A gated delta net over n rows: `q`, `k [d, h_k, n]`, `v [d, h_v, n]`, the logarithms of the decays `g` and `beta [1, h_v,
    /// n]`, and what the rows before left, `state [d, d, h_v]`. `-> [d * h_v, n + d]`: n rows of results, and the new state.
    pub fn gated_delta_net<'a>(&'a self, [q, k, v, g, beta, state]: [Tensor<'a>; 6]) -> Tensor<'a> {
        // SAFETY: live tensors of matching shape, F32; g, beta and state are contiguous, and so are the rows of the others.
        self.wrap(unsafe {
            sys::ggml_gated_delta_net(self.c(), q.raw(), k.raw(), v.raw(), g.raw(), beta.raw(), state.raw(), 1)
        })
    }

    /// The largest whole number that is no larger.
    pub fn floor<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_floor(self.c(), a.raw()) })
    }

    /// Natural logarithm; of 0 it is -inf.
    pub fn log<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_log(self.c(), a.raw()) })
    }

    /// 1 where a > 0, else 0.
    pub fn step<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_step(self.c(), a.raw()) })
    }

    /// Sum over dimension 0: `[f, n] -> [1, n]`.
    pub fn sum_rows<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_sum_rows(self.c(), a.raw()) })
    }

    /// a / rms(a) over dimension 0.
    pub fn rms_norm<'a>(&'a self, a: Tensor<'a>, eps: f32) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_rms_norm(self.c(), a.raw(), eps) })
    }

    /// Rotates heads `[head_dim, n_head, n]` by `positions [n]`.
    pub fn rope<'a>(
        &'a self,
        a: Tensor<'a>,
        positions: Tensor<'a>,
        factors: Option<Tensor<'a>>,
        rope: &Rope,
    ) -> Tensor<'a> {
        let mode = match rope.layout {
            RopeLayout::Interleaved => 0,
            RopeLayout::HalfSplit => sys::GGML_ROPE_TYPE_NEOX as i32,
        };
        let factors = factors.map_or(std::ptr::null_mut(), |f| f.raw());
        // SAFETY: as above; a null factor tensor means none.
        self.wrap(unsafe {
            sys::ggml_rope_ext(
                self.c(),
                a.raw(),
                positions.raw(),
                factors,
                rope.n_rot as i32,
                mode,
                rope.n_ctx_orig as i32,
                rope.freq_base,
                rope.freq_scale,
                rope.ext_factor,
                rope.attn_factor,
                rope.beta_fast,
                rope.beta_slow,
            )
        })
    }

    /// act(gate) * up, or what [`Activation`] says of it.
    pub fn glu<'a>(&'a self, act: Activation, gate: Tensor<'a>, up: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe {
            match act {
                Activation::Silu => sys::ggml_swiglu_split(self.c(), gate.raw(), up.raw()),
                Activation::Gelu => sys::ggml_geglu_split(self.c(), gate.raw(), up.raw()),
                Activation::ClampedSwiglu => sys::ggml_swiglu_oai(self.c(), gate.raw(), up.raw(), 1.702, 7.0),
            }
        })
    }

    /// Rows `idx` of `a`; F32 from any float or quantized type, I32 from I32.
    pub fn get_rows<'a>(&'a self, a: Tensor<'a>, idx: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_get_rows(self.c(), a.raw(), idx.raw()) })
    }

    /// Writes the rows of `src` to the rows `idx` of `dst`, in dst's memory.
    pub fn set_rows<'a>(&'a self, dst: Tensor<'a>, src: Tensor<'a>, idx: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_set_rows(self.c(), dst.raw(), src.raw(), idx.raw()) })
    }

    /// Copies `src` into `dst`, converting the type.
    pub fn copy<'a>(&'a self, src: Tensor<'a>, dst: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_cpy(self.c(), src.raw(), dst.raw()) })
    }

    /// `a` in another type.
    pub fn cast<'a>(&'a self, a: Tensor<'a>, ty: GgmlType) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_cast(self.c(), a.raw(), type_id(ty)) })
    }

    /// A contiguous copy.
    pub fn cont<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_cont(self.c(), a.raw()) })
    }

    /// Swaps dimensions: dimension i of `a` becomes dimension `axes[i]`.
    pub fn permute<'a>(&'a self, a: Tensor<'a>, axes: [i32; 4]) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_permute(self.c(), a.raw(), axes[0], axes[1], axes[2], axes[3]) })
    }

    /// Swaps dimensions 0 and 1.
    pub fn transpose<'a>(&'a self, a: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_transpose(self.c(), a.raw()) })
    }

    /// The same elements in other dimensions; `a` is contiguous. What was reshaped from these dimensions before is found again:
    /// GPUs compute a norm and the rotation behind it in one kernel if no node stands between them.
    pub fn reshape<'a>(&'a self, a: Tensor<'a>, ne: [usize; 3]) -> Tensor<'a> {
        if let Some(before) = self.before_reshape(a).filter(|b| [0, 1, 2].map(|i| b.ne(i)) == ne) {
            return before;
        }
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_reshape_3d(self.c(), a.raw(), ne[0] as i64, ne[1] as i64, ne[2] as i64) })
    }

    /// What a tensor was made of by [`Ops::reshape`], if it was: nothing is computed between them.
    pub fn before_reshape<'a>(&'a self, a: Tensor<'a>) -> Option<Tensor<'a>> {
        // SAFETY: a live tensor, whose sources live as long.
        unsafe { ((*a.raw()).op == sys::GGML_OP_RESHAPE).then(|| self.wrap((*a.raw()).src[0])) }
    }

    /// Rows `first .. first + n` of a matrix.
    pub fn rows<'a>(&'a self, a: Tensor<'a>, first: usize, n: usize) -> Tensor<'a> {
        self.view_2d(a, [a.ne(0), n], a.nb(1), first * a.nb(1))
    }

    /// A window on a tensor's memory: strides and offset in bytes.
    ///
    /// # Panics
    /// If it reaches beyond the tensor.
    pub fn view_2d<'a>(&'a self, a: Tensor<'a>, ne: [usize; 2], nb1: usize, offset: usize) -> Tensor<'a> {
        assert_within(a, &[ne[0], ne[1]], &[nb1], offset);
        // SAFETY: the window lies within the tensor.
        self.wrap(unsafe { sys::ggml_view_2d(self.c(), a.raw(), ne[0] as i64, ne[1] as i64, nb1, offset) })
    }

    /// A window on a tensor's memory: strides and offset in bytes.
    ///
    /// # Panics
    /// If it reaches beyond the tensor.
    pub fn view_3d<'a>(&'a self, a: Tensor<'a>, ne: [usize; 3], nb: [usize; 2], offset: usize) -> Tensor<'a> {
        assert_within(a, &ne, &nb, offset);
        // SAFETY: as above.
        self.wrap(unsafe {
            sys::ggml_view_3d(self.c(), a.raw(), ne[0] as i64, ne[1] as i64, ne[2] as i64, nb[0], nb[1], offset)
        })
    }

    /// softmax(a * scale + mask) over dimension 0. `sinks [n_head]` of `a [n, m, n_head]`, if there are any, are in its sums, too.
    pub fn soft_max<'a>(
        &'a self,
        a: Tensor<'a>,
        mask: Option<Tensor<'a>>,
        scale: f32,
        sinks: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let mask = mask.map_or(std::ptr::null_mut(), |m| m.raw());
        // SAFETY: as above; a null mask means none, and null sinks, too.
        self.wrap(unsafe {
            let out = sys::ggml_soft_max_ext(self.c(), a.raw(), mask, scale, 0.0);
            sys::ggml_soft_max_add_sinks(out, sinks.map_or(std::ptr::null_mut(), |s| s.raw()));
            out
        })
    }

    /// Attention of `q [d, n_q, n_head]` over `k`, `v [d, n_kv, n_head_kv]` with an F16 mask `[n_kv, n_q]` and perhaps sinks
    /// `[n_head]` as in [`Ops::soft_max`] -> `[d, n_head, n_q]`.
    pub fn flash_attn<'a>(
        &'a self,
        [q, k, v]: [Tensor<'a>; 3],
        mask: Tensor<'a>,
        scale: f32,
        sinks: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe {
            let out = sys::ggml_flash_attn_ext(self.c(), q.raw(), k.raw(), v.raw(), mask.raw(), scale, 0.0, 0.0);
            sys::ggml_flash_attn_ext_add_sinks(out, sinks.map_or(std::ptr::null_mut(), |s| s.raw()));
            out
        })
    }

    /// Maximum or mean over `width` neighbours along dimension 0, as many as there are at the ends.
    pub fn pool_1d<'a>(&'a self, a: Tensor<'a>, max: bool, width: usize) -> Tensor<'a> {
        let op = if max { sys::GGML_OP_POOL_MAX } else { sys::GGML_OP_POOL_AVG };
        // SAFETY: as above; width is odd, so the length stays.
        self.wrap(unsafe { sys::ggml_pool_1d(self.c(), a.raw(), op, width as i32, 1, (width / 2) as i32) })
    }

    /// Maxima of the chunks of `width` along dimension 0, which are whole: `[width c, n] -> [c, n]`.
    pub fn max_of_chunks<'a>(&'a self, a: Tensor<'a>, width: usize) -> Tensor<'a> {
        // SAFETY: as above; windows that neither overlap nor reach beyond the ends.
        self.wrap(unsafe { sys::ggml_pool_1d(self.c(), a.raw(), sys::GGML_OP_POOL_MAX, width as i32, width as i32, 0) })
    }

    /// `a [f, n]` above `b [g, n]`: `-> [f + g, n]`.
    pub fn concat<'a>(&'a self, a: Tensor<'a>, b: Tensor<'a>) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_concat(self.c(), a.raw(), b.raw(), 0) })
    }

    /// Copies of `a` side by side until the shape is `ne`.
    pub fn repeat<'a>(&'a self, a: Tensor<'a>, ne: [usize; 3]) -> Tensor<'a> {
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_repeat_4d(self.c(), a.raw(), ne[0] as i64, ne[1] as i64, ne[2] as i64, 1) })
    }

    /// `a` with `n` zeros appended along dimension 0.
    pub fn pad<'a>(&'a self, a: Tensor<'a>, n: usize) -> Tensor<'a> {
        if n == 0 {
            return a;
        }
        // SAFETY: as above.
        self.wrap(unsafe { sys::ggml_pad(self.c(), a.raw(), n as i32, 0, 0, 0) })
    }
}

/// Least precision of a product's accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Inputs and sums in F32 where the backend can.
    F32,
    /// Inputs in bf16, sums in F32.
    Bf16,
}

/// Fails if a window on a tensor's memory, `nb` its strides from dimension 1 on, reaches beyond the tensor: ggml's own check sees
/// neither strides nor, where they are larger than a row, its last rows.
fn assert_within(a: Tensor<'_>, ne: &[usize], nb: &[usize], offset: usize) {
    if ne.contains(&0) {
        return;
    }
    // SAFETY: a live tensor of a known type.
    let (row, all) = unsafe { (sys::ggml_row_size((*a.raw()).type_, ne[0] as i64), sys::ggml_nbytes(a.raw())) };
    let reach = ne[1..]
        .iter()
        .zip(nb)
        .try_fold(row, |end, (n, stride)| (n - 1).checked_mul(*stride).and_then(|bytes| end.checked_add(bytes)));
    let end = reach.and_then(|reach| reach.checked_add(offset));
    assert!(
        end.is_some_and(|end| end <= all),
        "a view of {ne:?} with strides {nb:?} at byte {offset} leaves its tensor of {all} bytes"
    );
}

impl Drop for Ops {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; handles borrow from self.
        unsafe { sys::ggml_free(self.ctx.as_ptr()) }
    }
}
