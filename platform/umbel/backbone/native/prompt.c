/* Chunks of prompts: writes the keys and values of a chunk's tokens, then attends from each token to all places up to
   its own.

   Keys are taken in blocks that begin at the same places whatever the chunk, and a token's softmax is carried from block
   to block (Milakov and Gimelshein 2018; Dao et al. 2022), so that its bits do not depend on where prompts were cut, nor
   on who is read beside it, and nothing as large as chunk times context is ever held. */

#include "shuffles.h"
#include "tape.h"

typedef struct {
    int64_t slot, start, count, at;
} Span;

typedef struct {
    const bf16 *q, *k, *v; /* rotated, [rows, heads, d] */
    int64_t q_row, q_head, k_row, k_head, v_row, v_head;
    bf16 *keys, *values; /* [slots, kv_heads, places, d] */
    int64_t slot_stride, head_stride;
    bf16 *context; /* [rows, heads, d] */
    const Span *spans;
    int64_t count, kv_heads, group, d;
    float scale;
    int64_t part;   /* tokens of one task */
    float *scratch; /* [threads, umbel_prompt_room()] */
} Prompt;

#define TILE 6  /* query rows (a token's head each) that share a pass over a block */
#define MEASURED ((TILE + WIDTH - 1) / WIDTH * WIDTH)
#define BLOCK 128 /* keys */

/* What queries and keys are multiplied in: pairs of bf16 where the processor multiplies those, else floats. */
#ifdef __AVX512BF16__
#define CELL 2 /* numbers */
#else
#define CELL 1
#endif

INLINE int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

typedef struct {
    int64_t rows, wide_d;
    float *q;       /* cells, [rows, wide_d] */
    float *mixed;   /* [rows, wide_d], not yet divided by ``sums`` */
    float *tops;    /* [rows] */
    float *sums;    /* [rows] */
    float *keys;    /* cells, [d / CELL, BLOCK] */
    float *values;  /* [BLOCK, wide_d] */
    float *weights; /* [TILE, BLOCK] */
} Desk;

int64_t umbel_prompt_room(int64_t part, int64_t group, int64_t d) {
    int64_t rows = up(part * group, TILE), wide_d = up(d, WIDTH);
    return 2 * rows * wide_d + 2 * up(rows, WIDTH) + 2 * BLOCK * wide_d + TILE * BLOCK;
}

INLINE Desk desk(float *at, int64_t tokens, int64_t group, int64_t d) {
    Desk s = {.rows = up(tokens * group, TILE), .wide_d = up(d, WIDTH)};
    s.q = at, at += s.rows * s.wide_d;
    s.mixed = at, at += s.rows * s.wide_d;
    s.tops = at, at += up(s.rows, WIDTH);
    s.sums = at, at += up(s.rows, WIDTH);
    s.keys = at, at += BLOCK * s.wide_d;
    s.values = at, at += BLOCK * s.wide_d;
    s.weights = at;
    return s;
}

/* sum + x y, of numbers or of cells. */
INLINE Vector added(Vector sum, Vector x, Vector y, const int cell) {
#ifdef __AVX512BF16__
    if (cell == 2) return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
    return sum + x * y;
}

/* y [TILE, v vectors] += a [TILE, depth] b [depth, v vectors], after y was multiplied by ``by``. */
INLINE void product(
    const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t depth, float *y, int64_t y_row,
    const float *by, const int cell, const int v
) {
    Vector sums[TILE][ABREAST];
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < v; j++) sums[i][j] = by ? load(y + i * y_row + j * WIDTH) * all(by[i]) : all(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        Vector bs[ABREAST];
        for (int j = 0; j < v; j++) bs[j] = load(b + k * b_row + j * WIDTH);
        for (int i = 0; i < TILE; i++) {
            Vector x = all(a[i * a_row + k]);
            for (int j = 0; j < v; j++) sums[i][j] = added(sums[i][j], x, bs[j], cell);
        }
    }
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < v; j++) keep(y + i * y_row + j * WIDTH, sums[i][j]);
}

