/* The forms in which a frozen weight lies in memory: in blocks of COLUMNS outputs, two inputs of every output side by
   side. */
#ifndef UMBEL_FORMS_H
#define UMBEL_FORMS_H

#include "vectors.h"

#define COLUMNS 48 /* outputs of a block */
#define LANES 16 /* of them lie together */
#define VECTORS (COLUMNS / LANES)
#define FOUR 4  /* pairs of inputs that lie together, where a weight is compact */
#define HIGHS 16 /* high bytes of a compact block */

typedef enum { BF16, COMPACT, BYTE, NIBBLE } Form;

/* Bytes that two inputs of a block take. */
INLINE int64_t stride(Form form) {
    return form == BF16 ? 4 * COLUMNS : form == COMPACT ? 3 * COLUMNS : form == BYTE ? 2 * COLUMNS : COLUMNS;
}

#ifdef __AVX512BW__

/* Vectors 2 t and 2 t + 1 of the 12 of four pairs at ``w``: first lie the low bytes of all, and then which of the block's
   high bytes each has, of one two in the low nibbles and of the next in the high ones. */
INLINE void compact_two(const char *w, int t, __m512i highs, __m512i *out) {
    __m512i low = _mm512_loadu_si512(w + t * 4 * LANES);
    __m512i which = _mm512_loadu_si512(w + FOUR * 2 * COLUMNS + t / 2 * 4 * LANES);
    if (t % 2) which = _mm512_srli_epi16(which, 4);
#ifdef __AVX512VBMI__ /* looks at six bits of a byte, so there is nothing to clear */
    __m512i high = _mm512_permutexvar_epi8(which, highs);
#else
    __m512i high = _mm512_shuffle_epi8(highs, _mm512_and_si512(which, _mm512_set1_epi8(15)));
#endif
    out[0] = _mm512_unpacklo_epi8(low, high), out[1] = _mm512_unpackhi_epi8(low, high);
}

/* A block's high bytes, in every lane of 16. */
INLINE __m512i highs_of(const uint8_t *table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

#endif
#endif
