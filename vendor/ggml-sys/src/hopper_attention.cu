// Causal attention for prompts on Hopper, at the pace of its tensor cores (wgmma) and copy engine (TMA).
//
// One block of threads per multiprocessor lives for the whole launch and takes tiles of queries of one head, the
// longest first. One warpgroup loads: a thread brings in the keys and queries, another the values, through rings of
// shared memory. The other warpgroups multiply, 64 queries each, and overlap in two ways:
//
// - Within a warpgroup, the scores of a block of keys are computed before the values of the previous block, and the
//   softmax of the one runs during the product of the other. At the end of a tile, the queries and first scores of
//   the next one go the same way.
// - Between warpgroups, turns of issuing products keep one in its softmax while another has the tensor cores.
//
// The scores' maximum would hold up the exponentials. It is instead found alongside them: they use the maximum so
// far, and only when a row outgrows it by more than MAX_LAG (rare after a tile's first block) are they done again.

#include "hopper_attention.h"
#include "blocks.h"

#include <cuda.h> // types only: libcuda is not linked
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma nv_diag_suppress 177 // declared but never referenced: other architectures get a stub
#endif

namespace {

constexpr int WARPGROUP  = 128;
constexpr int GROUP_ROWS = 64; // queries of one consumer warpgroup: the M of wgmma
constexpr int STAGES     = 2;  // blocks of keys, and of values, in flight

// Matrices in shared memory are panels: rows of 128 bytes (64 numbers), whose eight 16-byte chunks are permuted by
// the row's number modulo 8, as TMA writes them and wgmma reads them.
constexpr int PANEL_BYTES = 128;
constexpr int PANEL       = PANEL_BYTES / sizeof(half);
constexpr int ATOM        = 8 * PANEL_BYTES; // the permutation's period; panels are aligned to it

constexpr float LOG2_E = 1.44269504088896340736f; // the softmax runs in base 2

template <int HEAD_DIM_, int GROUPS_, int KEYS_> struct shape {
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr int GROUPS   = GROUPS_; // consumer warpgroups
    static constexpr int KEYS     = KEYS_;   // of a block

    static constexpr int ROWS    = GROUPS * GROUP_ROWS; // queries of a tile
    static constexpr int THREADS = (GROUPS + 1) * WARPGROUP;
    static constexpr int PANELS  = HEAD_DIM / PANEL;

    // A consumer thread's part of a warpgroup's matrices, in registers.
    static constexpr int SCORES = KEYS / 2;
    static constexpr int PACKED = KEYS / 4; // probabilities, two in one
    static constexpr int OUTPUT = HEAD_DIM / 2;

    static constexpr int KV_BYTES      = KEYS * HEAD_DIM * sizeof(half);
    static constexpr int Q_BYTES       = ROWS * HEAD_DIM * sizeof(half);
    static constexpr int STAGING_BYTES = ROWS * HEAD_DIM * sizeof(float); // the next queries, still F32

    static constexpr int K_AT       = 0;
    static constexpr int V_AT       = K_AT + STAGES * KV_BYTES;
    static constexpr int Q_AT       = V_AT + STAGES * KV_BYTES;
    static constexpr int STAGING_AT = Q_AT + Q_BYTES;
    static constexpr int SHARED     = STAGING_AT + STAGING_BYTES + ATOM; // ATOM: room to align the start

    // Threads start with equal shares of the 64K registers; the producers then hand most of theirs over.
    static_assert(GROUPS == 2 || GROUPS == 3, "the shares below");
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 24 : 32;
    static constexpr int CONSUMER_REGISTERS = GROUPS == 2 ? 240 : 160;

    static_assert(KV_BYTES % ATOM == 0 && Q_BYTES % ATOM == 0, "alignment of panels");
};

// As many keys as registers hold; where heads are narrow, a third warpgroup serves the tensor cores better than that.
using shape_128 = shape<128, 2, 128>;
using shape_64  = shape<64, 3, 96>;

// Where lists say which keys are read, tiles are as large as their blocks.
using listed_128 = shape_128;
using listed_64  = shape<64, 2, 128>;
static_assert(listed_128::ROWS == SPTS_BLOCK && listed_128::KEYS == SPTS_BLOCK, "blocks of heads of 128");
static_assert(listed_64::ROWS == SPTS_BLOCK && listed_64::KEYS == SPTS_BLOCK, "blocks of heads of 64");
static_assert(SPTS_BLOCKS_BEHIND >= 2, "only these are masked");

struct problem {
    void *  out;
    size_t  out_row_stride;
    size_t  out_head_stride;
    int     n_q;
    int     n_head;
    int     heads_per_kv;
    int     n_visible; // keys that the last query sees
    int     first;
    int     n_tiles;   // of each head
    int     n_items;   // tiles of all heads
    float   q_scale;   // in base 2
    bool    out_is_bf16;