/* The same for ``width`` columns, a multiple of WIDTH. */
INLINE void multiply(
    const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t depth, float *y, int64_t y_row,
    const float *by, const int cell, int64_t width
) {
    int64_t c = 0;
    for (; c + ABREAST * WIDTH <= width; c += ABREAST * WIDTH)
        product(a, a_row, b + c, b_row, depth, y + c, y_row, by, cell, ABREAST);
#if ABREAST > 2
    for (; c + 2 * WIDTH <= width; c += 2 * WIDTH) product(a, a_row, b + c, b_row, depth, y + c, y_row, by, cell, 2);
#endif
    for (; c < width; c += WIDTH) product(a, a_row, b + c, b_row, depth, y + c, y_row, by, cell, 1);
}

INLINE void widen(const bf16 *from, float *to, int64_t d, int64_t wide_d) {
    int64_t c = 0;
    for (; c + WIDTH <= d; c += WIDTH) keep(to + c, wides(from + c));
    for (; c < wide_d; c++) to[c] = c < d ? wide(from[c]) : 0.0f;
}

/* Cells ``c`` to ``c + WIDTH`` of a place, zero beyond ``d``. */
INLINE Vector cells(const bf16 *place, int64_t c, int64_t d) {
    bf16 found[CELL * WIDTH] = {0};
    int64_t left = d - c * CELL;
    if (left < CELL * WIDTH) memcpy(found, place + c * CELL, left * sizeof(bf16)), place = found;
    else place += c * CELL;
    return CELL == 1 ? wides(place) : load((const float *)place);
}

/* ``count`` places: keys as cells with places side by side, values as floats as they lie. Of keys some beyond the last
   are written, too, up to a whole vector: it again. */
INLINE void unpack(const bf16 *keys, const bf16 *values, int64_t count, int64_t d, const Desk *s) {
    for (int64_t l = 0; l < count; l++) widen(values + l * d, s->values + l * s->wide_d, d, s->wide_d);
    for (int64_t l = 0; l < count; l += WIDTH)
        for (int64_t c = 0; c < d / CELL; c += WIDTH) {
            Vector x[WIDTH];
            for (int i = 0; i < WIDTH; i++) x[i] = cells(keys + (l + i < count ? l + i : count - 1) * d, c, d);
            transpose(x);
            for (int i = 0; i < WIDTH && c + i < d / CELL; i++) keep(s->keys + (c + i) * BLOCK + l, x[i]);
        }
}

/* A row's scores of a block, to be scaled -> weights, zero beyond the ``seen`` first of ``width``. Returns their sum;
   ``top`` becomes the largest score so far, which they are measured by. */
INLINE float weigh(float *scores, int64_t seen, int64_t width, float scale, float *top) {
    Vector tops = all(*top);
    for (int64_t l = seen < 0 ? 0 : seen; l < width; l++) scores[l] = -INFINITY;
    for (int64_t l = 0; l < width; l += WIDTH) {
        Vector x = load(scores + l) * all(scale);
        tops = larger(x, tops);
        keep(scores + l, x);
    }
    *top = largest(tops, *top);
    Vector sums = all(0.0f);
    for (int64_t l = 0; l < width; l += WIDTH) {
        Vector x = exps(load(scores + l) - all(*top));
        sums += x;
        keep(scores + l, x);
    }
    return sum_of(sums);
}

/* Query rows ``r`` to ``r + TILE`` with the ``count`` places at ``from``; row r stands at place ``first + r / group``. */
INLINE void tile(const Prompt *p, const Desk *s, int64_t r, int64_t first, int64_t from, int64_t count) {
    int64_t most = first + (r + TILE - 1) / p->group + 1 - from;
    if (most <= 0) return;
    int64_t depth = most < count ? most : count, width = up(depth, WIDTH), d = s->wide_d;
    float *tops = s->tops + r, *sums = s->sums + r, sum[TILE], by[MEASURED] = {0};
    multiply(s->q + r * d, d, s->keys, BLOCK, p->d / CELL, s->weights, BLOCK, NULL, CELL, width);
    for (int i = 0; i < TILE; i++) {
        int64_t seen = first + (r + i) / p->group + 1 - from;
        by[i] = tops[i]; /* what was mixed before was measured by another score */
        sum[i] = weigh(s->weights + i * BLOCK, seen, width, p->scale, tops + i);
        by[i] -= tops[i];
    }
    for (int i = 0; i < MEASURED; i += WIDTH) keep(by + i, exps(load(by + i)));
    for (int i = 0; i < TILE; i++) sums[i] = sums[i] * by[i] + sum[i];
    multiply(s->weights, BLOCK, s->values, d, depth, s->mixed + r * d, d, by, 1, d);
}

