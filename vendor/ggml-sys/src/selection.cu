#include "selection.h"
#include "spts_ops.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr float LOG2_E = 1.44269504088896340736f; // softmax runs in base 2

// --- Probe scores ------------------------------------------------------------------------------------------------
//
// Logits of some probing queries lie in memory as rows [n_row], one for each (KV head, query, head of its group), in
// this order. Each row's maximum and sum come first, then the columns' sums over all rows, or the largest of their sums over
// the rows of one query.

constexpr int THREADS = 256;

// Logits in memory at a time, at most (unless those of one query are more).
constexpr int64_t LOGITS = 32 << 20;

// q [query][head][d], F32, to [KV head][query][head of its group][d], F16.
__global__ void group_heads(const float * q, half * grouped, const int d, const int n_head, const int n_head_kv, const int n_query) {
    const int64_t n = int64_t(d)*n_head*n_query;
    for (int64_t i = int64_t(blockIdx.x)*THREADS + threadIdx.x; i < n; i += int64_t(gridDim.x)*THREADS) {
        const int at = i % d, head = i/d % n_head, query = i/d/n_head;
        const int group = n_head/n_head_kv;
        grouped[(((int64_t) (head/group)*n_query + query)*group + head % group)*d + at] = __float2half(q[i]);
    }
}

struct Rows {
    const float * logits;
    int64_t       stride;    // of a row: n_row rounded up to 4
    int           n_row;     // candidates
    int           n_query;   // in these rows
    int           group;     // heads of a KV head
    int           n_hidden;  // candidates that the first of these queries does not see
    float         scale;     // in base 2
};

__device__ int visible(const Rows & rows, const int row) {
    return rows.n_row - rows.n_hidden + row/rows.group % rows.n_query;
}

// A softmax's maximum and sum, of values seen in two places.
__device__ float2 merge(const float2 a, const float2 b) {
    const float max = fmaxf(a.x, b.x);
    return max == -INFINITY ? a : make_float2(max, a.y*exp2f(a.x - max) + b.y*exp2f(b.x - max));
}

// One block a row: maximum and 1/sum.
__global__ void row_stats(const Rows rows, float2 * stats) {
    const float * row = rows.logits + blockIdx.x*rows.stride;
    const int     n   = visible(rows, blockIdx.x);
    float2 own = make_float2(-INFINITY, 0.0f);
    for (int i = 4*threadIdx.x; i < n; i += 4*THREADS) {
        const float4 x = *(const float4 *) (row + i);
        const float  v[4] = {x.x, x.y, x.z, x.w};
        float        max  = own.x;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            max = i + k < n ? fmaxf(max, v[k]*rows.scale) : max;
        }
        float sum = own.y*exp2f(own.x - max);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sum += i + k < n ? exp2f(v[k]*rows.scale - max) : 0.0f;
        }
        own = make_float2(max, sum);
    }
    __shared__ float2 partial[THREADS];
    partial[threadIdx.x] = own;
    for (int half = THREADS/2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            partial[threadIdx.x] = merge(partial[threadIdx.x], partial[threadIdx.x + half]);
        }
    }
    if (threadIdx.x == 0) {
        stats[blockIdx.x] = make_float2(partial[0].x, 1.0f/partial[0].y);
    }
}

// A block sums COLUMNS columns, each over all rows in LANES parts; to join queries by their maximum, over the rows of every
// query by itself. Always in the same order: the sets that follow from
// the scores are the same from run to run.
constexpr int MEAN_THREADS = 1024;
constexpr int QUADS        = 16;
constexpr int COLUMNS      = 4*QUADS;
constexpr int LANES        = MEAN_THREADS/QUADS;

// Adds a row's weights of four columns.
__device__ void add_weights(float4 & sum, const Rows & rows, const float2 * stats, const int row, const int column) {
    const float2 s = stats[row];
    const int    n = visible(rows, row);
    const float4 x = *(const float4 *) (rows.logits + row*rows.stride + column);
    sum.x += column + 0 < n ? exp2f(x.x*rows.scale - s.x)*s.y : 0.0f;
    sum.y += column + 1 < n ? exp2f(x.y*rows.scale - s.x)*s.y : 0.0f;
    sum.z += column + 2 < n ? exp2f(x.z*rows.scale - s.x)*s.y : 0.0f;
    sum.w += column + 3 < n ? exp2f(x.w*rows.scale - s.x)*s.y : 0.0f;
}

