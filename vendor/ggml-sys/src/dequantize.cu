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

template <typename Block> __global__ void dequantize(const Block * from, Bf16x8 * to, const int64_t n_blocks) {
    const int     lane  = threadIdx.x % WARP_SIZE;
    const int64_t first = (int64_t(blockIdx.x)*(THREADS/WARP_SIZE) + threadIdx.x/WARP_SIZE)*EACH;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        if (first + k < n_blocks) {
            const Eight x = load(from[first + k], lane);
            Bf16x8 out;
#pragma unroll
            for (int i = 0; i < VALUES/2; i++) {
                out.pair[i] = __floats2bfloat162_rn(x.scale*x.q[2*i] - x.min, x.scale*x.q[2*i + 1] - x.min);
            }
            to[(first + k)*WARP_SIZE + lane] = out;
        }
    }
}

template <typename Block> void launch(const void * from, nv_bfloat16 * to, const int64_t n, cudaStream_t stream) {
    const int64_t     n_blocks  = n/QK_K;
    constexpr int64_t per_block = EACH*THREADS/WARP_SIZE;
    dequantize<<<(n_blocks + per_block - 1)/per_block, THREADS, 0, stream>>>((const Block *) from, (Bf16x8 *) to, n_blocks);
    CUDA_CHECK(cudaGetLastError());
}

} // namespace

void dequantize_16(const ggml_type type, const void * from, nv_bfloat16 * to, const int64_t n, cudaStream_t stream) {
    switch (type) {
        case GGML_TYPE_Q4_K: return launch<block_q4_K>(from, to, n, stream);
        case GGML_TYPE_Q6_K: return launch<block_q6_K>(from, to, n, stream);
        default:             return ggml_get_to_bf16_cuda(type)(from, to, n, stream);
    }
}
