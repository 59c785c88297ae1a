// Causal attention of many queries, with an online softmax over tiles of keys (as FlashAttention), all in F32.
//
// ggml's kernel reads a mask for every head, and packs the same keys again for each head of a group. Here a row of K or V is
// converted once for all queries of its group, 64 at a time, which lie side by side in the lanes of vectors: scores, exponentials
// and sums are then plain vertical operations, keys and values scalars that multiply whole vectors. Who sees which key follows
// from the rows' numbers or positions.
//
// Tiles of keys begin at multiples of their height, and a lane never meets another: a query's result is the same to the last bit
// beside whichever others it is computed.

#include "attention.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH  = 16;
constexpr int ACROSS = 4; // vectors of queries whose sums are held in registers, for each of
#elif defined(__AVX__)
constexpr int WIDTH  = 8;
constexpr int ACROSS = 2;
#else
constexpr int WIDTH  = 4;
constexpr int ACROSS = 2;
#endif
constexpr int DOWN = 4; // so many keys, or features of values

typedef float   vec  __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));

constexpr int LANES   = 64;
constexpr int COLUMNS = LANES / WIDTH;
constexpr int KEYS    = 64;
constexpr int MAX_D   = SPTS_CPU_ATTENTION_MAX_HEAD;

static_assert(COLUMNS % ACROSS == 0, "sums cover all lanes");

// Lower than any score of a query that sees a key, and far from where differences overflow.
constexpr float LOWEST = -1e30f;

struct Scratch {
    alignas(64) vec   queries[MAX_D][COLUMNS]; // times the scale
    alignas(64) vec   out[MAX_D][COLUMNS];
    alignas(64) vec   scores[KEYS][COLUMNS];
    alignas(64) float rows[KEYS * MAX_D]; // of K, then of V
    vec  most[COLUMNS];
    vec  sum[COLUMNS];
    ivec from[COLUMNS]; // first row of K that a lane sees
    ivec to[COLUMNS];   // and the last
};

struct Problem {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const int32_t *     positions; // or null
    const float *       sinks;     // or null
    float *             out;
    int64_t d, n_q, n_head, group;
    int64_t first, window;
    float   scale;
};

inline vec broadcast(float x) {
    return x - vec{};
}

inline vec select(ivec mask, vec a, vec b) {
    return (vec) ((mask & (ivec) a) | (~mask & (ivec) b));
}

// e^x of x <= 0, to about one unit in the last place; 0 below -87, and NaN of NaN.
inline vec exp_of(vec x) {
    const vec magic = broadcast(12582912.0f); // 1.5 * 2^23: its sum with x has the nearest integer in the lowest bits
    const vec n     = (x * 1.44269504f + magic) - magic;
    const vec r     = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = broadcast(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const ivec exponent = __builtin_convertvector(select(n > -128.0f, n, vec{}), ivec);
    const vec  power    = (vec) ((exponent + 127) << 23);
    return select(x < -87.0f, vec{}, p * power);
}

// c[i] (+)= sum over k of a[i * down + k * along] * b[k], for n values of i and n_k of k.
template <int N, bool ADD>
inline void multiply_some(vec (*c)[COLUMNS], const float * a, int64_t down, int64_t along, const vec (*b)[COLUMNS], int64_t n_k) {
    for (int column = 0; column < COLUMNS; column += ACROSS) {
        vec sums[N][ACROSS];
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < ACROSS; j++) {
                sums[i][j] = ADD ? c[i][column + j] : vec{};
            }
        }
        for (int64_t k = 0; k < n_k; k++) {
            vec factors[ACROSS];
            for (int j = 0; j < ACROSS; j++) {
                factors[j] = b[k][column + j];
            }
            for (int i = 0; i < N; i++) {
                const vec x = broadcast(a[i * down + k * along]);
                for (int j = 0; j < ACROSS; j++) {
                    sums[i][j] += x * factors[j];
                }
            }
        }
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < ACROSS; j++) {
                c[i][column + j] = sums[i][j];
            }
        }
    }
}

template <bool ADD>
void multiply(vec (*c)[COLUMNS], const float * a, int64_t down, int64_t along, const vec (*b)[COLUMNS], int64_t n, int64_t n_k) {
    int64_t i = 0;
    for (; i + DOWN <= n; i += DOWN) {
        multiply_some<DOWN, ADD>(c + i, a + i * down, down, along, b, n_k);
    }
    for (; i < n; i++) {
        multiply_some<1, ADD>(c + i, a + i * down, down, along, b, n_k);
    }
}

// Rows start .. start + n of one head, in F32.
void convert(const ggml_tensor * t, int64_t head, int64_t start, int64_t n, float * rows) {
    const int64_t d = t->ne[0];
    const char * from = (const char *) t->data + head * t->nb[2] + start * t->nb[1];
    for (int64_t i = 0; i < n; i++, from += t->nb[1], rows += d) {
        switch (t->type) {
            case GGML_TYPE_F32: memcpy(rows, from, d * sizeof(float)); break;
            case GGML_TYPE_F16: ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) from, rows, d); break;
            default:            ggml_get_type_traits(t->type)->to_float(from, rows, d);
        }
    }
}

// The first row of K that the query of row `last` sees.
int64_t first_seen(const Problem & p, int64_t last) {
    if (p.window == 0) {
        return 0;
    }
    if (!p.positions) {
        return std::max<int64_t>(0, last - p.window + 1);
    }
    const int64_t earliest = p.positions[last] - p.window + 1;
    return std::lower_bound(p.positions, p.positions + last, earliest) - p.positions;
}

