// Which blocks of keys a block of queries reads, by sampled scores (XAttention, arXiv 2503.16428).
//
// Queries and keys lie in blocks, each of SQUARES groups of STRIDE rows. The score of a group of queries and a group of keys is the mean
// over one antidiagonal of their square of products: the i-th last query with the i-th key. A softmax over the groups of
// keys that a group of queries sees makes shares of them, and a block of keys has the sum of its groups' shares over the groups of queries. The
// best blocks are read, so many that they make up a share of the whole.
//
// The groups of queries of up to eight heads lie side by side in the lanes of vectors (vectors.h).

#include "block_lists.h"
#include "../blocks.h"
#include "vectors.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

namespace {

constexpr int STRIDE  = SPTS_BLOCK_STRIDE;
constexpr int SQUARES = SPTS_BLOCK / STRIDE;
constexpr int HEADS   = LANES / SQUARES; // at a time

struct Problem {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * lists;
    int64_t d, n_q, group;
    int64_t first, whole_from;
    float   scale, share;
    bool    by_count;
};

// What a thread works with.
struct Scratch {
    std::vector<vec>    queries; // [STRIDE][d][COLUMNS], times the scale
    std::vector<float>  rows;    // [SPTS_BLOCK][d]
    std::vector<vec>    most;    // [n_blocks][COLUMNS], the best score in a block
    std::vector<vec>    sums;    // [n_blocks][COLUMNS], of the exponentials of the scores less that
    std::vector<double> shares;  // [n_blocks] of a head
    std::vector<double> judged;
};

int32_t * list_of(const Problem & p, int64_t tile, int64_t head) {
    return (int32_t *) ((char *) p.lists->data + tile * p.lists->nb[1] + head * p.lists->nb[2]);
}

// Scores of one block of queries of some heads from `head` on, which share the keys of `kv_head`.
void score(const Problem & p, int64_t tile, int64_t kv_head, int64_t head, int64_t n_heads, int64_t n_squares, int64_t n_blocks, Scratch & s) {
    const int64_t row = COLUMNS * p.d;
    s.queries.assign(STRIDE * row, vec{});
    s.rows.resize(SPTS_BLOCK * p.d);
    s.most.assign(n_blocks * COLUMNS, broadcast(LOWEST));
    s.sums.assign(n_blocks * COLUMNS, vec{});
    int32_t seen[LANES] = {};
    for (int64_t i = 0; i < n_heads; i++) {
        for (int64_t square = 0; square < n_squares; square++) {
            const int64_t lane = i * SQUARES + square, start = tile * SPTS_BLOCK + square * STRIDE;
            seen[lane] = (int32_t) ((p.first + start + 1) / STRIDE);
            for (int64_t at = 0; at < STRIDE; at++) {
                const char * q = (const char *) p.q->data + (start + STRIDE - 1 - at) * p.q->nb[1] + (head + i) * p.q->nb[2];
                for (int64_t x = 0; x < p.d; x++) {
                    ((float *) &s.queries[at * row + x * COLUMNS])[lane] = ((const float *) q)[x] * (p.scale / STRIDE);
                }
            }
        }
    }
    ivec see[COLUMNS];
    memcpy(see, seen, sizeof(see));
    const int64_t n_groups = *std::max_element(seen, seen + LANES);
    for (int64_t block = 0; block * SQUARES < n_groups; block++) {
        const int64_t n = std::min<int64_t>(SQUARES, n_groups - block * SQUARES);
        vec scores[SQUARES][COLUMNS] = {};
        convert(p.k, kv_head, block * SPTS_BLOCK, n * STRIDE, s.rows.data());
        for (int64_t at = 0; at < STRIDE; at++) {
            const auto * queries = (const vec (*)[COLUMNS]) &s.queries[at * row];
            multiply<true>(scores, s.rows.data() + at * p.d, STRIDE * p.d, 1, queries, n, p.d);
        }
        for (int c = 0; c < COLUMNS; c++) {
            vec & most = s.most[block * COLUMNS + c];
            for (int64_t i = 0; i < n; i++) {
                scores[i][c] = select(see[c] > (int32_t) (block * SQUARES + i), scores[i][c], broadcast(-INFINITY));
                most         = select(scores[i][c] > most, scores[i][c], most);
            }
            for (int64_t i = 0; i < n; i++) {
                s.sums[block * COLUMNS + c] += exp_of(scores[i][c] - most);
            }
        }
    }
}

// Makes the shares of the blocks for the head whose groups of queries lie in the lanes from `lane` on.
void make_shares(int64_t lane, int64_t n_squares, int64_t n_blocks, Scratch & s) {
    const auto at = [&](const std::vector<vec> & of, int64_t block, int64_t square) {
        return ((const float *) &of[block * COLUMNS])[lane + square];
    };
    s.shares.assign(n_blocks, 0.0);
    for (int64_t square = 0; square < n_squares; square++) {
        float most = LOWEST;
        for (int64_t block = 0; block < n_blocks; block++) {
            most = std::max(most, at(s.most, block, square));
        }
        double total = 0.0;
        for (int64_t block = 0; block < n_blocks; block++) {
            total += at(s.sums, block, square) * exp((double) at(s.most, block, square) - most);
        }
        for (int64_t block = 0; block < n_blocks && total > 0.0; block++) {
            s.shares[block] += at(s.sums, block, square) * exp((double) at(s.most, block, square) - most) / total;
        }
    }
}

void write_list(const Problem & p, int64_t n_blocks, Scratch & s, int32_t * list) {
    // Blocks that are read in any case: the first, and the last ones.
    const int64_t n_judged = n_blocks - SPTS_BLOCKS_BEHIND;
    const auto    weight   = [&](int64_t block) { return p.by_count ? 1.0 : s.shares[block]; };
    double all = 0.0, have = 0.0;
    s.judged.clear();
    for (int64_t block = 0; block < n_blocks; block++) {
        all += weight(block);
        if (block == 0 || block >= n_judged) {
            have += weight(block);
        } else {
            s.judged.push_back(s.shares[block]);
        }
    }
    std::sort(s.judged.begin(), s.judged.end(), std::greater<double>());
    const double wanted = p.by_count ? ceilf(p.share * (float) all) : p.share * all;
    double limit = INFINITY;
    for (size_t i = 0; i < s.judged.size() && have < wanted; i++) {
        limit = s.judged[i];
        have += p.by_count ? 1.0 : limit;
    }
    int32_t n = 0;
    for (int64_t block = 0; block < n_blocks; block++) {
        if (block == 0 || block >= n_judged || s.shares[block] >= limit) {
            list[++n] = (int32_t) block;
        }
    }
    list[0] = n;
}

// Lists of one block of queries, of up to HEADS heads.
void choose(const Problem & p, int64_t tile, int64_t kv_head, int64_t head, int64_t n_heads, Scratch & s) {
    const int64_t last      = std::min<int64_t>(tile * SPTS_BLOCK + SPTS_BLOCK, p.n_q) - 1;
    const int64_t n_blocks  = (p.first + last) / SPTS_BLOCK + 1;
    const int64_t n_squares = std::min<int64_t>(SQUARES, p.n_q / STRIDE - tile * SQUARES); // whole ones
    const bool    reads_all = last >= p.whole_from || n_squares <= 0 || n_blocks - SPTS_BLOCKS_BEHIND <= 1;
    if (!reads_all) {
        score(p, tile, kv_head, head, n_heads, n_squares, n_blocks, s);
    }
    for (int64_t i = 0; i < n_heads; i++) {
        int32_t * list = list_of(p, tile, head + i);
        if (reads_all) {
            list[0] = (int32_t) n_blocks;
            for (int64_t block = 0; block < n_blocks; block++) {
                list[1 + block] = (int32_t) block;
            }
        } else {
            make_shares(i * SQUARES, n_squares, n_blocks, s);
            write_list(p, n_blocks, s, list);
        }
    }
}

} // namespace

