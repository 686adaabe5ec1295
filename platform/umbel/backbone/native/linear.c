/* A frozen linear, y = x W^T + b, for processors whose widest bf16 product is AVX512's.

   W lies in blocks of COLUMNS outputs, each with two inputs of every output side by side, in the order that they are
   read: in bf16, or in codes of 8 or 4 bits (forms.h). A number of y is one sum over the inputs, two at a time, whatever
   rows stand beside it: no row needs company. Codes become bf16 in registers where few rows want them, and in the cache,
   a block at a time, where many do; the sums are the same.
   While a block is multiplied with tile after tile of rows, the next one is fetched, so that a step of few rows is as
   fast as the memory, and one of many as fast as the multipliers. */

#include "forms.h"
#include "tape.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

#define TILE 8  /* rows: with a block's outputs, their sums fill the registers */
#define MANY 64 /* rows of a thread */

typedef struct {
    const bf16 *x; /* [rows, d_in], ``d_in`` even */
    int64_t rows, d_in, d_out;
    const char *w; /* [blocks, d_in / 2, stride], zero beyond d_out */
    Form form;
    int64_t group;        /* inputs that share a scale; of bytes all of them */
    const bf16 *scales;   /* [blocks, groups, COLUMNS]; of bytes and nibbles */
    const bf16 *zeros;    /* the same, or NULL */
    const float *table;   /* [16], what a nibble stands for */
    char *room;           /* [threads, d_in / 2, stride of bf16], where codes meet many rows */
    const bf16 *bias;     /* [d_out] or NULL */
    bf16 *y;              /* [rows, d_out] */
} Linear;

/* What a tile reads: a block's weights in ``form``, and the cache lines to fetch meanwhile. */
typedef struct {
    const char *w, *ahead;
    int64_t block, lines; /* for each pair of inputs */
} Work;

int umbel_has_linear(void) { return 1; }

INLINE void store(const Linear *s, f32x16 sum, int64_t row, int64_t column) {
    int64_t left = s->d_out - column;
    bf16 *y = s->y + row * s->d_out + column;
    if (left <= 0) return;
    if (s->form == BYTE) sum *= wide16(s->scales + column);
    if (left >= LANES) {
        narrow16(y, s->bias ? sum + wide16(s->bias + column) : sum);
        return;
    }
    for (int64_t i = 0; i < left; i++) y[i] = narrow(s->bias ? sum[i] + wide(s->bias[column + i]) : sum[i]);
}

INLINE void read_group(const Linear *s, Group *g, int64_t block, int64_t at) {
    int64_t offset = (block * (s->d_in / s->group) + at) * COLUMNS;
    group(g, s->scales + offset, s->zeros ? s->zeros + offset : 0);
}

