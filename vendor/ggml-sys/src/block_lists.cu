// Which blocks of keys a block of queries reads, by sampled scores (XAttention, arXiv 2503.16428).
//
// Queries and keys lie in blocks of BLOCK rows, each of SQUARES groups of STRIDE rows. The score of a group of queries and a group
// of keys is the mean over one antidiagonal of their square of products: the i-th last query with the i-th key. All of
// these are one product of matrices with STRIDE d columns, for the heads that share keys at a time. A softmax over the groups of keys that a
// group of queries sees makes shares of them, and a block of keys has the sum of its groups' shares over the groups of queries.
//
// Shares become whole numbers before anything is added up, so that the order of additions does not matter: a list is the same
// from run to run.

#include "block_lists.h"
#include "blocks.h"
#include "spts_ops.h"

#include <algorithm>

namespace {

constexpr int BLOCK   = SPTS_BLOCK;
constexpr int STRIDE  = SPTS_BLOCK_STRIDE;
constexpr int SQUARES = BLOCK/STRIDE;
constexpr int THREADS = 256;
constexpr int WARPS   = THREADS/WARP_SIZE;
constexpr int BINS    = 256;

constexpr float LOG2_E = 1.44269504088896340736f; // softmax runs in base 2

// A share of 1 of one group of queries. All groups of a block together stay below 2^30.
constexpr float ONE = 1 << 26;

static_assert(THREADS == BINS, "a thread for each bin");
static_assert(SQUARES == 8, "a block's scores are 16 bytes");

// Groups of STRIDE rows, each side by side as one row: rows[group][i*d + x] = from[STRIDE*group + (backwards ? last - i : i)][x], in
// F16. One head per blockIdx.y.
template <bool backwards, class T> __global__ void gather_groups(
        half * rows, const T * from, const int64_t row_stride, const int64_t head_stride, const int d, const int n_groups) {
    const int64_t n = int64_t(d)*STRIDE*n_groups;
    rows += blockIdx.y*n;
    from += blockIdx.y*head_stride;
    for (int64_t i = int64_t(blockIdx.x)*THREADS + threadIdx.x; i < n; i += int64_t(gridDim.x)*THREADS) {
        const int     x = i % d, at = i/d % STRIDE;
        const int64_t group = i/d/STRIDE;
        rows[i] = (half) from[(group*STRIDE + (backwards ? STRIDE - 1 - at : at))*row_stride + x];
    }
}

struct Blocks {
    const half * scores;      // [n_columns, n_groups] of each head, in base 2
    int64_t      head_stride; // of scores
    int          n_columns;   // groups of keys, rounded up to 8: the last ones may be anything
    int          n_groups;    // of queries, whole ones
    int          n_q;
    int          first;       // row of the first query's own key
    int          whole_from;  // queries that read all blocks
    float        share;       // of the whole, or of the blocks if by_count
    bool         by_count;
    int          n_tiles;
    int64_t      list_stride;
};

__device__ float largest(float x, float * of_warps) {
    x = warp_reduce_max<WARP_SIZE>(x);
    __syncthreads(); // of_warps has been read
    if (threadIdx.x % WARP_SIZE == 0) {
        of_warps[threadIdx.x/WARP_SIZE] = x;
    }
    __syncthreads();
    x = of_warps[0];
    for (int i = 1; i < WARPS; i++) {
        x = fmaxf(x, of_warps[i]);
    }
    return x;
}

template <class T> __device__ T total(T x, T * of_warps) {
    for (int lane = WARP_SIZE/2; lane > 0; lane /= 2) {
        x += __shfl_xor_sync(~0u, x, lane);
    }
    __syncthreads();
    if (threadIdx.x % WARP_SIZE == 0) {
        of_warps[threadIdx.x/WARP_SIZE] = x;
    }
    __syncthreads();
    x = 0;
    for (int i = 0; i < WARPS; i++) {
        x += of_warps[i];
    }
    return x;
}

// The groups of keys that the block's group `square` of queries sees to their ends.
__device__ int groups_seen(const Blocks & b, const int tile, const int square) {
    return (b.first + tile*BLOCK + square*STRIDE + 1)/STRIDE;
}

struct Eight {
    half2 pair[4];
};

// One block of threads for the list of a block of queries of a head: blockIdx.x, blockIdx.y. The list: how many, then the
// blocks in ascending order.
__global__ void choose_blocks(const Blocks b, int32_t * lists) {
    extern __shared__ uint32_t shares[];
    __shared__ float    floats[WARPS];
    __shared__ uint32_t counts[WARPS];
    __shared__ uint32_t weight[BINS];
    __shared__ uint32_t found[2];

    const int tile = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    const int last_query = min(tile*BLOCK + BLOCK, b.n_q) - 1;
    const int n_blocks   = (b.first + last_query)/BLOCK + 1;
    const int n_squares  = min(SQUARES, b.n_groups - tile*SQUARES);
    int32_t * list = lists + (int64_t(head)*b.n_tiles + tile)*b.list_stride;

    // Blocks that are read in any case: the first, and the last ones.
    const int  n_judged = n_blocks - SPTS_BLOCKS_BEHIND;
    const auto is_whole = [&](const int block) { return block == 0 || block >= n_judged; };
    const auto read_all = [&] {
        for (int block = thread; block < n_blocks; block += THREADS) {
            list[1 + block] = block;
        }
        if (thread == 0) {
            list[0] = n_blocks;
        }
    };
    if (last_query >= b.whole_from || n_squares <= 0 || n_judged <= 1) {
        return read_all();
    }

    for (int block = thread; block < n_blocks; block += THREADS) {
        shares[block] = 0;
    }
    for (int square = 0; square < n_squares; square++) {
        const int n = groups_seen(b, tile, square);
        if (n == 0) {
            continue;
        }
        const half * row = b.scores + head*b.head_stride + int64_t(tile*SQUARES + square)*b.n_columns;
        float most = -INFINITY;
        for (int block = thread; block*SQUARES < n; block += THREADS) {
            const Eight x = *(const Eight *) (row + block*SQUARES);
#pragma unroll
            for (int i = 0; i < SQUARES; i++) {
                const float y = i % 2 == 0 ? __low2float(x.pair[i/2]) : __high2float(x.pair[i/2]);
                most = block*SQUARES + i < n ? fmaxf(most, y) : most;
            }
        }
        most = largest(most, floats);
        // A thread's blocks are the same in either loop, so that their sums need not be stored in between.
        const auto of_block = [&](const int block) {
            const Eight x = *(const Eight *) (row + block*SQUARES);
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < SQUARES; i++) {
                const float y = i % 2 == 0 ? __low2float(x.pair[i/2]) : __high2float(x.pair[i/2]);
                sum += block*SQUARES + i < n ? exp2f(y - most) : 0.0f;
            }
            return sum;
        };
        float sum = 0.0f;
        for (int block = thread; block*SQUARES < n; block += THREADS) {
            sum += of_block(block);
        }
        sum = total(sum, floats);
        if (!(sum > 0.0f && sum < INFINITY)) {
            return read_all(); // scores that are no numbers say nothing; all threads see the same sum
        }
        const float factor = ONE/sum;
        for (int block = thread; block*SQUARES < n; block += THREADS) {
            shares[block] += (uint32_t) fminf(of_block(block)*factor, ONE);
        }
    }
    __syncthreads();