template <bool best> __global__ void column_scores(const Rows rows, const float2 * stats, float * scores, const int n_rows, const bool first, const float share) {
    const int quad = threadIdx.x % QUADS, lane = threadIdx.x/QUADS;
    const int column = blockIdx.x*COLUMNS + 4*quad;
    float4 own = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (column < rows.n_row && best) {
        const int of_a_kv_head = rows.n_query*rows.group;
        for (int query = lane; query < rows.n_query; query += LANES) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            for (int kv_head = 0; kv_head < n_rows; kv_head += of_a_kv_head) {
                for (int head = 0; head < rows.group; head++) {
                    add_weights(sum, rows, stats, kv_head + query*rows.group + head, column);
                }
            }
            own = make_float4(fmaxf(own.x, sum.x), fmaxf(own.y, sum.y), fmaxf(own.z, sum.z), fmaxf(own.w, sum.w));
        }
    } else if (column < rows.n_row) {
        for (int row = lane; row < n_rows; row += LANES) {
            add_weights(own, rows, stats, row, column);
        }
    }
    __shared__ float4 partial[LANES][QUADS];
    partial[lane][quad] = own;
    __syncthreads();
    if (threadIdx.x < COLUMNS && blockIdx.x*COLUMNS + threadIdx.x < rows.n_row) {
        float total = 0.0f;
        for (int k = 0; k < LANES; k++) {
            const float part = ((const float *) partial[k])[threadIdx.x];
            total = best ? fmaxf(total, part) : total + part;
        }
        float & score = scores[blockIdx.x*COLUMNS + threadIdx.x];
        const float before = first ? 0.0f : score;
        score = best ? fmaxf(before, total*share) : before + total*share;
    }
}

// --- Top k -------------------------------------------------------------------------------------------------------

constexpr int WARPS    = 32;
constexpr int KEY_BITS = 8;
constexpr int BINS     = 1 << KEY_BITS;

constexpr uint32_t SIGN = 0x80000000;

// Unsigned numbers in the order of the scores; above all of them for what is always in.
__device__ uint32_t key_of(const float score, const bool forced) {
    if (forced) {
        return UINT32_MAX;
    }
    const uint32_t bits = __float_as_uint(isnan(score) ? -INFINITY : score);
    if (bits == SIGN) { // -0 is 0
        return SIGN;
    }
    return bits & SIGN ? ~bits : bits | SIGN;
}

