// Causal attention of many queries, with an online softmax over tiles of keys (as FlashAttention), all in F32.
//
// ggml's kernel reads a mask for every head, and packs the same keys again for each head of a group. Here a row of K or V is
// converted once for all queries of its group, 64 at a time, which lie side by side in the lanes of vectors: scores, exponentials
// and sums are then plain vertical operations, keys and values scalars that multiply whole vectors. Who sees which key follows
// from the rows' numbers or positions.
//
// Tiles of keys begin at multiples of their height, and a lane never meets another: a query's result is the same to the last bit
// beside whichever others it is computed. Where lists say which blocks of keys a block of queries reads (block_lists.cpp), each head has its own,
// and the queries of one head lie side by side.

#include "attention.h"
#include "../blocks.h"
#include "vectors.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int KEYS  = 64; // of a tile
constexpr int MAX_D = SPTS_CPU_ATTENTION_MAX_HEAD;

static_assert(SPTS_BLOCK % KEYS == 0 && SPTS_BLOCK % LANES == 0, "blocks are whole tiles, and a part has one list");

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

// Queries that are computed side by side, in lanes: the heads of a group, query by query, or queries of one head.
struct Part {
    int64_t         head;   // of K
    int64_t         q_head; // the one head, or -1 for all of the group
    int64_t         start;  // the first lane's number among all of its kind
    int64_t         n_lanes;
    const int32_t * blocks; // that are read, ascending; null for all
    int64_t         n_blocks;
};

int64_t row_of(const Problem & p, const Part & part, int64_t lane) {
    return part.q_head < 0 ? (part.start + lane) / p.group : part.start + lane;
}

int64_t head_of(const Problem & p, const Part & part, int64_t lane) {
    return part.q_head < 0 ? part.head * p.group + (part.start + lane) % p.group : part.q_head;
}

// Adds keys and values of the rows tile .. tile + n to the lanes' sums; `is_seen_by_all` if no lane's sight ends among them.
void add_tile(const Problem & p, int64_t head, int64_t tile, int64_t n, bool is_seen_by_all, Scratch & s) {
    convert(p.k, head, tile, n, s.rows);
    multiply<false>(s.scores, s.rows, p.d, 1, s.queries, n, p.d);
    if (!is_seen_by_all) {
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

void attend(const Problem & p, const Part & part, Scratch & s) {
    int64_t from = INT64_MAX, to = 0;
    int32_t lane_from[LANES], lane_to[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) {
        // Lanes that nobody needs do as the last one does.
        const int64_t as = std::min(lane, part.n_lanes - 1), row = row_of(p, part, as);
        const float * q = (const float *) ((const char *) p.q->data + row * p.q->nb[1] + head_of(p, part, as) * p.q->nb[2]);
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

    const auto add = [&](int64_t tile) {
        const int64_t n = std::min<int64_t>(KEYS, to + 1 - tile);
        add_tile(p, part.head, tile, n, tile >= all_see_from && tile + n - 1 <= all_see_to, s);
    };
    if (part.blocks) {
        for (int64_t i = 0; i < part.n_blocks; i++) {
            const int64_t block = (int64_t) part.blocks[i] * SPTS_BLOCK;
            for (int64_t tile = block; tile < block + SPTS_BLOCK && tile <= to; tile += KEYS) {
                add(tile);
            }
        }
    } else {
        for (int64_t tile = from / KEYS * KEYS; tile <= to; tile += KEYS) {
            add(tile);
        }
    }

    for (int64_t lane = 0; lane < part.n_lanes; lane++) {
        const int64_t q_head = head_of(p, part, lane);
        float sum = ((const float *) s.sum)[lane];
        if (p.sinks) {
            // In the softmax's denominator alone. That of a score far above all others is infinite, and nothing is left.
            sum += expf(p.sinks[q_head] - ((const float *) s.most)[lane]);
        }
        float * out = p.out + (row_of(p, part, lane) * p.n_head + q_head) * p.d;
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

    // Heads of a group read the same keys, unless each has lists of its own.
    const char *  lists     = (const char *) given(5);
    const int64_t n_rows    = lists ? p.n_q : p.n_q * p.group;
    const int     n_heads   = (int) (lists ? p.n_head : k->ne[2]);
    const int     n_parts   = (int) ((n_rows + LANES - 1) / LANES);
    const int     n_items   = n_parts * n_heads;
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
        const int64_t head = item % n_heads, start = (int64_t) (n_parts - 1 - item / n_heads) * LANES;
        Part part = { head, -1, start, std::min<int64_t>(LANES, n_rows - start), nullptr, 0 };
        if (lists) {
            const ggml_tensor * t = dst->src[5];
            const auto * list = (const int32_t *) (lists + start / SPTS_BLOCK * t->nb[1] + head * t->nb[2]);
            part.head     = head / p.group;
            part.q_head   = head;
            part.blocks   = list + 1;
            part.n_blocks = list[0];
        }
        attend(p, part, scratch);
    }
}
