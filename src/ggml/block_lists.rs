//! Which blocks of keys attention reads: the best by sampled scores (XAttention, arXiv 2503.16428).
//!
//! Queries and keys lie in blocks of [`BLOCK`] rows, by their place in the tile and in the cache. The first block and the last
//! [`BLOCKS_BEHIND`] that a block of queries sees are read in any case; the others are judged by one antidiagonal of each
//! [`STRIDE`] by [`STRIDE`] square of their scores (vendor/ggml-sys/src/block_lists.cu, cpu/block_lists.cpp).

use ggml_sys as sys;

use super::kernels::Kernels;
use super::ops::Ops;
use super::{Tensor, type_id};
use crate::attributes::BlockShare;
use crate::gguf::GgmlType;

/// Queries, and keys, of a block (`SPTS_BLOCK`).
pub const BLOCK: usize = 128;

/// Queries, and keys, of which one antidiagonal is looked at (`SPTS_BLOCK_STRIDE`).
pub const STRIDE: usize = 16;

/// So many last blocks that a block of queries sees are read in any case (`SPTS_BLOCKS_BEHIND`).
pub const BLOCKS_BEHIND: usize = 3;

/// Keys for which there are lists, at most: GPUs judge the blocks of one list in the memory of one multiprocessor.
pub const MOST_KEYS: usize = 1 << 20;

/// Where the operation's arguments begin in its node's parameters (`SPTS_CPU_BLOCK_LISTS_FIRST`).
pub const FIRST_ARGUMENT: usize = 8;

/// How blocks are chosen.
#[derive(Clone, Copy, Debug)]
pub struct BlockRule {
    /// The row of the first query's own key: query i sees the rows up to `first + i`.
    pub first: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// What the chosen blocks make up together.
    pub share: BlockShare,
    /// Queries from this one on read all.
    pub whole_from: usize,
}

impl Ops {
    /// Blocks that `q [d, n_q, n_head]` reads of `k [d, n_kv, n_head_kv]`, on a device that computes its attention without masks:
    /// for each block of queries of each head how many, then which, in ascending order; what follows them in a list is undefined.
    /// `-> I32 [1 + n_blocks, n_tiles, n_head]`
    pub fn block_lists<'a>(&'a self, kernels: Kernels, [q, k]: [Tensor<'a>; 2], rule: BlockRule) -> Tensor<'a> {
        let ne = [1 + (rule.first + q.ne(1)).div_ceil(BLOCK), q.ne(1).div_ceil(BLOCK), q.ne(2)];
        let by_count = i32::from(matches!(rule.share, BlockShare::Density(_)));
        let [scale, share] = [rule.scale, rule.share.share()].map(|x| x.to_bits() as i32);
        let arguments = [rule.first as i32, scale, share, by_count, rule.whole_from.min(q.ne(1)) as i32];
        if kernels.is_cpu() {
            self.cpu_block_lists([q, k], arguments, ne)
        } else {
            self.cuda_block_lists([q, k], arguments, ne)
        }
    }

    fn cpu_block_lists<'a>(&'a self, qk: [Tensor<'a>; 2], arguments: [i32; 5], ne: [usize; 3]) -> Tensor<'a> {
        let mut src = qk.map(Tensor::raw);
        let [width, n_tiles, n_head] = ne.map(|n| n as i64);
        // SAFETY: a live context with room (nodes were counted); the operation reads these sources and arguments, and ggml's own
        // parameters of such a node end before them.
        self.wrap(unsafe {
            let i32 = type_id(GgmlType::I32);
            let all_threads = sys::GGML_N_TASKS_MAX;
            let none = std::ptr::null_mut();
            let out =
                sys::ggml_custom_4d(self.c(), i32, width, n_tiles, n_head, 1, src.as_mut_ptr(), 2, OPERATION, all_threads, none);
            let parameters = &mut (&mut (*out).op_params)[FIRST_ARGUMENT..];
            parameters[..arguments.len()].copy_from_slice(&arguments);
            // Work that is given out, between the threads.
            parameters[arguments.len()] = 0;
            out
        })
    }
}

#[cfg(target_os = "linux")]
const OPERATION: sys::ggml_custom_op_t = Some(sys::spts_cpu_block_lists);
#[cfg(not(target_os = "linux"))]
const OPERATION: sys::ggml_custom_op_t = None;