// One block. Finds the m-th best key digit by digit, then writes the indices of all that are above it, and of the first
// that equal it, in order. Keys are kept in shared memory if they fit.
template <bool kept> __global__ void __launch_bounds__(WARPS*WARP_SIZE) top_k_kernel(
        const float * scores, int32_t * indices, const int n, const int m, const int first, const int last) {
    extern __shared__ uint32_t keys[];
    __shared__ int      histogram[BINS];
    __shared__ uint32_t prefix;
    __shared__ int      wanted; // of the keys that begin with the prefix
    __shared__ int      above[WARPS], equal[WARPS];
    const int thread = threadIdx.x, lane = thread % WARP_SIZE, warp = thread/WARP_SIZE;

    const auto scored = [&](const int i) { return key_of(scores[i], i < first || i >= n - last); };
    const auto key_at = [&](const int i) { return kept ? keys[i] : scored(i); };
    if (kept) {
        for (int i = thread; i < n; i += blockDim.x) {
            keys[i] = scored(i);
        }
    }
    if (thread == 0) {
        prefix = 0;
        wanted = m;
    }
    const int rounds = (n + blockDim.x - 1)/blockDim.x;
    for (int shift = 32 - KEY_BITS; shift >= 0; shift -= KEY_BITS) {
        if (thread < BINS) {
            histogram[thread] = 0;
        }
        __syncthreads();
        const uint32_t begun = prefix;
        for (int r = 0; r < rounds; r++) {
            const int      i   = r*blockDim.x + thread;
            const uint32_t key = i < n ? key_at(i) : 0;
            if (i < n && (shift == 32 - KEY_BITS || key >> (shift + KEY_BITS) == begun >> (shift + KEY_BITS))) {
                atomicAdd(&histogram[(key >> shift) % BINS], 1);
            }
        }
        __syncthreads();
        if (warp == 0) {
            // Each thread adds up some bins, from the highest digit down.
            constexpr int EACH = BINS/WARP_SIZE;
            int own = 0;
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                own += histogram[BINS - 1 - lane*EACH - k];
            }
            int before = own;
#pragma unroll
            for (int d = 1; d < WARP_SIZE; d *= 2) {
                const int other = __shfl_up_sync(UINT32_MAX, before, d);
                before += lane >= d ? other : 0;
            }
            before -= own;
            const int want = wanted;
            __syncwarp();
            if (before < want && want <= before + own) {
                int left = want - before;
                int bin  = BINS - 1 - lane*EACH;
                while (histogram[bin] < left) {
                    left -= histogram[bin--];
                }
                prefix = begun | uint32_t(bin) << shift;
                wanted = left;
            }
        }
        __syncthreads();
    }
    const uint32_t least = prefix;
    const int      take  = wanted; // of those equal to it

    // Every warp has a run of the candidates.
    const int run   = (rounds*WARP_SIZE);
    const int start = warp*run, end = min(start + run, n);
    int n_above = 0, n_equal = 0;
    for (int i = start + lane; i - lane < end; i += WARP_SIZE) {
        const uint32_t key = i < end ? key_at(i) : 0;
        n_above += __popc(__ballot_sync(UINT32_MAX, i < end && key > least));
        n_equal += __popc(__ballot_sync(UINT32_MAX, i < end && key == least));
    }
    if (lane == 0) {
        above[warp] = n_above;
        equal[warp] = n_equal;
    }
    __syncthreads();
    n_above = n_equal = 0;
    for (int w = 0; w < warp; w++) {
        n_above += above[w];
        n_equal += equal[w];
    }
    const uint32_t lower = (1u << lane) - 1;
    for (int i = start + lane; i - lane < end; i += WARP_SIZE) {
        const uint32_t key      = i < end ? key_at(i) : 0;
        const bool     is_above = i < end && key > least, is_equal = i < end && key == least;
        const uint32_t all_above = __ballot_sync(UINT32_MAX, is_above), all_equal = __ballot_sync(UINT32_MAX, is_equal);
        const int rank_above = n_above + __popc(all_above & lower), rank_equal = n_equal + __popc(all_equal & lower);
        if (is_above || (is_equal && rank_equal < take)) {
            indices[rank_above + min(rank_equal, take)] = i;
        }
        n_above += __popc(all_above);
        n_equal += __popc(all_equal);
    }
}

// --- Membership --------------------------------------------------------------------------------------------------