    const int32_t * lists; // or null
    size_t          list_stride;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WARP = 32;

// How far, in powers of 2, a row's maximum may grow before its sums are rescaled. P reaches 256, harmless in F16.
constexpr float MAX_LAG = 8.0f;

// Below every finite score, yet finite: in a row that sees no key of a block yet, exp2(-inf - NO_MAX) is 0, not NaN.
constexpr float NO_MAX = -1e30f;

// --- Instructions ------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void * p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t & barrier, const uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t & barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives, and keeps the phase open until so many bytes have come.
__device__ __forceinline__ void barrier_expect(uint64_t & barrier, const uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t & barrier, const uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}" : "=r"(done) : "r"(shared_address(&barrier)), "r"(parity) : "memory");
    } while (done == 0);
}

__device__ __forceinline__ void tensor_prefetch(const CUtensorMap & map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// What lies beyond the tensor arrives as zeros, and counts.
__device__ __forceinline__ void tensor_load(
        const uint32_t to, const CUtensorMap & map, uint64_t & barrier, const int column, const int row, const int head) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(row), "r"(head) : "memory");
}

__device__ __forceinline__ void named_sync(const int id, const int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(const int id, const int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `PENDING` of the committed groups go on.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The compiler does not know that a wgmma goes on after its instruction. Nothing that uses these registers moves
// across this point.
template <int N> __device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        asm volatile("" : "+f"(x[i])::"memory");
    }
}

template <int N> __device__ __forceinline__ void pin(uint32_t (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        asm volatile("" : "+r"(x[i])::"memory");
    }
}

#define OPERANDS_4(x, i)  "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define OPERANDS_16(x, i) OPERANDS_4(x, i), OPERANDS_4(x, i + 4), OPERANDS_4(x, i + 8), OPERANDS_4(x, i + 12)
#define OPERANDS_32(x)    OPERANDS_16(x, 0), OPERANDS_16(x, 16)
#define OPERANDS_48(x)    OPERANDS_32(x), OPERANDS_16(x, 32)
#define OPERANDS_64(x)    OPERANDS_48(x), OPERANDS_16(x, 48)

