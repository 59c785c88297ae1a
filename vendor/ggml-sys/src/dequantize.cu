#include "dequantize.h"
#include "convert.cuh"

namespace {

// ggml's kernels for these types give a block of 256 weights to a block of 32 or 64 threads, which reach less than half of
// an H100's memory bandwidth. Here a warp takes several blocks, a thread eight neighbouring weights of each.
constexpr int THREADS = 256;
constexpr int EACH    = 4;
constexpr int VALUES  = QK_K/WARP_SIZE;

struct alignas(16) Bf16x8 {
    nv_bfloat162 pair[4];
};
static_assert(sizeof(Bf16x8) == VALUES*sizeof(nv_bfloat16), "what a thread writes");

// Eight weights of one block: scale*q - min.
struct Eight {
    float q[VALUES];
    float scale, min;
};

__device__ Eight load(const block_q4_K & block, const int lane) {
    const int group = lane/4; // of 32 weights, with a scale and a minimum in 6 bits each
    const float2 dm = __half22float2(block.dm);
    const uint8_t * s = block.scales;
    int scale, min;
    if (group < 4) {
        scale = s[group] & 63;
        min   = s[group + 4] & 63;
    } else {
        scale = (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
        min   = (s[group + 4] >> 4) | (s[group] >> 6) << 4;
    }
    // Two groups share 32 bytes: one has the low halves.
    const uint2 packed = *(const uint2 *) (block.qs + 32*(group/2) + VALUES*(lane % 4));
    const int   shift  = 4*(group % 2);
    Eight out;
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        out.q[i] = (((i < 4 ? packed.x : packed.y) >> (8*(i % 4))) >> shift) & 15;
    }
    out.scale = dm.x*scale;
    out.min   = dm.y*min;
    return out;
}

__device__ Eight load(const block_q6_K & block, const int lane) {
    // A half of 128 weights is four quarters of 32, whose low four bits lie in two runs of 32 bytes and high two bits in one.
    const int half = lane/16, quarter = lane/4 % 4, at = VALUES*(lane % 4);
    const uint16_t * low  = (const uint16_t *) (block.ql + 64*half + 32*(quarter % 2) + at);
    const uint16_t * high = (const uint16_t *) (block.qh + 32*half + at);
    Eight out;
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        const int byte = 8*(i % 2);
        const int l = low[i/2] >> (byte + 4*(quarter/2)) & 15;
        const int h = high[i/2] >> (byte + 2*quarter) & 3;
        out.q[i] = (l | h << 4) - 32;
    }
    out.scale = __half2float(block.d)*block.scales[8*half + 2*quarter + at/16];
    out.min   = 0.0f;
    return out;
}

// Eight factors, or ones.
template <bool scaled> struct EightFactors {
    float at[8];

    __device__ EightFactors(const ColumnFactors & factors, const int64_t i) {
        if (scaled) {
            const float4 * from = (const float4 *) (factors.values + i % factors.n_in);
            const float4 low = from[0], high = from[1];
            at[0] = low.x;  at[1] = low.y;  at[2] = low.z;  at[3] = low.w;
            at[4] = high.x; at[5] = high.y; at[6] = high.z; at[7] = high.w;
        }
    }

    __device__ float operator()(const float x, const int i) const { return scaled ? x*at[i] : x; }
};

template <bool scaled, typename Block> __global__ void dequantize(const Block * from, Bf16x8 * to, const ColumnFactors factors,
                                                                  const int64_t n_blocks) {
    const int     lane  = threadIdx.x % WARP_SIZE;
    const int64_t first = (int64_t(blockIdx.x)*(THREADS/WARP_SIZE) + threadIdx.x/WARP_SIZE)*EACH;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        if (first + k < n_blocks) {
            const Eight   x = load(from[first + k], lane);
            const int64_t at = (first + k)*WARP_SIZE + lane;
            const EightFactors<scaled> times(factors, at*VALUES);
            Bf16x8 out;
#pragma unroll
            for (int i = 0; i < VALUES/2; i++) {
                out.pair[i] = __floats2bfloat162_rn(times(x.scale*x.q[2*i] - x.min, 2*i), times(x.scale*x.q[2*i + 1] - x.min, 2*i + 1));
            }
            to[at] = out;
        }
    }
}

template <typename Block> void launch(const void * from, nv_bfloat16 * to, const int64_t n, const ColumnFactors & factors, cudaStream_t stream) {
    const int64_t     n_blocks  = n/QK_K;
    constexpr int64_t per_block = EACH*THREADS/WARP_SIZE;
    const auto        kernel    = factors.values != nullptr ? dequantize<true, Block> : dequantize<false, Block>;
    kernel<<<(n_blocks + per_block - 1)/per_block, THREADS, 0, stream>>>((const Block *) from, (Bf16x8 *) to, factors, n_blocks);
    CUDA_CHECK(cudaGetLastError());
}

// Eight values a thread; `to` may be `from`.
__global__ void scale_columns(const Bf16x8 * from, Bf16x8 * to, const ColumnFactors factors, const int64_t n) {
    const int64_t at = int64_t(blockIdx.x)*THREADS + threadIdx.x;
    if (at >= n) {
        return;
    }
    const EightFactors<true> times(factors, 8*at);
    Bf16x8 x = from[at];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __bfloat1622float2(x.pair[i]);
        x.pair[i] = __floats2bfloat162_rn(times(pair.x, 2*i), times(pair.y, 2*i + 1));
    }
    to[at] = x;
}

} // namespace

void dequantize_16(const ggml_type type, const void * from, nv_bfloat16 * to, const int64_t n, const ColumnFactors & factors, cudaStream_t stream) {
    GGML_ASSERT(factors.values == nullptr ? type != GGML_TYPE_BF16 : factors.n_in % 8 == 0);
    switch (type) {
        case GGML_TYPE_Q4_K: return launch<block_q4_K>(from, to, n, factors, stream);
        case GGML_TYPE_Q6_K: return launch<block_q6_K>(from, to, n, factors, stream);
        default:             break;
    }
    if (type != GGML_TYPE_BF16) {
        ggml_get_to_bf16_cuda(type)(from, to, n, stream);
        from = to;
    }
    if (factors.values != nullptr) {
        scale_columns<<<(n/8 + THREADS - 1)/THREADS, THREADS, 0, stream>>>((const Bf16x8 *) from, (Bf16x8 *) to, factors, n/8);
        CUDA_CHECK(cudaGetLastError());
    }
}