// Lanes start .. of the queries of one head of K: the heads of its group, query by query.
void attend(const Problem & p, int64_t head, int64_t start, Scratch & s) {
    const int64_t n_lanes = std::min<int64_t>(LANES, p.n_q * p.group - start);
    int64_t from = INT64_MAX, to = 0;
    int32_t lane_from[LANES], lane_to[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) {
        // Lanes that nobody needs do as the last one does.
        const int64_t index = start + std::min(lane, n_lanes - 1), row = index / p.group;
        const float * q = (const float *) ((const char *) p.q->data + row * p.q->nb[1] + (head * p.group + index % p.group) * p.q->nb[2]);
        for (int64_t i = 0; i < p.d; i++) {
            ((float *) s.queries[i])[lane] = q[i] * p.scale;
        }
        const int64_t last = p.first + row, begin = first_seen(p, last);
        lane_from[lane] = (int32_t) begin;
        lane_to[lane]   = (int32_t) last;
        from = std::min(from, begin);
        to   = std::max(to, last);
    }
    memcpy(s.from, lane_from, sizeof(lane_from));
    memcpy(s.to, lane_to, sizeof(lane_to));
    for (int c = 0; c < COLUMNS; c++) {
        s.most[c] = broadcast(LOWEST);
        s.sum[c]  = vec{};
    }
    memset(s.out, 0, p.d * sizeof(s.out[0]));
    const int64_t all_see_from = *std::max_element(lane_from, lane_from + LANES);
    const int64_t all_see_to   = *std::min_element(lane_to, lane_to + LANES);

    for (int64_t tile = from / KEYS * KEYS; tile <= to; tile += KEYS) {
        const int64_t n = std::min<int64_t>(KEYS, to + 1 - tile);
        convert(p.k, head, tile, n, s.rows);
        multiply<false>(s.scores, s.rows, p.d, 1, s.queries, n, p.d);
        if (tile < all_see_from || tile + n - 1 > all_see_to) {
            for (int64_t i = 0; i < n; i++) {
                const int32_t key = (int32_t) (tile + i);
                for (int c = 0; c < COLUMNS; c++) {
                    s.scores[i][c] = select((s.from[c] <= key) & (s.to[c] >= key), s.scores[i][c], broadcast(-INFINITY));
                }
            }
        }
        bool grows = false;
        vec  shrink[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) {
            vec most = s.most[c];
            for (int64_t i = 0; i < n; i++) {
                most = select(s.scores[i][c] > most, s.scores[i][c], most);
            }
            shrink[c] = exp_of(s.most[c] - most);
            s.most[c] = most;
            vec sum = s.sum[c] * shrink[c];
            for (int64_t i = 0; i < n; i++) {
                const vec weight = exp_of(s.scores[i][c] - most);
                s.scores[i][c] = weight;
                sum += weight;
            }
            s.sum[c] = sum;
            const ivec changed = shrink[c] != 1.0f;
            for (int i = 0; i < WIDTH; i++) {
                grows |= changed[i] != 0;
            }
        }
        if (grows) {
            for (int64_t i = 0; i < p.d; i++) {
                for (int c = 0; c < COLUMNS; c++) {
                    s.out[i][c] *= shrink[c];
                }
            }
        }
        convert(p.v, head, tile, n, s.rows);
        multiply<true>(s.out, s.rows, 1, p.d, s.scores, p.d, n);
    }

    for (int64_t lane = 0; lane < n_lanes; lane++) {
        const int64_t index = start + lane;
        const int64_t q_head = head * p.group + index % p.group;
        float sum = ((const float *) s.sum)[lane];
        if (p.sinks) {
            // In the softmax's denominator alone. That of a score far above all others is infinite, and nothing is left.
            sum += expf(p.sinks[q_head] - ((const float *) s.most)[lane]);
        }
        float * out = p.out + (index / p.group * p.n_head + q_head) * p.d;
        for (int64_t i = 0; i < p.d; i++) {
            out[i] = ((const float *) s.out[i])[lane] / sum;
        }
    }
}

} // namespace

void spts_cpu_attention(ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) ith;
    (void) userdata;
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const auto given = [&](int i) { return dst->src[i] == q ? nullptr : dst->src[i]->data; };
    Problem p;
    p.q         = q;
    p.k         = k;
    p.v         = dst->src[2];
    p.positions = (const int32_t *) given(3);
    p.sinks     = (const float *) given(4);
    p.out       = (float *) dst->data;
    p.d         = q->ne[0];
    p.n_q       = q->ne[1];
    p.n_head    = q->ne[2];
    p.group     = q->ne[2] / k->ne[2];
    p.first     = dst->op_params[SPTS_CPU_ATTENTION_FIRST];
    p.window    = dst->op_params[SPTS_CPU_ATTENTION_WINDOW];
    memcpy(&p.scale, &dst->op_params[SPTS_CPU_ATTENTION_SCALE], sizeof(p.scale));

    const int n_head_kv = (int) k->ne[2];
    const int n_parts   = (int) ((p.n_q * p.group + LANES - 1) / LANES);
    const int n_items   = n_parts * n_head_kv;
    auto * taken = (std::atomic<int32_t> *) &dst->op_params[SPTS_CPU_ATTENTION_TAKEN];
    Scratch scratch;
    for (;;) {
        const int item = taken->fetch_add(1, std::memory_order_relaxed);
        if (item >= n_items) {
            // The last thread that finds nothing leaves the counter as it was found.
            if (item == n_items + nth - 1) {
                taken->store(0, std::memory_order_relaxed);
            }
            return;
        }
        // Queries that see most come first, so that no thread is left alone with them.
        attend(p, item % n_head_kv, (int64_t) (n_parts - 1 - item / n_head_kv) * LANES, scratch);
    }
}
