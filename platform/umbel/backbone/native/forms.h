/* The forms in which a frozen weight lies in memory, and how 32 of its numbers become bf16: two inputs of 16 outputs,
   those of an output side by side, as the dot product wants them. */
#ifndef UMBEL_FORMS_H
#define UMBEL_FORMS_H

#include "vectors.h"

#define COLUMNS 48 /* outputs of a block */
#define VECTORS (COLUMNS / LANES)
#define FOUR 4  /* pairs of inputs that lie together, where a weight is compact */
#define HIGHS 16 /* high bytes of a compact block */

#ifdef __AVX512BF16__

typedef enum { BF16, COMPACT, BYTE, NIBBLE } Form;

/* Of one block and one group of inputs: what a nibble's table is multiplied with, and what is added. */
typedef struct {
    f32x16 scale[VECTORS][2], zero[VECTORS][2];
} Group;

/* Bytes that two inputs of a block take. */
INLINE int64_t stride(Form form) {
    return form == BF16 ? 4 * COLUMNS : form == COMPACT ? 3 * COLUMNS : form == BYTE ? 2 * COLUMNS : COLUMNS;
}

/* Vectors 2 t and 2 t + 1 of the 12 of four pairs at ``w``: first lie the low bytes of all, and then which of the block's
   high bytes each has, of one two in the low nibbles and of the next in the high ones. */
INLINE void compact_two(const char *w, int t, __m512i highs, __m512bh *out) {
    __m512i low = _mm512_loadu_si512(w + t * 4 * LANES);
    __m512i which = _mm512_loadu_si512(w + FOUR * 2 * COLUMNS + t / 2 * 4 * LANES);
    if (t % 2) which = _mm512_srli_epi16(which, 4);
#ifdef __AVX512VBMI__ /* looks at six bits of a byte, so there is nothing to clear */
    __m512i high = _mm512_permutexvar_epi8(which, highs);
#else
    __m512i high = _mm512_shuffle_epi8(highs, _mm512_and_si512(which, _mm512_set1_epi8(15)));
#endif
    out[0] = (__m512bh)_mm512_unpacklo_epi8(low, high), out[1] = (__m512bh)_mm512_unpackhi_epi8(low, high);
}

/* A block's high bytes, in every lane of 16. */
INLINE __m512i highs_of(const uint8_t *table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

/* Of 16 outputs, each twice: a number for every input of a pair. */
INLINE void twice(const bf16 *p, f32x16 *out) {
    f32x16 x = wide16(p);
    out[0] = __builtin_shufflevector(x, x, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out[1] = __builtin_shufflevector(x, x, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
}

INLINE void group(Group *g, const bf16 *scales, const bf16 *zeros) {
    for (int j = 0; j < VECTORS; j++) {
        twice(scales + j * LANES, g->scale[j]);
        if (zeros) twice(zeros + j * LANES, g->zero[j]);
        else g->zero[j][0] = g->zero[j][1] = all(0.0f);
    }
}

INLINE __m512bh narrowed(__m512 low, __m512 high) { return _mm512_cvtne2ps_pbh(high, low); }

/* The 32 numbers of vector ``j`` at ``w``. A byte is a whole number; a nibble is looked up, scaled and moved, and
   rounded once. Of 16 bytes the low nibbles are the first 16 numbers, the high ones the rest. */
INLINE __m512bh pairs(Form form, const char *w, int j, __m512 table, const Group *g) {
    if (form == BF16) return (__m512bh)_mm512_loadu_si512(w + j * 4 * LANES);
    if (form == BYTE) {
        const __m128i *p = (const __m128i *)(w + j * 2 * LANES);
        __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128(p)), high = _mm512_cvtepi8_epi32(_mm_loadu_si128(p + 1));
        return narrowed(_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high));
    }
    __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w + j * LANES)));
    __m512 low = _mm512_permutexvar_ps(both, table), high = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
    low = _mm512_fmadd_ps(low, (__m512)g->scale[j][0], (__m512)g->zero[j][0]);
    high = _mm512_fmadd_ps(high, (__m512)g->scale[j][1], (__m512)g->zero[j][1]);
    return narrowed(low, high);
}

#endif
#endif