#define NAMES_32                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// s (64 rows) = or += A (64 x 16) * B^T, both in shared memory with their 16 columns side by side.
__device__ __forceinline__ void wgmma_scores(float (&s)[64], const uint64_t a, const uint64_t b, const bool add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n"
                 "}" : OPERANDS_64(s) : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

__device__ __forceinline__ void wgmma_scores(float (&s)[48], const uint64_t a, const uint64_t b, const bool add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %50, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" NAMES_48 "}, %48, %49, p, 1, 1, 0, 0;\n"
                 "}" : OPERANDS_48(s) : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// o (64 rows) += A (64 x 16, registers) * B (16 rows, in shared memory with the columns of a row side by side).
__device__ __forceinline__ void wgmma_values(float (&o)[64], const uint32_t * a, const uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NAMES_64 "}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : OPERANDS_64(o) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_values(float (&o)[32], const uint32_t * a, const uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NAMES_32 "}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : OPERANDS_32(o) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef OPERANDS_4
#undef OPERANDS_16
#undef OPERANDS_32
#undef OPERANDS_48
#undef OPERANDS_64
#undef NAMES_32
#undef NAMES_48
#undef NAMES_64

// How wgmma finds a matrix. `panel_stride` matters where it takes several panels at once (the values); through the
// panels of queries and keys it is led by address.
__device__ __forceinline__ uint64_t descriptor(const uint32_t address, const uint32_t panel_stride) {
    constexpr uint64_t permuted_128 = 1ull << 62;
    return permuted_128 | static_cast<uint64_t>(ATOM >> 4) << 32 | static_cast<uint64_t>(panel_stride >> 4) << 16 |
           (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ uint64_t advanced(const uint64_t descriptor, const int bytes) {
    return descriptor + (bytes >> 4);
}

__device__ __forceinline__ float exp2_fast(const float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack(const float low, const float high) {
    const half2 h = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t &>(h);
}

// --- Work --------------------------------------------------------------------------------------------------------

struct item {
    int head;
    int row;    // its first query
    int blocks; // of keys, that it reads
    int unread; // of those that its last query sees
    const int32_t * list; // of the blocks that it reads; null for all
};

// The item of this block of threads in a round; false after the last. Heads that share keys are neighbours, and so
// meet in the L2 cache. Items get shorter; every second round deals them in reverse, to even out the sums.
template <class S> __device__ __forceinline__ bool find_item(item & it, const problem & p, const int round) {
    const int workers = static_cast<int>(gridDim.x);
    const int worker  = static_cast<int>(blockIdx.x);
    const int index   = round * workers + (round % 2 == 0 ? worker : workers - 1 - worker);
    if (index >= p.n_items) {
        return false;
    }
    const int tile = p.n_tiles - 1 - index / p.n_head;
    it.head        = index % p.n_head;
    it.row         = tile * S::ROWS;
    const int last = min(it.row + S::ROWS, p.n_q) - 1;
    it.blocks      = (min(p.first + last + 1, p.n_visible) + S::KEYS - 1) / S::KEYS;
    it.unread      = 0;
    it.list        = nullptr;
    if (p.lists != nullptr) {
        const int32_t * list = p.lists + (static_cast<size_t>(it.head) * p.n_tiles + tile) * p.list_stride;
        it.list              = list + 1;
        it.unread            = it.blocks - list[0];
        it.blocks            = list[0];
    }
    return true;
}

// The number of the i-th block that an item reads.
__device__ __forceinline__ int block_of(const item & it, const int i) {
    return it.list == nullptr ? i : it.list[i];
}

struct barriers {
    uint64_t k_full[STAGES], k_empty[STAGES];
    uint64_t v_full[STAGES], v_empty[STAGES];
    uint64_t q_full, q_empty; // the staging area

    __device__ __forceinline__ void init(const int consumer_warps) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(k_full[i], 1);
            barrier_init(v_full[i], 1);
            barrier_init(k_empty[i], consumer_warps);
            barrier_init(v_empty[i], consumer_warps);
        }
        barrier_init(q_full, 1);
        barrier_init(q_empty, consumer_warps);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); // the copy engine sees them
    }
};

// A place in a ring of stages. Consumers wait for `phase`; the first round of producers need not wait.
struct place {
    int      stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void advance() {
        stage = (stage + 1) % STAGES;
        phase ^= stage == 0;
    }
};

template <class S> __device__ __forceinline__ void load_block(
        const uint32_t to, const CUtensorMap & map, uint64_t & full, const int block, const int head) {
    barrier_expect(full, S::KV_BYTES);
#pragma unroll
    for (int panel = 0; panel < S::PANELS; ++panel) {
        tensor_load(to + panel * S::KEYS * PANEL_BYTES, map, full, panel * PANEL, block * S::KEYS, head);
    }
}

// Keys go from the last to the first: the masked ones come first, and the rest of the loop is alike for all tiles.
template <class S> __device__ __forceinline__ void produce_queries_and_keys(
        const problem & p, const uint32_t shared, barriers & b, const CUtensorMap & q_map, const CUtensorMap & k_map) {
    tensor_prefetch(q_map);
    tensor_prefetch(k_map);
    place    k;
    uint32_t q_phase = 0;
    item     it;
    for (int round = 0; find_item<S>(it, p, round); ++round) {
        barrier_wait(b.q_empty, q_phase ^ 1);
        q_phase ^= 1;
        barrier_expect(b.q_full, S::STAGING_BYTES);
        tensor_load(shared + S::STAGING_AT, q_map, b.q_full, 0, it.row, it.head);
        const int kv_head = it.head / p.heads_per_kv;
        for (int block = it.blocks - 1; block >= 0; --block) {
            barrier_wait(b.k_empty[k.stage], k.phase ^ 1);
            load_block<S>(shared + S::K_AT + k.stage * S::KV_BYTES, k_map, b.k_full[k.stage], block_of(it, block), kv_head);
            k.advance();
        }
    }
}

template <class S> __device__ __forceinline__ void produce_values(
        const problem & p, const uint32_t shared, barriers & b, const CUtensorMap & v_map) {
    tensor_prefetch(v_map);
    place v;
    item  it;
    for (int round = 0; find_item<S>(it, p, round); ++round) {
        const int kv_head = it.head / p.heads_per_kv;
        for (int block = it.blocks - 1; block >= 0; --block) {
            barrier_wait(b.v_empty[v.stage], v.phase ^ 1);
            load_block<S>(shared + S::V_AT + v.stage * S::KV_BYTES, v_map, b.v_full[v.stage], block_of(it, block), kv_head);
            v.advance();
        }
    }
}

// --- Arithmetic of a consumer warpgroup --------------------------------------------------------------------------
//
// A thread's accumulators, of scores and output alike, belong to two rows, 8 apart: entries 4i and 4i+1 to the first,
// 4i+2 and 4i+3 to the second, in columns 8i + 2 * (lane % 4) and the next. Packed in pairs, the probabilities have
// the layout that wgmma wants of a left operand.

// The warpgroup's queries, as they came, to scaled F16 panels.
template <class S> __device__ __forceinline__ void convert_queries(
        unsigned char * panels, const unsigned char * staging, const int group, const float scale) {
    constexpr int LANES_PER_ROW = S::HEAD_DIM / 4;
    constexpr int ROWS_AT_ONCE  = WARPGROUP / LANES_PER_ROW;
    const int thread = threadIdx.x % WARPGROUP;
    const int column = thread % LANES_PER_ROW * 4;
    const int panel  = column / PANEL;
    const int chunk  = column % PANEL / 8;
#pragma unroll
    for (int i = 0; i < GROUP_ROWS / ROWS_AT_ONCE; ++i) {
        const int    row = group * GROUP_ROWS + i * ROWS_AT_ONCE + thread / LANES_PER_ROW;
        const float4 x   = *reinterpret_cast<const float4 *>(staging + (row * S::HEAD_DIM + column) * sizeof(float));
        const uint2  y   = make_uint2(pack(x.x * scale, x.y * scale), pack(x.z * scale, x.w * scale));
        const int    at  = (panel * S::ROWS + row) * PANEL_BYTES + (chunk ^ row % 8) * 16 + column % 8 * sizeof(half);
        *reinterpret_cast<uint2 *>(panels + at) = y;
    }
}

template <class S> __device__ __forceinline__ void start_scores(
        float (&s)[S::SCORES], const uint64_t q, const uint64_t k) {
    wgmma_fence();
#pragma unroll
    for (int column = 0; column < S::HEAD_DIM; column += 16) {
        const int panel  = column / PANEL;
        const int within = column % PANEL * sizeof(half);
        wgmma_scores(s, advanced(q, panel * S::ROWS * PANEL_BYTES + within),
                     advanced(k, panel * S::KEYS * PANEL_BYTES + within), column > 0);
    }
    wgmma_commit();
}

template <class S> __device__ __forceinline__ void start_values(
        float (&o)[S::OUTPUT], const uint32_t (&probabilities)[S::PACKED], const uint64_t v) {
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < S::KEYS; key += 16) {
        wgmma_values(o, &probabilities[key / 4], advanced(v, key * PANEL_BYTES));
    }
    wgmma_commit();
}

