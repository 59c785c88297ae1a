#include "products.h"
#include "spts_ops.h"
#include "unary.cuh"

namespace {

using bf16 = nv_bfloat16;

// A 16-bit copy of a tensor, in the pool until the end of the scope. The stream orders its reuse.
class Bf16 {
  public:
    Bf16(ggml_backend_cuda_context & ctx, const ggml_tensor * t) : copy(ctx.pool(), ggml_nelements(t)) {
        ggml_get_to_bf16_cuda(t->type)(t->data, copy.get(), ggml_nelements(t), ctx.stream());
    }

    const bf16 * get() { return copy.get(); }

  private:
    ggml_cuda_pool_alloc<bf16> copy;
};

// y [n_out, rows] = w [n_in, n_out] x [n_in, rows], summed in F32.
void multiply(ggml_backend_cuda_context & ctx, const bf16 * w, const bf16 * x, void * y, const cudaDataType_t y_type,
              const int64_t n_in, const int64_t n_out, const int64_t rows) {
    const float one = 1.0f, zero = 0.0f;
    CUBLAS_CHECK(cublasGemmEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, n_out, rows, n_in,
        &one, w, CUDA_R_16BF, n_in, x, CUDA_R_16BF, n_in, &zero, y, y_type, n_out,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
}

// Eight values at a time: 16 bytes.
struct alignas(16) Bf16x8 {
    nv_bfloat162 pair[4];
};

template <bool gelu> __device__ float activate(const float x) {
    return gelu ? ggml_cuda_op_gelu_single(x) : x / (1.0f + __expf(-x));
}

// gate = act(gate) * up
template <bool gelu> __global__ void multiply_gate(Bf16x8 * gate, const Bf16x8 * up, const int64_t n) {
    const int64_t i = int64_t(blockIdx.x)*blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    Bf16x8 g = gate[i];
    const Bf16x8 u = up[i];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float2 a = __bfloat1622float2(g.pair[k]);
        const float2 b = __bfloat1622float2(u.pair[k]);
        g.pair[k] = __floats2bfloat162_rn(activate<gelu>(a.x)*b.x, activate<gelu>(a.y)*b.y);
    }
    gate[i] = g;
}

} // namespace

void product(ggml_backend_cuda_context & ctx, const ggml_tensor * w, const ggml_tensor * x, ggml_tensor * dst) {
    Bf16 weights(ctx, w);
    Bf16 rows(ctx, x);
    multiply(ctx, weights.get(), rows.get(), dst->data, CUDA_R_32F, w->ne[0], w->ne[1], x->ne[1]);
}

// Gate and up stay 16 bits wide, as the product behind them wants them: a third of the bytes of F32 in between.
void gated_ffn(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * w_down = dst->src[0]; // [n_ff, n_embd]
    const ggml_tensor * x      = dst->src[1]; // F32 [n_embd, rows]
    const ggml_tensor * w_gate = dst->src[2]; // [n_embd, n_ff]
    const ggml_tensor * w_up   = dst->src[3];
    const int64_t n_embd = x->ne[0], n_ff = w_gate->ne[1], rows = x->ne[1];
    GGML_ASSERT(ggml_is_contiguous(x) && ggml_is_contiguous(dst) && n_ff % 8 == 0);

    ggml_cuda_pool_alloc<bf16> gate(ctx.pool(), n_ff*rows);
    ggml_cuda_pool_alloc<bf16> up(ctx.pool(), n_ff*rows);
    {
        Bf16 input(ctx, x);
        for (const auto & [w, y] : {std::pair(w_gate, gate.get()), std::pair(w_up, up.get())}) {
            Bf16 weights(ctx, w);
            multiply(ctx, weights.get(), input.get(), y, CUDA_R_16BF, n_embd, n_ff, rows);
        }
    }
    const int64_t n = n_ff*rows/8;
    constexpr int threads = 256;
    const auto kernel = spts_argument(dst) == 1 ? multiply_gate<true> : multiply_gate<false>;
    kernel<<<(n + threads - 1)/threads, threads, 0, ctx.stream()>>>((Bf16x8 *) gate.get(), (const Bf16x8 *) up.get(), n);
    CUDA_CHECK(cudaGetLastError());

    Bf16 weights(ctx, w_down);
    multiply(ctx, weights.get(), gate.get(), dst->data, CUDA_R_32F, n_ff, n_embd, rows);
}
