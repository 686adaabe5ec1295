/* What linear.c and its ways to multiply share. */
#ifndef UMBEL_LINEAR_H
#define UMBEL_LINEAR_H

#include "forms.h"
#include "product.h"

typedef struct {
    const Product *of;
    int64_t rows;
    Form form;
} Linear;

/* A block of a linear, or none. */
typedef struct {
    const Product *of;
    int64_t block;
} Block;

INLINE Form form_of(const Product *of) { return of->highs ? COMPACT : !of->scales ? BF16 : of->table ? NIBBLE : BYTE; }

INLINE int is_codes(Form form) { return form == BYTE || form == NIBBLE; }

INLINE int64_t blocks_of(const Product *of) { return ceiling(of->d_out, COLUMNS); }

INLINE int64_t size_of(const Product *of) { return of->d_in / 2 * stride(form_of(of)); }

/* One sum to each of WIDTH outputs of a row, rounded once. */
INLINE void store(const Linear *s, Vector sum, int64_t row, int64_t column) {
    int64_t left = s->of->d_out - column;
    bf16 *y = s->of->y + row * s->of->d_out + column;
    if (left <= 0) return;
    if (s->form == BYTE) sum *= wides(s->of->scales + column);
    if (left >= WIDTH) {
        narrows(y, s->of->bias ? sum + wides(s->of->bias + column) : sum);
        return;
    }
    for (int64_t i = 0; i < left; i++) y[i] = narrow(s->of->bias ? sum[i] + wide(s->of->bias[column + i]) : sum[i]);
}

/* What a compact block has beside its numbers. It is little, but each way to memory takes as long as a tile's tenth. */
static void fetch_rest(const Product *of, int64_t block) {
    int64_t first = of->first[block], next = of->first[block + 1];
    __builtin_prefetch(of->highs + block * HIGHS, 0, 2);
    for (const int32_t *p = of->others + first + block; p <= of->others + next + block; p += 16)
        __builtin_prefetch(p, 0, 2);
    for (const char *p = of->whole + first * stride(BF16); p < of->whole + next * stride(BF16); p += 64)
        __builtin_prefetch(p, 0, 2);
}

INLINE const char *fetch_lines(const char *ahead, int64_t lines) {
    for (int64_t i = 0; i < lines; i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    return ahead;
}

#endif