// Removes the columns after each row's limit.
template <int N> __device__ __forceinline__ void mask(float (&s)[N], const int limit_0, const int limit_1) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int column = i / 4 * 8 + i % 2;
        if (column > (i % 4 < 2 ? limit_0 : limit_1)) {
            s[i] = -INFINITY;
        }
    }
}

// The softmax of a thread's two rows, so far.
struct softmax {
    float maximum[2] = {NO_MAX, NO_MAX}; // or up to MAX_LAG less
    float sum[2]     = {0.0f, 0.0f};     // of this thread's columns
    float factor[2];                     // by which sums shrank when the maximum last grew

    template <int N> __device__ __forceinline__ void first(uint32_t (&probabilities)[N / 2], const float (&s)[N]) {
        float top[2], next[2];
        largest(top, s);
        grow(top);
        exponentials(probabilities, next, s);
        sum[0] = next[0];
        sum[1] = next[1];
    }

    // True: what was summed up with earlier probabilities must be multiplied by `factor`.
    template <int N> __device__ __forceinline__ bool update(uint32_t (&probabilities)[N / 2], const float (&s)[N]) {
        float top[2], next[2];
        exponentials(probabilities, next, s);
        largest(top, s);
        pin(probabilities); // or the compiler would put them off until the maximum is known
        const bool grown = __any_sync(~0u, top[0] > maximum[0] + MAX_LAG || top[1] > maximum[1] + MAX_LAG);
        if (grown) {
            grow(top);
            exponentials(probabilities, next, s);
        }
        sum[0] = next[0];
        sum[1] = next[1];
        return grown;
    }

