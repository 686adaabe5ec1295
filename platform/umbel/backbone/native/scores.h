/* Softmax attention of a few query heads over the keys that they share: scores, and weights out of scores. */
#ifndef UMBEL_SCORES_H
#define UMBEL_SCORES_H

#include "shuffles.h"

#define AT_ONCE 4 /* query heads that share a pass */

/* Fetches the cache lines of ``count`` places that a later pass reads. Not what this pass reads next: the processor sees
   that by itself, but not across the borders of pages, nor from one row to another. */
INLINE void fetch(const bf16 *places, int64_t d, int64_t count) {
    for (int64_t c = 0; c < count * d; c += LINE) __builtin_prefetch(places + c, 0, 3);
}

/* q k^T of a query head with WIDTH places, of which ``m`` are there; what the others give is nobody's. */
INLINE Vector score(const bf16 *q, const bf16 *keys, int64_t d, int64_t m) {
    Vector sums[WIDTH];
    const bf16 *key[WIDTH];
    int64_t whole = d / WIDTH * WIDTH, c = 0;
    for (int j = 0; j < WIDTH; j++) {
        sums[j] = all(0.0f);
        key[j] = keys + (j < m ? j : m - 1) * d;
    }
#ifdef __AVX512BF16__
    for (; c + 2 * WIDTH <= d; c += 2 * WIDTH) {
        __m512bh qs = (__m512bh)_mm512_loadu_si512(q + c);
        for (int j = 0; j < WIDTH; j++)
            sums[j] = (Vector)_mm512_dpbf16_ps((__m512)sums[j], qs, (__m512bh)_mm512_loadu_si512(key[j] + c));
    }
#else
    for (; c + 2 * WIDTH <= d; c += 2 * WIDTH) {
        Vector qs[2], ks[2];
        evens_and_odds(q + c, qs);
        for (int j = 0; j < WIDTH; j++) {
            evens_and_odds(key[j] + c, ks);
            sums[j] += qs[0] * ks[0];
            sums[j] += qs[1] * ks[1];
        }
    }
#endif
    for (; c < whole; c += WIDTH) {
        Vector qs = wides(q + c);
        for (int j = 0; j < WIDTH; j++) sums[j] += qs * wides(key[j] + c);
    }
    Vector found = sums_of_all(sums);
    for (int64_t l = whole; l < d; l++)
        for (int j = 0; j < WIDTH; j++) found[j] += wide(q[l]) * wide(key[j][l]);
    return found;
}

/* q k^T of ``n`` query heads with ``count`` places, scaled, while as many places at ``coming`` are fetched. The last
   WIDTH places are taken together, some of them twice: a place's sum is the same wherever among them it stands. */
INLINE void score_all(
    const bf16 *const *q, const bf16 *keys, int64_t d, int64_t count, float scale, float *out, int64_t room,
    const bf16 *coming, const int n
) {
    for (int64_t l = 0; l < count; l += WIDTH) {
        int64_t at = l + WIDTH <= count ? l : count - WIDTH;
        if (coming) fetch(coming + l * d, d, count - l < WIDTH ? count - l : WIDTH);
        for (int i = 0; i < n; i++) {
            Vector found;
            if (at >= 0) found = score(q[i], keys + at * d, d, WIDTH);
            else at = 0, found = score(q[i], keys, d, count);
            found *= all(scale);
            keep(out + i * room + at, found);
        }
    }
}

/* Scores -> weights that are not yet divided by their sum, which is returned. */
INLINE float weigh(float *scores, int64_t count) {
    for (int64_t l = count; l % WIDTH; l++) scores[l] = -INFINITY;
    Vector tops = all(-INFINITY);
    for (int64_t l = 0; l < count; l += WIDTH) tops = larger(load(scores + l), tops);
    float top = largest(tops, -INFINITY);
    Vector sums = all(0.0f);
    for (int64_t l = 0; l < count; l += WIDTH) {
        Vector x = exps(load(scores + l) - all(top));
        sums += x;
        keep(scores + l, x);
    }
    return sum_of(sums);
}

#endif