void spts_cpu_block_lists(ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) ith;
    (void) userdata;
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const int32_t * arguments = dst->op_params;
    Problem p;
    p.q          = q;
    p.k          = k;
    p.lists      = dst;
    p.d          = q->ne[0];
    p.n_q        = q->ne[1];
    p.group      = q->ne[2] / k->ne[2];
    p.first      = arguments[SPTS_CPU_BLOCK_LISTS_FIRST];
    p.by_count   = arguments[SPTS_CPU_BLOCK_LISTS_BY_COUNT] != 0;
    p.whole_from = arguments[SPTS_CPU_BLOCK_LISTS_WHOLE_FROM];
    memcpy(&p.scale, &arguments[SPTS_CPU_BLOCK_LISTS_SCALE], sizeof(p.scale));
    memcpy(&p.share, &arguments[SPTS_CPU_BLOCK_LISTS_SHARE], sizeof(p.share));

    const int64_t n_passes = (p.group + HEADS - 1) / HEADS, n_tiles = dst->ne[1];
    const int     n_items  = (int) (n_tiles * k->ne[2] * n_passes);
    auto * taken = (std::atomic<int32_t> *) &dst->op_params[SPTS_CPU_BLOCK_LISTS_TAKEN];
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
        const int64_t pass = item % n_passes, kv_head = item / n_passes % k->ne[2], tile = item / n_passes / k->ne[2];
        const int64_t head = kv_head * p.group + pass * HEADS;
        choose(p, tile, kv_head, head, std::min<int64_t>(HEADS, (kv_head + 1) * p.group - head), scratch);
    }
}