    // `next`: the sums with these.
    template <int N> __device__ __forceinline__ void exponentials(
            uint32_t (&probabilities)[N / 2], float (&next)[2], const float (&s)[N]) const {
        float even[2] = {sum[0], sum[1]};
        float odd[2]  = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const int   r = i % 2;
            const float x = exp2_fast(s[2 * i] - maximum[r]);
            const float y = exp2_fast(s[2 * i + 1] - maximum[r]);
            even[r] += x;
            odd[r] += y;
            probabilities[i] = pack(x, y);
        }
        next[0] = even[0] + odd[0];
        next[1] = even[1] + odd[1];
    }

    template <int N> static __device__ __forceinline__ void largest(float (&top)[2], const float (&s)[N]) {
        float part[2][4]; // several, as each waits for itself
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float x = fmaxf(s[2 * i], s[2 * i + 1]);
            float & y     = part[i % 2][i / 2 % 4];
            y             = i < 8 ? x : fmaxf(y, x);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = fmaxf(fmaxf(part[r][0], part[r][1]), fmaxf(part[r][2], part[r][3]));
        }
    }

    // Four lanes share a row, and must agree.
    __device__ __forceinline__ void grow(float (&top)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            const float next = fmaxf(maximum[r], top[r]);
            factor[r]        = exp2_fast(maximum[r] - next);
            maximum[r]       = next;
            sum[r] *= factor[r];
        }
    }

    template <int N> __device__ __forceinline__ void rescale(float (&o)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            o[i] *= factor[i % 4 / 2];
        }
    }
};

template <class S> __device__ __forceinline__ void store(
        const problem & p, const item & it, const int row, const float (&o)[S::OUTPUT], const softmax & rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = rows.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float scale = __fdividef(1.0f, sum);
        if (row + 8 * r < p.n_q) {
            const size_t at = (row + 8 * r) * p.out_row_stride + it.head * p.out_head_stride + threadIdx.x % 4 * 2;
            if (p.out_is_bf16) {
                auto * to = static_cast<__nv_bfloat16 *>(p.out) + at;
#pragma unroll
                for (int i = 0; i < S::OUTPUT; i += 4) {
                    *reinterpret_cast<__nv_bfloat162 *>(to + 2 * i) =
                        __floats2bfloat162_rn(o[i + 2 * r] * scale, o[i + 2 * r + 1] * scale);
                }
            } else {
                auto * to = static_cast<float *>(p.out) + at;
#pragma unroll
                for (int i = 0; i < S::OUTPUT; i += 4) {
                    *reinterpret_cast<float2 *>(to + 2 * i) = make_float2(o[i + 2 * r] * scale, o[i + 2 * r + 1] * scale);
                }
            }
        }
    }
}

__device__ __forceinline__ void release(uint64_t & barrier) {
    if (threadIdx.x % WARP == 0) {
        barrier_arrive(barrier);
    }
}