/* ``n`` rows with a block. */
INLINE void tile(const Linear *s, const Form form, int64_t row, const Work *job, const int n) {
    int64_t shared = (form == NIBBLE ? s->group : s->d_in) / 2;
    const bf16 *x = s->x + row * s->d_in;
    const char *w = job->w, *ahead = job->ahead;
    __m512 table = form == NIBBLE ? _mm512_loadu_ps(s->table) : _mm512_setzero_ps();
    f32x16 sums[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = all(0.0f);
    for (int64_t first = 0; first < s->d_in / 2; first += shared) {
        Group g;
        if (form == NIBBLE) read_group(s, &g, job->block, first / shared);
        for (int64_t k = first; k < first + shared; k++, w += stride(form)) {
            __m512bh ws[VECTORS];
            for (int j = 0; j < VECTORS; j++) ws[j] = pairs(form, w, j, table, &g);
            for (int64_t i = 0; i < job->lines; i++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
            for (int i = 0; i < n; i++) {
                int pair;
                memcpy(&pair, x + i * s->d_in + 2 * k, sizeof pair);
                __m512bh xs = (__m512bh)_mm512_set1_epi32(pair);
                for (int j = 0; j < VECTORS; j++) sums[i][j] = (f32x16)_mm512_dpbf16_ps((__m512)sums[i][j], xs, ws[j]);
            }
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) store(s, sums[i][j], row + i, job->block * COLUMNS + j * LANES);
}

INLINE void tile_of(const Linear *s, const Form form, int64_t row, const Work *job, int64_t n) {
    switch (n) {
    case 1: tile(s, form, row, job, 1); break;
    case 2: tile(s, form, row, job, 2); break;
    case 3: tile(s, form, row, job, 3); break;
    case 4: tile(s, form, row, job, 4); break;
    case 5: tile(s, form, row, job, 5); break;
    case 6: tile(s, form, row, job, 6); break;
    case 7: tile(s, form, row, job, 7); break;
    default: tile(s, form, row, job, TILE);
    }
}

static void tile_of_bf16(const Linear *s, int64_t row, const Work *job, int64_t n) { tile_of(s, BF16, row, job, n); }
static void tile_of_bytes(const Linear *s, int64_t row, const Work *job, int64_t n) { tile_of(s, BYTE, row, job, n); }
static void tile_of_nibbles(const Linear *s, int64_t row, const Work *job, int64_t n) {
    tile_of(s, NIBBLE, row, job, n);
}

INLINE void unpack_as(const Linear *s, const Form form, const char *w, int64_t block, char *out) {
    int64_t shared = (form == NIBBLE ? s->group : s->d_in) / 2;
    __m512 table = form == NIBBLE ? _mm512_loadu_ps(s->table) : _mm512_setzero_ps();
    for (int64_t first = 0; first < s->d_in / 2; first += shared) {
        Group g;
        if (form == NIBBLE) read_group(s, &g, block, first / shared);
        for (int64_t k = first; k < first + shared; k++, w += stride(form), out += stride(BF16))
            for (int j = 0; j < VECTORS; j++)
                _mm512_storeu_si512(out + j * 4 * LANES, (__m512i)pairs(form, w, j, table, &g));
    }
}

static void unpack(const Linear *s, const char *w, int64_t block, char *out) {
    if (s->form == BYTE) unpack_as(s, BYTE, w, block, out);
    else unpack_as(s, NIBBLE, w, block, out);
}

/* Rows ``from`` to ``to`` with a block. */
static void multiply(const Linear *s, int64_t from, int64_t to, int64_t block, int more, char *room) {
    int64_t pairs = s->d_in / 2, tiles = (to - from + TILE - 1) / TILE, size = pairs * stride(s->form);
    const char *w = s->w + block * size;
    int64_t left = more ? (size + 63) / 64 : 0, lines = (left + tiles * pairs - 1) / (tiles * pairs);
    void (*run)(const Linear *, int64_t, const Work *, int64_t) =
        s->form == BF16 || tiles > 1 ? tile_of_bf16 : s->form == BYTE ? tile_of_bytes : tile_of_nibbles;
    Work job = {w, w + size, block, 0};
    if (s->form != BF16 && tiles > 1) unpack(s, w, block, room), job.w = room;
    for (int64_t row = from; row < to; row += TILE) {
        job.lines = left > 0 ? lines : 0;
        run(s, row, &job, to - row);
        job.ahead += job.lines * pairs * 64, left -= job.lines * pairs;
    }
}

/* Blocks are shared out among threads; rows, too, where blocks are too few to give each as much; rows alone where they
   are so many that reading the weights once more costs nothing beside multiplying. A thread's rows are then its own from
   linear to linear, in what stands between them, too: nothing of them is fetched from another core's cache. */
static int64_t parts_of(const Linear *s, int64_t blocks, int threads) {
    int64_t most = s->rows / (2 * TILE), parts = 1;
    if (s->rows >= MANY * threads) return threads;
    while (parts < most && blocks * parts < 4 * threads && blocks * parts % threads) parts++;
    return parts;
}

/* The first row of a part: whole tiles before it. */
static int64_t row_of(const Linear *s, int64_t part, int64_t parts) {
    return part == parts ? s->rows : s->rows * part / parts / TILE * TILE;
}

static void share(Team *team, const void *told) {
    const Linear *s = told;
    int64_t blocks = (s->d_out + COLUMNS - 1) / COLUMNS, parts = parts_of(s, blocks, team->threads), task;
    char *room = s->room + team->me * (s->d_in / 2) * stride(BF16);
    while ((task = take(team, blocks * parts)) >= 0) {
        int64_t part = task / blocks, block = task % blocks;
        multiply(s, row_of(s, part, parts), row_of(s, part + 1, parts), block, block + 1 < blocks, room);
    }
    finish(team, blocks * parts);
}

void umbel_linear(
    const bf16 *x, int64_t rows, int64_t d_in, int64_t d_out, const char *w, const bf16 *bias, bf16 *y, int threads
) {
    Linear s = {x, rows, d_in, d_out, w, BF16, d_in, 0, 0, 0, 0, bias, y};
    umbel_in_team(share, &s, threads);
}

/* ``table`` is NULL where codes are bytes. ``room`` may be NULL for TILE rows or fewer. */
void umbel_codes(
    const bf16 *x, int64_t rows, int64_t d_in, int64_t d_out, const char *codes, int64_t group, const bf16 *scales,
    const bf16 *zeros, const float *table, char *room, const bf16 *bias, bf16 *y, int threads
) {
    Linear s = {x, rows, d_in, d_out, codes, table ? NIBBLE : BYTE, group, scales, zeros, table, room, bias, y};
    umbel_in_team(share, &s, threads);
}

typedef struct {
    const bf16 *x;
    bf16 *y;
    int64_t d_in, d_out;
    const char *w;
    const bf16 *bias;
    int64_t group;
    const bf16 *scales; /* NULL: ``w`` is bf16 */
    const bf16 *zeros;
    const float *table;
    char *room;
} Product;

void umbel_tape_linear(const Now *now, const void *told, Team *team) {
    const Product *t = told;
    Form form = !t->scales ? BF16 : t->table ? NIBBLE : BYTE;
    Linear s = {t->x, now->rows, t->d_in, t->d_out, t->w, form, t->group, t->scales, t->zeros, t->table, t->room,
                t->bias, t->y};
    share(team, &s);
}

#else

int umbel_has_linear(void) { return 0; }

void umbel_linear(void) {}

void umbel_codes(void) {}

void umbel_tape_linear(void) {}

#endif
