/* bf16 in memory, fp32 in registers: WIDTH numbers at a time, in the compiler's vectors, so any processor will do. */
#ifndef UMBEL_VECTORS_H
#define UMBEL_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LINE 32 /* numbers of a cache line */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x16 __attribute__((vector_size(64)));

/* What a register holds: a vector that is larger than that GCC would keep in memory. With it how many vectors of a row
   are summed side by side, so that the sums of a few rows fill the registers. */
#if defined(__AVX512F__)
typedef f32x16 Vector;
#define WIDTH 16
#define ABREAST 4
#define REGISTERS 32
#elif defined(__AVX2__)
typedef f32x8 Vector;
#define WIDTH 8
#define ABREAST 2
#define REGISTERS 16
#elif defined(__aarch64__)
typedef f32x4 Vector;
#define WIDTH 4
#define ABREAST 4
#define REGISTERS 32
#else
typedef f32x4 Vector;
#define WIDTH 4
#define ABREAST 2
#define REGISTERS 16
#endif
typedef uint32_t Bits __attribute__((vector_size(sizeof(Vector))));
typedef int32_t Whole __attribute__((vector_size(sizeof(Vector))));
typedef uint16_t Halves __attribute__((vector_size(sizeof(Vector) / 2)));

INLINE Vector load(const float *p) {
    Vector x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void keep(float *p, Vector x) { memcpy(p, &x, sizeof x); }

INLINE int64_t ceiling(int64_t x, int64_t by) { return (x + by - 1) / by; }

INLINE Vector all(float x) { return x - (Vector){0}; }

INLINE float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE Vector wides(const bf16 *p) {
#if defined(__AVX512F__) /* compilers take six instructions where two do */
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
    return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    Halves h;
    memcpy(&h, p, sizeof h);
    return (Vector)(__builtin_convertvector(h, Bits) << 16);
#endif
}

/* Of twice WIDTH numbers those with even places, and those with odd ones: two instructions less than to widen them in
   order. */
INLINE void evens_and_odds(const bf16 *p, Vector *out) {
    Bits both;
    memcpy(&both, p, sizeof both);
    out[0] = (Vector)(both << 16), out[1] = (Vector)(both & 0xffff0000u);
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void narrows(bf16 *p, Vector x) {
#if defined(__AVX512BF16__)
    __m256bh narrowed = _mm512_cvtneps_pbh((__m512)x);
    memcpy(p, &narrowed, sizeof narrowed);
#else
    Bits bits = (Bits)x, nan = (Bits)(x != x);
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (rounded & ~nan) | (nan & 0x7fc0);
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)rounded));
#elif defined(__AVX2__)
    __m128i low = _mm256_castsi256_si128((__m256i)rounded), high = _mm256_extracti128_si256((__m256i)rounded, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(low, high));
#else
    Halves h = __builtin_convertvector(rounded, Halves);
    memcpy(p, &h, sizeof h);
#endif
#endif
}

/* Two of them, side by side. */
INLINE void narrows_two(bf16 *p, Vector x, Vector y) {
#if defined(__AVX512BF16__)
    __m512bh narrowed = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
    memcpy(p, &narrowed, sizeof narrowed);
#else
    narrows(p, x), narrows(p + WIDTH, y);
#endif
}

/* Number by number the larger one; ``top`` where ``x`` is NaN, of which a softmax has to think later: its weight is NaN,
   and so is their sum. */
INLINE Vector larger(Vector x, Vector top) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps((__m512)x, (__m512)top);
#elif defined(__AVX2__)
    return (Vector)_mm256_max_ps((__m256)x, (__m256)top);
#else
    Whole more = x > top;
    return (Vector)(((Whole)x & more) | ((Whole)top & ~more));
#endif
}

/* e^x for x <= 0, to about 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2. 0 below -87; NaN stays NaN. */
INLINE Vector exps(Vector x) {
    Vector n = x * all(1.44269504f), magic = all(12582912.0f);
    n = (n + magic) - magic;
    Vector r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    Vector p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
#ifdef __AVX512F__
    return (Vector)_mm512_maskz_scalef_ps(
        _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), (__m512)p, (__m512)n
    );
#else
    Whole far = x < all(-87.0f), whole = __builtin_convertvector(n, Whole);
    return (Vector)(((Whole)p + (whole << 23)) & ~far);
#endif
}

#endif