template <class S> __device__ __forceinline__ void consume(
        const problem & p, unsigned char * const shared_memory, barriers & b, const int group) {
    // Named barriers (0 is __syncthreads): a warpgroup's turn to issue products, and its threads among themselves.
    constexpr int TURN     = 1;
    constexpr int TOGETHER = TURN + S::GROUPS;

    const int thread    = threadIdx.x % WARPGROUP;
    const int group_row = thread / WARP * 16 + thread % WARP / 4;

    const uint32_t shared   = shared_address(shared_memory);
    const uint64_t q_matrix = descriptor(shared + S::Q_AT + group * GROUP_ROWS * PANEL_BYTES, 0);
    const uint64_t k_matrix = descriptor(shared + S::K_AT, 0);
    const uint64_t v_matrix = descriptor(shared + S::V_AT, S::KEYS * PANEL_BYTES);

    float    s[S::SCORES];
    float    o[S::OUTPUT];
    uint32_t probabilities[S::PACKED];
    place    k, v;
    uint32_t q_phase = 0;

    const auto wait_turn = [&] { named_sync(TURN + group, 2 * WARPGROUP); };
    const auto pass_turn = [&] { named_arrive(TURN + (group + 1) % S::GROUPS, 2 * WARPGROUP); };
    const auto k_block   = [&] { return advanced(k_matrix, k.stage * S::KV_BYTES); };
    const auto v_block   = [&] { return advanced(v_matrix, v.stage * S::KV_BYTES); };

    const auto start_item = [&] {
        barrier_wait(b.q_full, q_phase);
        q_phase ^= 1;
        named_sync(TOGETHER + group, WARPGROUP); // all have done with the last queries
        convert_queries<S>(shared_memory + S::Q_AT, shared_memory + S::STAGING_AT, group, p.q_scale);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // for wgmma to see them
        named_sync(TOGETHER + group, WARPGROUP);
        release(b.q_empty);
        barrier_wait(b.k_full[k.stage], k.phase);
        pin(s);
        start_scores<S>(s, q_matrix, k_block());
    };

    if (group == S::GROUPS - 1) {
        pass_turn(); // to warpgroup 0, the first
    }
    item it;
    bool more = find_item<S>(it, p, 0);
    start_item();
    wgmma_wait<0>();
    pin(s);
    for (int round = 1; more; ++round) {
        // Here the first scores are there, and no product goes on.
        release(b.k_empty[k.stage]);
        k.advance();

        const int  row         = it.row + group * GROUP_ROWS + group_row;
        const int  last        = p.n_visible - 1;
        const int  seen_by_all = min(p.first + it.row + group * GROUP_ROWS, last); // the last such key
        // Of the blocks that are not read none is behind one that needs a mask, so that these are counted from the last one.
        const int  unread      = it.unread;
        const auto mask_block  = [&](const int i) {
            const int block = i + unread;
            if ((block + 1) * S::KEYS - 1 > seen_by_all) {
                const int start = block * S::KEYS + thread % 4 * 2;
                mask(s, min(p.first + row, last) - start, min(p.first + row + 8, last) - start);
            }
        };

        softmax rows;
        mask_block(it.blocks - 1);
        rows.first(probabilities, s);
#pragma unroll
        for (int i = 0; i < S::OUTPUT; ++i) {
            o[i] = 0.0f;
        }

        if (it.blocks > 1) {
            barrier_wait(b.k_full[k.stage], k.phase);
        }
        for (int block = it.blocks - 2; block >= 0; --block) {
            wait_turn();
            pin(s);
            pin(o);
            pin(probabilities);
            start_scores<S>(s, q_matrix, k_block());
            barrier_wait(b.v_full[v.stage], v.phase);
            start_values<S>(o, probabilities, v_block());
            pass_turn();

            wgmma_wait<1>();
            pin(s);
            release(b.k_empty[k.stage]);
            k.advance();
            mask_block(block);
            uint32_t next[S::PACKED];
            const bool grown = rows.update(next, s);
            pin(next);
            if (block > 0) { // waited for here, this also keeps the softmax from sinking below the next line
                barrier_wait(b.k_full[k.stage], k.phase);
            }
            wgmma_wait<0>();
            pin(o);
            pin(probabilities);
            release(b.v_empty[v.stage]);
            v.advance();
#pragma unroll
            for (int i = 0; i < S::PACKED; ++i) {
                // A true copy: `next` in the registers of `probabilities` would have to wait for their product.
                asm volatile("mov.b32 %0, %1;" : "=r"(probabilities[i]) : "r"(next[i]));
            }
            if (grown) {
                rows.rescale(o);
            }
        }

        barrier_wait(b.v_full[v.stage], v.phase);
        pin(o);
        pin(probabilities);
        start_values<S>(o, probabilities, v_block());

        // Both branches end with all products done: one that crosses the loop's end would make the compiler wait after
        // every single one.
        const item done = it;
        more = find_item<S>(it, p, round);
        if (more) {
            start_item();
            wgmma_wait<1>();
            pin(o);
            pin(probabilities);
            release(b.v_empty[v.stage]);
            v.advance();
            store<S>(p, done, row, o, rows);
            wgmma_wait<0>();
            pin(s);
        } else {
            wgmma_wait<0>();
            pin(o);
            store<S>(p, done, row, o, rows);
        }
    }
    if (group == 0) {
        wait_turn(); // the one that nobody took
    }
}