INLINE void begin(const Prompt *p, const Desk *s, int64_t at, int64_t tokens, int64_t g) {
    memset(s->q, 0, s->rows * s->wide_d * sizeof(float));
    memset(s->mixed, 0, s->rows * s->wide_d * sizeof(float));
    for (int64_t r = 0; r < s->rows; r++) s->tops[r] = -INFINITY, s->sums[r] = 0.0f;
    for (int64_t r = 0; r < tokens * p->group; r++) {
        const bf16 *q = p->q + (at + r / p->group) * p->q_row + (g * p->group + r % p->group) * p->q_head;
        if (CELL == 2) memcpy(s->q + r * s->wide_d, q, p->d * sizeof(bf16));
        else widen(q, s->q + r * s->wide_d, p->d, s->wide_d);
    }
}

INLINE void end(const Prompt *p, const Desk *s, int64_t at, int64_t tokens, int64_t g) {
    for (int64_t r = 0; r < tokens * p->group; r++) {
        int64_t head = g * p->group + r % p->group, heads = p->kv_heads * p->group, c = 0;
        bf16 *context = p->context + ((at + r / p->group) * heads + head) * p->d;
        const float *mixed = s->mixed + r * s->wide_d;
        for (; c + WIDTH <= p->d; c += WIDTH) narrows(context + c, load(mixed + c) * all(1.0f / s->sums[r]));
        for (; c < p->d; c++) context[c] = narrow(mixed[c] * (1.0f / s->sums[r]));
    }
}

/* ``tokens`` of a span from its ``skip``-th on, with the query heads of key head ``g``. */
static void attend(const Prompt *p, const Span *span, int64_t skip, int64_t tokens, int64_t g, float *scratch) {
    Desk s = desk(scratch, tokens, p->group, p->d);
    int64_t first = span->start + skip, length = first + tokens, base = span->slot * p->slot_stride + g * p->head_stride;
    begin(p, &s, span->at + skip, tokens, g);
    for (int64_t from = 0; from < length; from += BLOCK) {
        int64_t count = length - from < BLOCK ? length - from : BLOCK;
        unpack(p->keys + base + from * p->d, p->values + base + from * p->d, count, p->d, &s);
        for (int64_t r = 0; r < s.rows; r += TILE) tile(p, &s, r, first, from, count);
    }
    end(p, &s, span->at + skip, tokens, g);
}

static void write(const Prompt *p, const Span *span, int64_t g) {
    int64_t base = span->slot * p->slot_stride + g * p->head_stride;
    for (int64_t t = 0; t < span->count; t++) {
        int64_t to = base + (span->start + t) * p->d, row = span->at + t;
        memcpy(p->keys + to, p->k + row * p->k_row + g * p->k_head, p->d * sizeof(bf16));
        memcpy(p->values + to, p->v + row * p->v_row + g * p->v_head, p->d * sizeof(bf16));
    }
}

static void prompt(Team *team, const void *told) {
    const Prompt *p = told;
    int64_t room = umbel_prompt_room(p->part, p->group, p->d), writes = p->count * p->kv_heads, parts = 0, task;
    for (int64_t i = 0; i < p->count; i++) parts += (p->spans[i].count + p->part - 1) / p->part;
    while ((task = take(team, writes)) >= 0) write(p, p->spans + task / p->kv_heads, task % p->kv_heads);
    finish(team, writes);
    while ((task = take(team, parts * p->kv_heads)) >= 0) {
        int64_t skip = task / p->kv_heads * p->part, i = 0;
        for (; skip >= up(p->spans[i].count, p->part); i++) skip -= up(p->spans[i].count, p->part);
        int64_t left = p->spans[i].count - skip, tokens = left < p->part ? left : p->part;
        attend(p, p->spans + i, skip, tokens, task % p->kv_heads, p->scratch + team->me * room);
    }
    finish(team, parts * p->kv_heads);
}

void umbel_prompt(const Prompt *p, int threads) { umbel_in_team(prompt, p, threads); }

void umbel_tape_prompt(const Now *now, const void *told, Team *team) {
    if (!now->prompt) return;
    Prompt p = *(const Prompt *)now->prompt;
    int64_t offset = offset_of(now, told);
    p.keys += offset, p.values += offset;
    prompt(team, &p);
}