__global__ void is_member_kernel(const int32_t * rows, const int32_t * members, float * found, const int n_rows, const int n_members) {
    const int i = blockIdx.x*THREADS + threadIdx.x;
    if (i >= n_rows) {
        return;
    }
    // The first member that is not below the row.
    const int row = rows[i];
    int first = 0, end = n_members;
    while (first < end) {
        const int middle = (first + end)/2;
        if (members[middle] < row) {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    found[i] = first < n_members && members[first] == row ? 1.0f : 0.0f;
}

} // namespace

void probe_scores(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    GGML_ASSERT(q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && ggml_is_contiguous(q) && ggml_is_contiguous(dst));
    const float scale     = spts_float_argument(dst, 1);
    const int   d         = spts_argument(dst, 2);
    const bool  best      = spts_argument(dst, 3);
    const int   n_head    = q->ne[0]/d, n_head_kv = k->ne[0]/d, group = n_head/n_head_kv;
    const int   n_probe   = q->ne[1], n = k->ne[1];
    const int64_t stride  = GGML_PAD(n, 4);
    const int   each      = (int) std::clamp<int64_t>(LOGITS/(stride*n_head), 1, n_probe);

    cudaStream_t stream = ctx.stream();
    ggml_cuda_pool_alloc<half>   grouped(ctx.pool(), (int64_t) each*n_head*d);
    ggml_cuda_pool_alloc<float>  logits(ctx.pool(), each*n_head*stride);
    ggml_cuda_pool_alloc<float2> stats(ctx.pool(), each*n_head);
    for (int done = 0; done < n_probe; done += each) {
        const int n_query = std::min(each, n_probe - done), n_rows = n_query*n_head;
        const int64_t n_q = (int64_t) n_rows*d;
        group_heads<<<std::min<int64_t>((n_q + THREADS - 1)/THREADS, 1024), THREADS, 0, stream>>>(
            (const float *) q->data + (int64_t) done*n_head*d, grouped.get(), d, n_head, n_head_kv, n_query);
        CUDA_CHECK(cudaGetLastError());
        const float one = 1.0f, zero = 0.0f;
        CUBLAS_CHECK(cublasGemmStridedBatchedEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, n, n_query*group, d,
            &one, k->data, CUDA_R_16F, k->nb[1]/sizeof(half), d, grouped.get(), CUDA_R_16F, d, (int64_t) n_query*group*d,
            &zero, logits.get(), CUDA_R_32F, stride, stride*n_query*group, n_head_kv,
            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
        const Rows rows = {logits.get(), stride, n, n_query, group, n_probe - done - 1, scale*LOG2_E};
        row_stats<<<n_rows, THREADS, 0, stream>>>(rows, stats.get());
        CUDA_CHECK(cudaGetLastError());
        const auto kernel = best ? column_scores<true> : column_scores<false>;
        kernel<<<(n + COLUMNS - 1)/COLUMNS, MEAN_THREADS, 0, stream>>>(
            rows, stats.get(), (float *) dst->data, n_rows, done == 0, 1.0f/(best ? n_head : (float) n_probe*n_head));
        CUDA_CHECK(cudaGetLastError());
    }
}

void top_k(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * scores = dst->src[0];
    GGML_ASSERT(scores->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_I32);
    GGML_ASSERT(ggml_is_contiguous(scores) && ggml_is_contiguous(dst));
    const int    n = ggml_nelements(scores), m = ggml_nelements(dst), last = spts_argument(dst, 1), first = spts_argument(dst, 2);
    const size_t bytes = n*sizeof(uint32_t);
    const auto & info  = ggml_cuda_info().devices[ctx.device];
    constexpr size_t OWN = 4096; // shared memory that the kernel declares itself, rounded up
    if (bytes + OWN <= info.smpbo) {
        CUDA_SET_SHARED_MEMORY_LIMIT(top_k_kernel<true>, info.smpbo - OWN);
        top_k_kernel<true><<<1, WARPS*WARP_SIZE, bytes, ctx.stream()>>>(
            (const float *) scores->data, (int32_t *) dst->data, n, m, first, last);
    } else {
        top_k_kernel<false><<<1, WARPS*WARP_SIZE, 0, ctx.stream()>>>(
            (const float *) scores->data, (int32_t *) dst->data, n, m, first, last);
    }
    CUDA_CHECK(cudaGetLastError());
}

void is_member(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * rows    = dst->src[0];
    const ggml_tensor * members = dst->src[1];
    GGML_ASSERT(rows->type == GGML_TYPE_I32 && members->type == GGML_TYPE_I32 && dst->type == GGML_TYPE_F32);
    GGML_ASSERT(ggml_is_contiguous(rows) && ggml_is_contiguous(members) && ggml_is_contiguous(dst));
    const int n_rows = ggml_nelements(rows), n_members = ggml_nelements(members);
    is_member_kernel<<<(n_rows + THREADS - 1)/THREADS, THREADS, 0, ctx.stream()>>>(
        (const int32_t *) rows->data, (const int32_t *) members->data, (float *) dst->data, n_rows, n_members);
    CUDA_CHECK(cudaGetLastError());
}