#endif // __CUDA_ARCH_FEAT_SM90_ALL

template <class S> __global__ void __launch_bounds__(S::THREADS, 1) attention(
        const problem p, const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
        const __grid_constant__ CUtensorMap v_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char unaligned[];
    __shared__ barriers b;

    unsigned char * const shared_memory = unaligned + (-shared_address(unaligned) & (ATOM - 1));
    const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / WARPGROUP, 0); // for the compiler: uniform

    if (threadIdx.x == 0) {
        b.init(S::GROUPS * WARPGROUP / WARP);
    }
    __syncthreads();

    if (group == S::GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::PRODUCER_REGISTERS));
        const int thread = threadIdx.x % WARPGROUP;
        if (thread == 0) {
            produce_queries_and_keys<S>(p, shared_address(shared_memory), b, q_map, k_map);
        } else if (thread == WARP) {
            produce_values<S>(p, shared_address(shared_memory), b, v_map);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::CONSUMER_REGISTERS));
        consume<S>(p, shared_memory, b, group);
    }
#else
    __trap(); // is_built() keeps launches away
#endif
}

// --- Host --------------------------------------------------------------------------------------------------------

// Whether the code that the current device would run is the real one, and not the stub of an architecture other than
// sm_90a: only the real one has variables in shared memory.
template <class S> bool is_built() {
    static const bool built = [] {
        cudaFuncAttributes attributes;
        if (cudaFuncGetAttributes(&attributes, attention<S>) != cudaSuccess) {
            cudaGetLastError(); // not the caller's
            return false;
        }
        return attributes.sharedSizeBytes > 0;
    }();
    return built;
}

using encode_function = decltype(&cuTensorMapEncodeTiled);

// Null if the driver has none.
encode_function tensor_map_encoder() {
    static const encode_function encoder = [] {
        void *                          found  = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
        constexpr const char *          name   = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
        const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
        if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
            cudaGetLastError(); // not the caller's
            found = nullptr;
        }
        return reinterpret_cast<encode_function>(found);
    }();
    return encoder;
}

struct tensor {
    const void * data;
    int          columns, rows, heads;
    size_t       row_stride, head_stride; // in bytes
};

