// Products and exponentials of many queries at a time, which lie side by side in the lanes of vectors: vertical operations alone.
#pragma once

#include "ggml-cpu.h"

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

// Queries at a time.
constexpr int LANES   = 64;
constexpr int COLUMNS = LANES / WIDTH;

static_assert(COLUMNS % ACROSS == 0, "sums cover all lanes");

// Lower than any score of a query that sees a key, and far from where differences overflow.
constexpr float LOWEST = -1e30f;

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
inline void multiply(vec (*c)[COLUMNS], const float * a, int64_t down, int64_t along, const vec (*b)[COLUMNS], int64_t n, int64_t n_k) {
    int64_t i = 0;
    for (; i + DOWN <= n; i += DOWN) {
        multiply_some<DOWN, ADD>(c + i, a + i * down, down, along, b, n_k);
    }
    for (; i < n; i++) {
        multiply_some<1, ADD>(c + i, a + i * down, down, along, b, n_k);
    }
}

// Rows start .. start + n of one head, in F32.
inline void convert(const ggml_tensor * t, int64_t head, int64_t start, int64_t n, float * rows) {
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

} // namespace
