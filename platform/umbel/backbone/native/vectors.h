/* bf16 in memory, fp32 in registers: 16 numbers at a time, in the compiler's own vectors, so any processor will do. */
#ifndef UMBEL_VECTORS_H
#define UMBEL_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define LINE 32 /* numbers of a cache line */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

INLINE f32x16 load(const float *p) {
    f32x16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void keep(float *p, f32x16 x) { memcpy(p, &x, sizeof x); }

INLINE int64_t ceiling(int64_t x, int64_t by) { return (x + by - 1) / by; }

INLINE f32x16 all(float x) { return (f32x16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

INLINE float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE f32x16 wide16(const bf16 *p) {
#ifdef __AVX512F__ /* compilers take six instructions where two do */
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#endif
    u16x16 h;
    memcpy(&h, p, sizeof h);
    return (f32x16)(__builtin_convertvector(h, u32x16) << 16);
}

/* Of 32 numbers those with even places, and those with odd ones: two instructions less than to widen them in order. */
INLINE void evens_and_odds(const bf16 *p, f32x16 *out) {
    u32x16 both;
    memcpy(&both, p, sizeof both);
    out[0] = (f32x16)(both << 16), out[1] = (f32x16)(both & 0xffff0000u);
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void narrow16(bf16 *p, f32x16 x) {
#ifdef __AVX512BF16__
    __m256bh narrowed = _mm512_cvtneps_pbh((__m512)x);
    memcpy(p, &narrowed, sizeof narrowed);
    return;
#endif
    u32x16 bits = (u32x16)x;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    i32x16 nan = x != x;
    rounded = (rounded & ~(u32x16)nan) | ((u32x16)nan & 0x7fc0);
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)rounded));
#else
    u16x16 h = __builtin_convertvector(rounded, u16x16);
    memcpy(p, &h, sizeof h);
#endif
}

/* Two of them, side by side. */
INLINE void narrow32(bf16 *p, f32x16 x, f32x16 y) {
#ifdef __AVX512BF16__
    __m512bh narrowed = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
    memcpy(p, &narrowed, sizeof narrowed);
    return;
#endif
    narrow16(p, x), narrow16(p + LANES, y);
}

/* Row and column change places. */
INLINE void transpose16(f32x16 *x) {
    f32x16 y[LANES];
    for (int i = 0; i < LANES; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            f32x16 a = y[i + j], b = y[i + j + 2];
            x[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[i + 2 * j + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    for (int i = 0; i < LANES; i += 8)
        for (int j = 0; j < 4; j++) {
            f32x16 a = x[i + j], b = x[i + j + 4];
            y[i + j] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            y[i + j + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    for (int j = 0; j < 8; j++) {
        f32x16 a = y[j], b = y[j + 8];
        x[j] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        x[j + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
}

/* Halves are added to each other, always in this order, so that a sum does not depend on how it was reached. */
INLINE f32x4 sum4(f32x16 x) {
#ifdef __AVX512F__ /* without a way through memory */
    __m256 low = _mm512_castps512_ps256((__m512)x), high = (__m256)_mm512_extractf64x4_pd((__m512d)x, 1);
    __m256 sum = _mm256_add_ps(low, high);
    return (f32x4)_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
#endif
    f32x8 a[2];
    memcpy(a, &x, sizeof a);
    a[0] += a[1];
    f32x4 b[2];
    memcpy(b, a, sizeof b);
    return b[0] + b[1];
}

INLINE float sum16(f32x16 x) {
    f32x4 s = sum4(x);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* In each four of the sum: a0 + a2, b0 + b2, a1 + a3, b1 + b3. */
INLINE f32x16 fold_twos(f32x16 a, f32x16 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}

/* In each four: what was folded, of a, b, c and d. */
INLINE f32x16 fold_fours(f32x16 ab, f32x16 cd) {
    return __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

/* The sums of 16 vectors, at the price of some three: vectors are folded into each other, not one by one. */
INLINE f32x16 sum16_of_16(const f32x16 *x) {
    f32x16 f[4];
    for (int i = 0; i < 4; i++)
        f[i] = fold_fours(fold_twos(x[4 * i], x[4 * i + 1]), fold_twos(x[4 * i + 2], x[4 * i + 3]));
    f32x16 halves[2]; /* fours 0 + 2 and 1 + 3 of a vector, then of the next one */
    for (int i = 0; i < 2; i++)
        halves[i] =
            __builtin_shufflevector(f[2 * i], f[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
            __builtin_shufflevector(f[2 * i], f[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return __builtin_shufflevector(halves[0], halves[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(halves[0], halves[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

/* Number by number the larger one; ``top`` where ``x`` is NaN, of which a softmax has to think later: its weight is NaN,
   and so is their sum. */
INLINE f32x16 larger16(f32x16 x, f32x16 top) {
#ifdef __AVX512F__
    return (f32x16)_mm512_max_ps((__m512)x, (__m512)top);
#endif
    i32x16 more = x > top;
    return (f32x16)(((i32x16)x & more) | ((i32x16)top & ~more));
}

/* Of all that are numbers. */
INLINE float largest(f32x16 x, float top) {
    x = larger16(x, all(top));
    x = larger16(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    x = larger16(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    x = larger16(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return larger16(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))[0];
}

/* e^x for x <= 0, to about 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2. 0 below -87; NaN stays NaN. */
INLINE f32x16 exp16(f32x16 x) {
    f32x16 n = x * all(1.44269504f), magic = all(12582912.0f);
    n = (n + magic) - magic;
    f32x16 r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    f32x16 p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
#ifdef __AVX512F__
    return (f32x16)_mm512_maskz_scalef_ps(
        _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), (__m512)p, (__m512)n
    );
#endif
    i32x16 far = x < all(-87.0f), whole = __builtin_convertvector(n, i32x16);
    f32x16 y = (f32x16)((i32x16)p + (whole << 23));
    return (f32x16)((i32x16)y & ~far);
}

#endif