bool encode(CUtensorMap & map, const tensor & t, const CUtensorMapDataType type, const int box_columns,
            const int box_rows, const CUtensorMapSwizzle swizzle) {
    const auto       size       = [](const int n) { return static_cast<cuuint32_t>(n); };
    const cuuint64_t extents[3] = {size(t.columns), size(t.rows), size(t.heads)};
    const cuuint64_t strides[2] = {t.row_stride, t.head_stride};
    const cuuint32_t box[3]     = {size(box_columns), size(box_rows), 1};
    const cuuint32_t steps[3]   = {1, 1, 1};
    return tensor_map_encoder()(&map, type, 3, const_cast<void *>(t.data), extents, strides, box, steps,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class S> cudaError_t launch(const hopper_attention_args & a, const cudaStream_t stream) {
    problem p;
    p.out             = a.out;
    p.out_is_bf16     = a.out_is_bf16;
    p.out_row_stride  = a.out_row_stride;
    p.out_head_stride = a.out_head_stride;
    p.n_q             = a.n_q;
    p.n_head          = a.n_head;
    p.heads_per_kv    = a.n_head / a.n_head_kv;
    p.n_visible       = static_cast<int>(std::min<int64_t>(a.n_kv, int64_t{a.first} + a.n_q));
    p.first           = a.first;
    p.n_tiles         = (a.n_q + S::ROWS - 1) / S::ROWS;
    p.n_items         = p.n_tiles * a.n_head;
    p.q_scale         = a.scale * LOG2_E;
    p.lists           = a.lists;
    p.list_stride     = a.list_stride;

    // Keys and values end where the last query's sight does: what follows them in a cache may be anything, even NaN,
    // which no mask keeps out of a product with 0.
    constexpr size_t F16 = sizeof(half);
    constexpr size_t F32 = sizeof(float);
    const tensor q = {a.q, S::HEAD_DIM, a.n_q, a.n_head, a.q_row_stride * F32, a.q_head_stride * F32};
    const tensor k = {a.k, S::HEAD_DIM, p.n_visible, a.n_head_kv, a.k_row_stride * F16, a.k_head_stride * F16};
    const tensor v = {a.v, S::HEAD_DIM, p.n_visible, a.n_head_kv, a.v_row_stride * F16, a.v_head_stride * F16};
    CUtensorMap q_map, k_map, v_map;
    if (!encode(q_map, q, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, S::HEAD_DIM, S::ROWS, CU_TENSOR_MAP_SWIZZLE_NONE) ||
        !encode(k_map, k, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, PANEL, S::KEYS, CU_TENSOR_MAP_SWIZZLE_128B) ||
        !encode(v_map, v, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, PANEL, S::KEYS, CU_TENSOR_MAP_SWIZZLE_128B)) {
        return cudaErrorInvalidValue;
    }

    int         device          = 0;
    int         multiprocessors = 0;
    cudaError_t error           = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(attention<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED);
    }
    if (error != cudaSuccess) {
        return error;
    }
    attention<S><<<std::min(p.n_items, multiprocessors), S::THREADS, S::SHARED, stream>>>(p, q_map, k_map, v_map);
    return cudaGetLastError();
}

bool aligned(const void * p, const size_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// TMA wants addresses and strides in steps of 16 bytes, and strides below 2^40.
template <class T> bool tma_takes(const T * data, const size_t row_stride, const size_t head_stride) {
    constexpr size_t STEP   = 16;
    constexpr size_t LIMIT  = (size_t{1} << 40) / sizeof(T);
    const auto       stride = [](const size_t n) { return n < LIMIT && n * sizeof(T) % STEP == 0; };
    return aligned(data, STEP) && stride(row_stride) && stride(head_stride);
}

} // namespace

bool hopper_attention_supported(const hopper_attention_args & a, const int cc) {
    if (cc != 900) {
        return false;
    }
    if (a.n_q < 1 || a.n_kv < 1 || a.first < 0 || a.n_head_kv < 1 || a.n_head < 1 || a.n_head % a.n_head_kv != 0) {
        return false;
    }
    // Keys are counted in int, the last block's to its end.
    if (int64_t{a.first} + a.n_q > std::numeric_limits<int>::max() - shape_128::KEYS) {
        return false;
    }
    // Results are stored two by two.
    if (!tma_takes(a.q, a.q_row_stride, a.q_head_stride) || !tma_takes(a.k, a.k_row_stride, a.k_head_stride) ||
        !tma_takes(a.v, a.v_row_stride, a.v_head_stride) || !aligned(a.out, sizeof(float2)) ||
        a.out_row_stride % 2 != 0 || a.out_head_stride % 2 != 0) {
        return false;
    }
    const bool built = a.head_dim == shape_128::HEAD_DIM ? is_built<shape_128>()
                     : a.head_dim == shape_64::HEAD_DIM  ? is_built<shape_64>() && is_built<listed_64>()
                                                         : false;
    return built && tensor_map_encoder() != nullptr;
}

cudaError_t hopper_attention(const hopper_attention_args & a, const cudaStream_t stream) {
    if (!hopper_attention_supported(a, 900)) {
        return cudaErrorInvalidValue;
    }
    if (a.head_dim == shape_128::HEAD_DIM) {
        return launch<shape_128>(a, stream);
    }
    return a.lists != nullptr ? launch<listed_64>(a, stream) : launch<shape_64>(a, stream);
}
