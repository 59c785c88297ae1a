#include "products.h"
#include "dequantize.h"
#include "product_tiles.h"
#include "spts_ops.h"
#include "unary.cuh"
#include "wide_weights.h"

namespace {

using bf16 = nv_bfloat16;

constexpr int THREADS = 256;

// Rows as BF16: themselves, or a copy in the pool until the end of the scope. The stream orders the copy's reuse.
class Bf16 {
  public:
    Bf16(ggml_backend_cuda_context & ctx, const ggml_tensor * t) : copy(ctx.pool()), values((const bf16 *) t->data) {
        GGML_ASSERT(ggml_is_contiguous(t));
        if (t->type != GGML_TYPE_BF16) {
            values = copy.alloc(ggml_nelements(t));
            dequantize_16(t->type, t->data, copy.get(), ggml_nelements(t), {}, ctx.stream());
        }
    }

    const bf16 * get() const { return values; }

  private:
    ggml_cuda_pool_alloc<bf16> copy;
    const bf16 *               values;
};

// Where a product goes, and whether it is added to what is there.
struct Target {
    void *         data;
    cudaDataType_t type;
    bool           adds;

    Target(bf16 * data) : data(data), type(CUDA_R_16BF), adds(false) {}
    Target(float * data) : data(data), type(CUDA_R_32F), adds(false) {}
    Target(const ggml_tensor * dst, const bool adds)
        : data(dst->data), type(dst->type == GGML_TYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F), adds(adds) {
        GGML_ASSERT(ggml_is_contiguous(dst) && (dst->type == GGML_TYPE_F32 || (dst->type == GGML_TYPE_BF16 && !adds)));
    }
};

// y [n_out, rows] = w [n_in, n_out] x [n_in, rows], summed in F32. Rows of x lie `x_stride` apart.
void multiply(ggml_backend_cuda_context & ctx, const bf16 * w, const bf16 * x, const int64_t x_stride, const Target y,
              const int64_t n_in, const int64_t n_out, const int64_t rows) {
    if (multiply_in_tiles(ctx, w, x, y.data, {n_in, n_out, rows, x_stride, y.type, y.adds})) {
        return;
    }
    const float one = 1.0f, before = y.adds ? 1.0f : 0.0f;
    CUBLAS_CHECK(cublasGemmEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, n_out, rows, n_in,
        &one, w, CUDA_R_16BF, n_in, x, CUDA_R_16BF, x_stride, &before, y.data, y.type, n_out,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
}

// Two products at once, of two weights [n_in, n_out] with the two halves of rows [2 n_in, rows]. Weights lie one behind the other,
// and so do the results.
void multiply_halves(ggml_backend_cuda_context & ctx, const bf16 * w, const bf16 * x, bf16 * y, const int64_t n_in,
                     const int64_t n_out, const int64_t rows) {
    const float one = 1.0f, zero = 0.0f;
    CUBLAS_CHECK(cublasGemmStridedBatchedEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, n_out, rows, n_in,
        &one, w, CUDA_R_16BF, n_in, n_in*n_out, x, CUDA_R_16BF, 2*n_in, n_in, &zero, y, CUDA_R_16BF, n_out, n_out*rows,
        2, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
}

// Eight values at a time: 16 bytes.
struct alignas(16) Bf16x8 {
    nv_bfloat162 pair[4];
};

template <bool gelu> __device__ float activate(const float x) {
    return gelu ? ggml_cuda_op_gelu_single(x) : x / (1.0f + __expf(-x));
}

// gate = act(gate) * up, times the factor of the row (of n_ff values), if there are factors.
template <bool gelu, bool scaled> __global__ void multiply_gate(Bf16x8 * gate, const Bf16x8 * up, const float * factors,
                                                                const int n_ff, const int64_t n) {
    const int64_t i = int64_t(blockIdx.x)*blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    Bf16x8 g = gate[i];
    const Bf16x8 u = up[i];
    const float  factor = scaled ? factors[8*i/n_ff] : 1.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float2 a = __bfloat1622float2(g.pair[k]);
        const float2 b = __bfloat1622float2(u.pair[k]);
        g.pair[k] = __floats2bfloat162_rn(activate<gelu>(a.x)*b.x*factor, activate<gelu>(a.y)*b.y*factor);
    }
    gate[i] = g;
}

// The same, one value at a time, for widths that eight do not divide.
template <bool gelu, bool scaled> __global__ void multiply_gate_singly(bf16 * gate, const bf16 * up, const float * factors,
                                                                       const int n_ff, const int64_t n) {
    const int64_t i = int64_t(blockIdx.x)*blockDim.x + threadIdx.x;
    if (i < n) {
        const float factor = scaled ? factors[i/n_ff] : 1.0f;
        gate[i] = __float2bfloat16(activate<gelu>(__bfloat162float(gate[i]))*__bfloat162float(up[i])*factor);
    }
}

// Rows of n_ff values. `factors`: F32 [1, rows] or null.
void activate_gate(ggml_backend_cuda_context & ctx, const bool gelu, bf16 * gate, const bf16 * up, const ggml_tensor * factors,
                   const int64_t n_ff, const int64_t rows) {
    GGML_ASSERT(factors == nullptr || (factors->type == GGML_TYPE_F32 && ggml_is_contiguous(factors) && ggml_nelements(factors) == rows));
    const float * values = factors != nullptr ? (const float *) factors->data : nullptr;
    // Eight values of one row at a time, 16 bytes; `up` lies behind all of `gate`.
    const bool    by_eight = n_ff % 8 == 0;
    const int64_t n        = by_eight ? n_ff*rows/8 : n_ff*rows;
    const auto launch = [&](const auto kernel, auto * g, const auto * u) {
        kernel<<<(n + THREADS - 1)/THREADS, THREADS, 0, ctx.stream()>>>(g, u, values, n_ff, n);
    };
    if (by_eight) {
        Bf16x8 *       g = (Bf16x8 *) gate;
        const Bf16x8 * u = (const Bf16x8 *) up;
        values == nullptr ? launch(gelu ? multiply_gate<true, false> : multiply_gate<false, false>, g, u)
                          : launch(gelu ? multiply_gate<true, true> : multiply_gate<false, true>, g, u);
    } else {
        values == nullptr ? launch(gelu ? multiply_gate_singly<true, false> : multiply_gate_singly<false, false>, gate, up)
                          : launch(gelu ? multiply_gate_singly<true, true> : multiply_gate_singly<false, true>, gate, up);
    }
    CUDA_CHECK(cudaGetLastError());
}

// norms[i] = || x[i] ||, times factors[i] unless they are null, one warp a row.
__global__ void row_norms(const float * x, const float * factors, float * norms, const int width, const int n) {
    const int row = blockIdx.x*(THREADS/WARP_SIZE) + threadIdx.x/WARP_SIZE;
    if (row >= n) {
        return;
    }
    float sum = 0.0f;
    for (int i = threadIdx.x % WARP_SIZE; i < width; i += WARP_SIZE) {
        const float value = x[int64_t(row)*width + i];
        sum += value*value;
    }
    sum = warp_reduce_sum(sum);
    if (threadIdx.x % WARP_SIZE == 0) {
        norms[row] = sqrtf(sum)*(factors != nullptr ? factors[row] : 1.0f);
    }
}

} // namespace

void product(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * w = dst->src[0];
    const ggml_tensor * x = dst->src[1];
    const WideWeight weights(ctx, w, dst->src[2]);
    const Bf16 rows(ctx, x);
    multiply(ctx, weights.get(), rows.get(), w->ne[0], Target(dst, spts_argument(dst, 1) == 1), w->ne[0], w->ne[1], x->ne[1]);
}

// Gate and up stay 16 bits wide, as the product behind them wants them: a third of the bytes of F32 in between.
void gated_ffn(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * w_down = dst->src[0];
    const ggml_tensor * x      = dst->src[1];
    const ggml_tensor * w_gate = dst->src[2];
    const ggml_tensor * w_up   = dst->src[3];
    const int64_t n_embd = x->ne[0], n_ff = w_gate->ne[1], rows = x->ne[1];

    bf16 * const gate = (bf16 *) dst->src[6]->data;
    bf16 * const up   = gate + n_ff*rows;
    {
        const Bf16 input(ctx, x);
        for (const auto & [w, y] : {std::pair(w_gate, gate), std::pair(w_up, up)}) {
            const WideWeight weights(ctx, w, dst->src[5]);
            multiply(ctx, weights.get(), input.get(), n_embd, y, n_embd, n_ff, rows);
        }
    }
    activate_gate(ctx, spts_argument(dst, 2) == 1, gate, up, dst->src[4], n_ff, rows);

    const WideWeight weights(ctx, w_down);
    multiply(ctx, weights.get(), gate, n_ff, Target(dst, spts_argument(dst, 1) == 1), n_ff, n_embd, rows);
}

void proxy_norm(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * x = dst->src[0];
    const int64_t n_embd = x->ne[0], rows = x->ne[1], rank = dst->src[2]->ne[0], d_low = dst->src[3]->ne[0];
    const ggml_tensor * factors = dst->src[5];
    GGML_ASSERT(ggml_is_contiguous(dst));
    GGML_ASSERT(factors == nullptr || (factors->type == GGML_TYPE_F32 && ggml_is_contiguous(factors) && ggml_nelements(factors) == rows));

    ggml_cuda_pool_alloc<bf16> low(ctx.pool(), 2*rank*rows); // y_g over y_u
    {
        const Bf16 input(ctx, x);
        const WideWeight u(ctx, dst->src[1], dst->src[4]);
        multiply(ctx, u.get(), input.get(), n_embd, low.get(), n_embd, 2*rank, rows);
    }
    ggml_cuda_pool_alloc<bf16> both(ctx.pool(), 2*d_low*rows); // gate, then up
    bf16 * const gate = both.get();
    bf16 * const up   = gate + d_low*rows;
    const Bf16 v_gu(ctx, dst->src[2]), v_down(ctx, dst->src[3]);
    multiply_halves(ctx, v_gu.get(), low.get(), gate, rank, d_low, rows);
    activate_gate(ctx, spts_argument(dst, 1) == 1, gate, up, nullptr, d_low, rows);

    ggml_cuda_pool_alloc<float> out(ctx.pool(), rank*rows);
    multiply(ctx, v_down.get(), gate, d_low, out.get(), d_low, rank, rows);
    constexpr int each = THREADS/WARP_SIZE;
    row_norms<<<(rows + each - 1)/each, THREADS, 0, ctx.stream()>>>(
        out.get(), factors != nullptr ? (const float *) factors->data : nullptr, (float *) dst->data, rank, rows);
    CUDA_CHECK(cudaGetLastError());
}
