/* Softmax attention of a few query heads over the keys that they share: scores, and weights out of scores. */
#ifndef UMBEL_SCORES_H
#define UMBEL_SCORES_H

#include "vectors.h"

#define AT_ONCE 4 /* query heads that share a pass */
#ifdef __AVX512F__
#define IN_REGISTERS LANES /* places whose sums are made together */
#else
#define IN_REGISTERS 4
#endif

/* Fetches the cache lines of ``count`` places that a later pass reads. Not what this pass reads next: the processor sees
   that by itself, but not across the borders of pages, nor from one row to another. */
INLINE void fetch(const bf16 *places, int64_t d, int64_t count) {
    for (int64_t c = 0; c < count * d; c += LINE) __builtin_prefetch(places + c, 0, 3);
}

/* q k^T of a query head with LANES places, of which ``m`` are there; what the others give is nobody's. */
INLINE f32x16 score16(const bf16 *q, const bf16 *keys, int64_t d, int64_t m) {
    f32x16 sums[LANES];
    int64_t whole = d / LANES * LANES;
    for (int first = 0; first < LANES; first += IN_REGISTERS) {
        f32x16 s[IN_REGISTERS];
        const bf16 *key[IN_REGISTERS];
        for (int j = 0; j < IN_REGISTERS; j++) {
            s[j] = all(0.0f);
            key[j] = keys + (first + j < m ? first + j : m - 1) * d;
        }
        int64_t c = 0;
#ifdef __AVX512BF16__
        for (; c + 2 * LANES <= d; c += 2 * LANES) {
            __m512bh qs = (__m512bh)_mm512_loadu_si512(q + c);
            for (int j = 0; j < IN_REGISTERS; j++)
                s[j] = (f32x16)_mm512_dpbf16_ps((__m512)s[j], qs, (__m512bh)_mm512_loadu_si512(key[j] + c));
        }
#else
        for (; c + 2 * LANES <= d; c += 2 * LANES) {
            f32x16 qs[2], ks[2];
            evens_and_odds(q + c, qs);
            for (int j = 0; j < IN_REGISTERS; j++) {
                evens_and_odds(key[j] + c, ks);
                s[j] += qs[0] * ks[0];
                s[j] += qs[1] * ks[1];
            }
        }
#endif
        for (; c < whole; c += LANES) {
            f32x16 qs = wide16(q + c);
            for (int j = 0; j < IN_REGISTERS; j++) s[j] += qs * wide16(key[j] + c);
        }
        for (int j = 0; j < IN_REGISTERS; j++) sums[first + j] = s[j];
    }
    f32x16 found = sum16_of_16(sums);
    for (int64_t l = whole; l < d; l++)
        for (int j = 0; j < LANES; j++) found[j] += wide(q[l]) * wide(keys[(j < m ? j : m - 1) * d + l]);
    return found;
}

/* q k^T of ``n`` query heads with ``count`` places, scaled, while as many places at ``coming`` are fetched. The last
   LANES places are taken together, some of them twice: a place's sum is the same wherever among them it stands. */
INLINE void score_all(
    const bf16 *const *q, const bf16 *keys, int64_t d, int64_t count, float scale, float *out, int64_t room,
    const bf16 *coming, const int n
) {
    for (int64_t l = 0; l < count; l += LANES) {
        int64_t at = l + LANES <= count ? l : count - LANES;
        if (coming) fetch(coming + l * d, d, count - l < LANES ? count - l : LANES);
        for (int i = 0; i < n; i++) {
            f32x16 found;
            if (at >= 0) found = score16(q[i], keys + at * d, d, LANES);
            else at = 0, found = score16(q[i], keys, d, count);
            found *= all(scale);
            memcpy(out + i * room + at, &found, sizeof found);
        }
    }
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
