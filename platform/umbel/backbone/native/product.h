/* What a linear is told, whatever form its weights have. */
#ifndef UMBEL_PRODUCT_H
#define UMBEL_PRODUCT_H

#include "vectors.h"

/* ``Product`` of product.py. */
typedef struct Product {
    const bf16 *x; /* [rows, d_in], ``d_in`` even */
    bf16 *y;       /* [rows, d_out] */
    int64_t d_in, d_out;
    const char *w; /* [blocks, d_in / 2, stride], zero beyond d_out */
    const bf16 *bias; /* [d_out] or NULL */
    char *room; /* [threads, room_for()] */
    /* of codes: of 8 bits, and where there is a table of 4 */
    int64_t group;      /* inputs that share a scale; of bytes all of them */
    const bf16 *scales; /* [blocks, groups, COLUMNS] */
    const bf16 *zeros;  /* the same, or NULL */
    const float *table; /* [16], what a nibble stands for */
    /* of a compact weight (compact.c) */
    const uint8_t *highs;      /* [blocks, HIGHS] */
    const int32_t *first;      /* [blocks + 1], of ``others`` */
    const int32_t *others;     /* pairs of inputs that stand in ``whole``, rising; behind each block's d_in / 2 */
    const char *whole;         /* [those pairs, stride of bf16] */
    const struct Product *next; /* whose weights will be read behind this one's, or NULL */
} Product;

#endif