    // The largest limit such that the blocks from there on, and those that are read in any case, make up the share: its digits,
    // from the highest on.
    const auto weight_of = [&](const int block) { return b.by_count ? 1u : shares[block]; };
    uint32_t all = 0, have = 0;
    for (int block = thread; block < n_blocks; block += THREADS) {
        all += weight_of(block);
        have += is_whole(block) ? weight_of(block) : 0;
    }
    all  = total(all, counts);
    have = total(have, counts);
    const uint32_t wanted = (uint32_t) ceilf(b.share*(float) all);
    uint32_t limit = 0;
    if (have >= wanted) {
        limit = ~0u;
    } else {
        for (int shift = 24; shift >= 0; shift -= 8) {
            weight[thread] = 0;
            __syncthreads();
            for (int block = thread; block < n_blocks; block += THREADS) {
                const uint32_t share = shares[block];
                if (!is_whole(block) && (shift == 24 || share >> (shift + 8) == limit >> (shift + 8))) {
                    atomicAdd(&weight[share >> shift & (BINS - 1)], weight_of(block));
                }
            }
            __syncthreads();
            // Weights of a bin and all above it.
            for (int step = 1; step < BINS; step *= 2) {
                const uint32_t above = thread + step < BINS ? weight[thread + step] : 0;
                __syncthreads();
                weight[thread] += above;
                __syncthreads();
            }
            const uint32_t above = thread + 1 < BINS ? weight[thread + 1] : 0;
            if (thread == 0) {
                found[0] = 0; // rounding may leave a little less than is wanted: then all are in
                found[1] = 0;
            }
            __syncthreads();
            if (have + weight[thread] >= wanted && have + above < wanted) {
                found[0] = thread;
                found[1] = above;
            }
            __syncthreads();
            limit |= found[0] << shift;
            have += found[1];
            __syncthreads();
        }
    }

