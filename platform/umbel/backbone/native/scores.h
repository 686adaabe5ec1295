/* Softmax attention of a few query heads over the keys that they share: scores, and weights out of scores. */
#ifndef UMBEL_SCORES_H
#define UMBEL_SCORES_H

#include "vectors.h"

#define AT_ONCE 4 /* query heads that share a pass */
#define AHEAD 16  /* places that are fetched before they are read */

/* q k^T of ``n`` query heads with ``m`` places, scaled; m is 1 or 4, and the sums are the same. */
INLINE void score(
    const bf16 *const *q, const bf16 *key, int64_t d, float scale, float *out, int64_t room, const int n, const int m
) {
    f32x16 sums[AT_ONCE][4];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) sums[i][j] = all(0.0f);
    int64_t c = 0;
#ifdef __AVX512BF16__
    for (; c + 2 * LANES <= d; c += 2 * LANES) {
        __m512bh ks[4];
        for (int j = 0; j < m; j++) ks[j] = (__m512bh)_mm512_loadu_si512(key + j * d + c);
        for (int i = 0; i < n; i++) {
            __m512bh qs = (__m512bh)_mm512_loadu_si512(q[i] + c);
            for (int j = 0; j < m; j++) sums[i][j] = (f32x16)_mm512_dpbf16_ps((__m512)sums[i][j], qs, ks[j]);
        }
    }
#endif
    for (; c + LANES <= d; c += LANES)
        for (int j = 0; j < m; j++) {
            f32x16 ks = wide16(key + j * d + c);
            for (int i = 0; i < n; i++) sums[i][j] += wide16(q[i] + c) * ks;
        }
    for (int i = 0; i < n; i++) {
        float found[4];
        if (m == 4) sum16_of_4(sums[i], found);
        else found[0] = sum16(sums[i][0]);
        for (int j = 0; j < m; j++) {
            for (int64_t l = c; l < d; l++) found[j] += wide(q[i][l]) * wide(key[j * d + l]);
            out[i * room + j] = found[j] * scale;
        }
    }
}

INLINE void score_all(
    const bf16 *const *q, const bf16 *keys, int64_t d, int64_t count, float scale, float *out, int64_t room, const int n
) {
    int64_t l = 0;
    for (; l + 4 <= count; l += 4) {
        for (int64_t ahead = 0; ahead < 4 * d; ahead += LINE) __builtin_prefetch(keys + (l + AHEAD) * d + ahead);
        score(q, keys + l * d, d, scale, out + l, room, n, 4);
    }
    for (; l < count; l++) score(q, keys + l * d, d, scale, out + l, room, n, 1);
}

/* Scores -> weights that are not yet divided by their sum, which is returned. */
INLINE float weigh(float *scores, int64_t count) {
    for (int64_t l = count; l % LANES; l++) scores[l] = -INFINITY;
    f32x16 tops = all(-INFINITY);
    for (int64_t l = 0; l < count; l += LANES) {
        f32x16 x;
        memcpy(&x, scores + l, sizeof x);
        tops = larger16(x, tops);
    }
    float top = largest(tops, -INFINITY);
    f32x16 sums = all(0.0f);
    for (int64_t l = 0; l < count; l += LANES) {
        f32x16 x;
        memcpy(&x, scores + l, sizeof x);
        x = exp16(x - all(top));
        sums += x;
        memcpy(scores + l, &x, sizeof x);
    }
    return sum16(sums);
}

#endif
