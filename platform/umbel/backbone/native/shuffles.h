/* What moves between the places of vectors. Fours stay together, since no processor has registers of fewer numbers. */
#ifndef UMBEL_SHUFFLES_H
#define UMBEL_SHUFFLES_H

#include "vectors.h"

/* In each four of ``a`` and ``b``: those of its numbers (0 to 3 are a's, 4 to 7 b's). */
#define AT(i, four) ((i) % 4 + 4 * (four) + (i) / 4 * WIDTH)
#define OF_FOUR(i, j, k, l, four) AT(i, four), AT(j, four), AT(k, four), AT(l, four)
/* Whole fours, those of b behind a's. */
#define WHOLE(four) 4 * (four), 4 * (four) + 1, 4 * (four) + 2, 4 * (four) + 3
#if WIDTH == 16
#define IN_FOURS(a, b, i, j, k, l)                                                                                     \
    __builtin_shufflevector(                                                                                           \
        a, b, OF_FOUR(i, j, k, l, 0), OF_FOUR(i, j, k, l, 1), OF_FOUR(i, j, k, l, 2), OF_FOUR(i, j, k, l, 3)           \
    )
#define FOURS(a, b, i, j, k, l) __builtin_shufflevector(a, b, WHOLE(i), WHOLE(j), WHOLE(k), WHOLE(l))
#elif WIDTH == 8
#define IN_FOURS(a, b, i, j, k, l) __builtin_shufflevector(a, b, OF_FOUR(i, j, k, l, 0), OF_FOUR(i, j, k, l, 1))
#define FOURS(a, b, i, j) __builtin_shufflevector(a, b, WHOLE(i), WHOLE(j))
#else
#define IN_FOURS(a, b, i, j, k, l) __builtin_shufflevector(a, b, OF_FOUR(i, j, k, l, 0))
#endif

/* Row and column of WIDTH vectors change places: in each block of four by four, and then the blocks. */
INLINE void transpose(Vector *x) {
    Vector y[WIDTH];
    for (int i = 0; i < WIDTH; i += 2)
        y[i] = IN_FOURS(x[i], x[i + 1], 0, 4, 1, 5), y[i + 1] = IN_FOURS(x[i], x[i + 1], 2, 6, 3, 7);
    for (int i = 0; i < WIDTH; i += 4)
        for (int j = 0; j < 2; j++) {
            Vector a = y[i + j], b = y[i + j + 2];
            x[i + 2 * j] = IN_FOURS(a, b, 0, 1, 4, 5), x[i + 2 * j + 1] = IN_FOURS(a, b, 2, 3, 6, 7);
        }
#if WIDTH == 16
    for (int i = 0; i < WIDTH; i += 8)
        for (int j = 0; j < 4; j++) {
            Vector a = x[i + j], b = x[i + j + 4];
            y[i + j] = FOURS(a, b, 0, 4, 2, 6), y[i + j + 4] = FOURS(a, b, 1, 5, 3, 7);
        }
    for (int j = 0; j < 8; j++) {
        Vector a = y[j], b = y[j + 8];
        x[j] = FOURS(a, b, 0, 1, 4, 5), x[j + 8] = FOURS(a, b, 2, 3, 6, 7);
    }
#elif WIDTH == 8
    for (int j = 0; j < 4; j++) {
        Vector a = x[j], b = x[j + 4];
        x[j] = FOURS(a, b, 0, 2), x[j + 4] = FOURS(a, b, 1, 3);
    }
#endif
}

/* Halves are added to each other, always in this order, so that a sum does not depend on how it was reached. */
INLINE f32x4 sum4(Vector x) {
#if WIDTH == 16 /* without a way through memory */
    __m256 low = _mm512_castps512_ps256((__m512)x), high = (__m256)_mm512_extractf64x4_pd((__m512d)x, 1);
    __m256 sum = _mm256_add_ps(low, high);
#elif WIDTH == 8
    __m256 sum = (__m256)x;
#else
    return x;
#endif
#if WIDTH > 4
    return (f32x4)_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
#endif
}

INLINE float sum_of(Vector x) {
    f32x4 s = sum4(x);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* In each four of the sum: a0 + a2, b0 + b2, a1 + a3, b1 + b3. */
INLINE Vector fold_twos(Vector a, Vector b) { return IN_FOURS(a, b, 0, 4, 1, 5) + IN_FOURS(a, b, 2, 6, 3, 7); }

/* In each four: what was folded, of a, b, c and d. */
INLINE Vector fold_fours(Vector ab, Vector cd) { return IN_FOURS(ab, cd, 0, 1, 4, 5) + IN_FOURS(ab, cd, 2, 3, 6, 7); }

/* The sums of WIDTH vectors, at the price of some three: vectors are folded into each other, not one by one. */
INLINE Vector sums_of_all(const Vector *x) {
    Vector f[WIDTH / 4];
    for (int i = 0; i < WIDTH / 4; i++)
        f[i] = fold_fours(fold_twos(x[4 * i], x[4 * i + 1]), fold_twos(x[4 * i + 2], x[4 * i + 3]));
#if WIDTH == 16
    Vector halves[2]; /* fours 0 + 2 and 1 + 3 of a vector, then of the next one */
    for (int i = 0; i < 2; i++)
        halves[i] = FOURS(f[2 * i], f[2 * i + 1], 0, 1, 4, 5) + FOURS(f[2 * i], f[2 * i + 1], 2, 3, 6, 7);
    return FOURS(halves[0], halves[1], 0, 2, 4, 6) + FOURS(halves[0], halves[1], 1, 3, 5, 7);
#elif WIDTH == 8
    return FOURS(f[0], f[1], 0, 2) + FOURS(f[0], f[1], 1, 3);
#else
    return f[0];
#endif
}

/* Of all that are numbers. */
INLINE float largest(Vector x, float top) {
    x = larger(x, all(top));
#if WIDTH == 16
    x = larger(x, FOURS(x, x, 2, 3, 0, 1));
    x = larger(x, FOURS(x, x, 1, 0, 3, 2));
#elif WIDTH == 8
    x = larger(x, FOURS(x, x, 1, 0));
#endif
    x = larger(x, IN_FOURS(x, x, 2, 3, 0, 1));
    return larger(x, IN_FOURS(x, x, 1, 0, 3, 2))[0];
}

#endif