    int n_before = 0;
    for (int start = 0; start < n_blocks; start += THREADS) {
        const int  block = start + thread;
        const bool is_in = block < n_blocks && (is_whole(block) || shares[block] >= limit);
        const uint32_t in_warp = __ballot_sync(~0u, is_in);
        const int warp = thread/WARP_SIZE, lane = thread % WARP_SIZE;
        __syncthreads();
        if (lane == 0) {
            counts[warp] = __popc(in_warp);
        }
        __syncthreads();
        int at = n_before + __popc(in_warp & ((1u << lane) - 1));
        for (int i = 0; i < WARPS; i++) {
            at += i < warp ? counts[i] : 0;
            n_before += counts[i];
        }
        if (is_in) {
            list[1 + at] = block;
        }
    }
    if (thread == 0) {
        list[0] = n_before;
    }
}

int blocks_for(const int64_t n) {
    return std::min<int64_t>((n + THREADS - 1)/THREADS, 4096);
}

} // namespace

void block_lists(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    GGML_ASSERT(q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && dst->type == GGML_TYPE_I32);
    const int d = q->ne[0], n_head = q->ne[2], n_head_kv = k->ne[2], group = n_head/n_head_kv;
    const cudaStream_t stream = ctx.stream();

    Blocks b;
    b.n_q         = q->ne[1];
    b.first       = spts_argument(dst, 1);
    b.share       = spts_float_argument(dst, 3);
    b.by_count    = spts_argument(dst, 4) != 0;
    b.whole_from  = spts_argument(dst, 5);
    b.n_tiles     = dst->ne[1];
    b.list_stride = dst->nb[1]/dst->nb[0];
    b.n_groups    = b.n_q/STRIDE;
    const int n_keys  = (b.first + b.n_q)/STRIDE;
    b.n_columns   = GGML_PAD(n_keys, SQUARES);
    b.head_stride = int64_t(b.n_columns)*std::max(b.n_groups, 1);

    // Memory is taken for the heads of one head of keys at a time.
    const int n = STRIDE*d;
    ggml_cuda_pool_alloc<half> queries(ctx.pool(), int64_t(n)*std::max(b.n_groups, 1)*group);
    ggml_cuda_pool_alloc<half> keys(ctx.pool(), int64_t(n)*b.n_columns);
    ggml_cuda_pool_alloc<half> scores(ctx.pool(), b.head_stride*group);
    b.scores = scores.get();
    const int n_blocks = (b.first + b.n_q - 1)/BLOCK + 1;
    const float alpha = spts_float_argument(dst, 2)*LOG2_E/STRIDE, zero = 0.0f;
    for (int kv_head = 0; kv_head < n_head_kv; kv_head++) {
        if (b.n_groups > 0) {
            const auto strides = [](const ggml_tensor * t) {
                const size_t size = ggml_type_size(t->type);
                return std::pair<int64_t, int64_t>(t->nb[1]/size, t->nb[2]/size);
            };
            const auto [q_row, q_head] = strides(q);
            const auto [k_row, k_head] = strides(k);
            gather_groups<true><<<dim3(blocks_for(int64_t(n)*b.n_groups), group), THREADS, 0, stream>>>(
                queries.get(), (const float *) q->data + kv_head*group*q_head, q_row, q_head, d, b.n_groups);
            gather_groups<false><<<dim3(blocks_for(int64_t(n)*n_keys), 1), THREADS, 0, stream>>>(
                keys.get(), (const half *) k->data + kv_head*k_head, k_row, k_head, d, n_keys);
            CUBLAS_CHECK(cublasGemmStridedBatchedEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, b.n_columns, b.n_groups, n,
                &alpha, keys.get(), CUDA_R_16F, n, 0, queries.get(), CUDA_R_16F, n, int64_t(n)*b.n_groups,
                &zero, scores.get(), CUDA_R_16F, b.n_columns, b.head_stride, group, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
        }
        choose_blocks<<<dim3(b.n_tiles, group), THREADS, n_blocks*sizeof(uint32_t), stream>>>(
            b, (int32_t *) dst->data + kv_head*group*b.n_tiles*b.list_stride);
        CUDA_CHECK(cudaGetLastError());
    }
}
