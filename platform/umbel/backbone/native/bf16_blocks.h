/* A block times rows where the processor multiplies pairs of bf16: weights and inputs as they lie.

   Compact numbers become bf16 in registers; codes, too, where few rows want them, and in the cache, a block at a time,
   where many do. The sums are the same. */

#include "linear.h"

#define TILE 8   /* rows: with a block's outputs, their sums fill the registers */
#define STEADY 3 /* lines to be fetched beside FOUR pairs of a compact block, where tiles are many */

/* Of one block and one group of inputs: what a nibble's table is multiplied with, and what is added. */
typedef struct {
    Vector scale[VECTORS][2], zero[VECTORS][2];
} Group;

/* Of 16 outputs, each twice: a number for every input of a pair. */
INLINE void twice(const bf16 *p, Vector *out) {
    Vector x = wides(p);
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

/* What a tile reads: a block's weights in ``form``, and the cache lines to fetch meanwhile. */
typedef struct {
    const char *w, *ahead;
    int64_t block, lines; /* for each pair of inputs; for each FOUR of a compact weight */
} Work;

INLINE void read_group(const Linear *s, Group *g, int64_t block, int64_t at) {
    int64_t offset = (block * (s->of->d_in / s->of->group) + at) * COLUMNS;
    group(g, s->of->scales + offset, s->of->zeros ? s->of->zeros + offset : 0);
}

/* Sums of ``n`` rows with a block. */
typedef Vector Sums[TILE][VECTORS];

INLINE void begin(Sums sums, const int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = all(0.0f);
}

/* Adds the products with pair ``k`` of the inputs. */
INLINE void add(Sums sums, const bf16 *x, int64_t d_in, int64_t k, const __m512bh *ws, const int n) {
    for (int i = 0; i < n; i++) {
        int pair;
        memcpy(&pair, x + i * d_in + 2 * k, sizeof pair);
        __m512bh xs = (__m512bh)_mm512_set1_epi32(pair);
        for (int j = 0; j < VECTORS; j++) sums[i][j] = (Vector)_mm512_dpbf16_ps((__m512)sums[i][j], xs, ws[j]);
    }
}

/* The lines that a tile's sums will go to: a store that waits for its line holds up the next tile. */
INLINE void fetch_results(const Linear *s, int64_t row, int64_t block, const int n) {
    const bf16 *y = s->of->y + row * s->of->d_out + block * COLUMNS;
    for (int i = 0; i < n; i++, y += s->of->d_out) __builtin_prefetch(y, 1), __builtin_prefetch(y + COLUMNS - 1, 1);
}

INLINE void end(const Linear *s, Sums sums, int64_t row, int64_t block, const int n) {
    int plain = s->form != BYTE && !s->of->bias && (block + 1) * COLUMNS <= s->of->d_out;
    bf16 *y = s->of->y + row * s->of->d_out + block * COLUMNS;
    if (plain)
        for (int i = 0; i < n; i++, y += s->of->d_out) {
            narrows_two(y, sums[i][0], sums[i][1]);
            narrows(y + 2 * LANES, sums[i][2]);
        }
    else
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++) store(s, sums[i][j], row + i, block * COLUMNS + j * LANES);
}

/* ``n`` rows with a block. */
INLINE void tile(const Linear *s, const Form form, int64_t row, const Work *job, const int n) {
    int64_t d_in = s->of->d_in, shared = (form == NIBBLE ? s->of->group : d_in) / 2;
    const bf16 *x = s->of->x + row * d_in;
    const char *w = job->w, *ahead = job->ahead;
    __m512 table = form == NIBBLE ? _mm512_loadu_ps(s->of->table) : _mm512_setzero_ps();
    Sums sums;
    begin(sums, n);
    fetch_results(s, row, job->block, n);
    for (int64_t first = 0; first < d_in / 2; first += shared) {
        Group g;
        if (form == NIBBLE) read_group(s, &g, job->block, first / shared);
        for (int64_t k = first; k < first + shared; k++, w += stride(form)) {
            __m512bh ws[VECTORS];
            for (int j = 0; j < VECTORS; j++) ws[j] = pairs(form, w, j, table, &g);
            ahead = fetch_lines(ahead, job->lines);
            add(sums, x, d_in, k, ws, n);
        }
    }
    end(s, sums, row, job->block, n);
}

/* How far a compact block has come. */
typedef struct {
    const char *w, *ahead, *whole;
    const int32_t *other;
    int64_t k;
} Way;

/* The products with four pairs of a compact block, of which some stand whole or, where that is known, none does.
   ``lines`` are a number that the compiler knows where many rows wait; they come into the nearest cache, which a block
   does not fill. */
INLINE void four_pairs(
    Sums sums, Way *at, const bf16 *x, int64_t d_in, __m512i highs, int64_t lines, int64_t step, const int whole,
    const int n
) {
    __m512bh twos[4], ws[VECTORS];
#pragma GCC unroll 4
    for (int l = 0; l < FOUR; l++) {
        if (l % 2) ws[0] = twos[3], compact_two(at->w, 3 * (l / 2) + 2, highs, (__m512i *)(ws + 1));
        else {
            compact_two(at->w, 3 * (l / 2), highs, (__m512i *)twos);
            compact_two(at->w, 3 * (l / 2) + 1, highs, (__m512i *)(twos + 2));
            ws[0] = twos[0], ws[1] = twos[1], ws[2] = twos[2];
        }
        if (whole && at->k + l == *at->other) {
            for (int j = 0; j < VECTORS; j++) ws[j] = pairs(BF16, at->whole, j, _mm512_setzero_ps(), 0);
            at->whole += stride(BF16), at->other++;
        }
        add(sums, x, d_in, at->k + l, ws, n);
        for (int64_t i = lines * l / FOUR; i < lines * (l + 1) / FOUR; i++, at->ahead += step)
            _mm_prefetch(at->ahead, _MM_HINT_T0);
    }
    at->k += FOUR, at->w += FOUR * stride(COMPACT);
}

/* ``n`` rows with a compact block. */
INLINE void compact_tile(const Linear *s, int64_t row, const Work *job, int64_t lines, const int n) {
    const Product *of = s->of;
    int64_t first = of->first[job->block], d_in = of->d_in, step = job->lines ? 64 : 0;
    const bf16 *x = of->x + row * d_in;
    __m512i highs = highs_of(of->highs + job->block * HIGHS);
    Way at = {job->w, job->ahead, of->whole + first * stride(BF16), of->others + first + job->block, 0};
    Sums sums;
    begin(sums, n);
    fetch_results(s, row, job->block, n);
    while (at.k < d_in / 2) {
        for (int64_t other = *at.other / FOUR * FOUR; at.k < other;)
            four_pairs(sums, &at, x, d_in, highs, lines, step, 0, n);
        if (at.k < d_in / 2) four_pairs(sums, &at, x, d_in, highs, lines, step, 1, n);
    }
    end(s, sums, row, job->block, n);
}

#define FOR_EACH_COUNT(n, CALL)                                                                                        \
    switch (n) {                                                                                                       \
    case 1: CALL(1); break;                                                                                            \
    case 2: CALL(2); break;                                                                                            \
    case 3: CALL(3); break;                                                                                            \
    case 4: CALL(4); break;                                                                                            \
    case 5: CALL(5); break;                                                                                            \
    case 6: CALL(6); break;                                                                                            \
    case 7: CALL(7); break;                                                                                            \
    default: CALL(TILE);                                                                                               \
    }

INLINE void tile_of(const Linear *s, const Form form, int64_t row, const Work *job, int64_t n) {
#define CALL(count) tile(s, form, row, job, count)
    FOR_EACH_COUNT(n, CALL)
#undef CALL
}

static void tile_of_compact(const Linear *s, int64_t row, const Work *job, int64_t n) {
#define CALL(count) compact_tile(s, row, job, job->lines, count)
    if (n >= TILE && job->lines <= STEADY) compact_tile(s, row, job, STEADY, TILE);
    else FOR_EACH_COUNT(n, CALL)
#undef CALL
}

static void tile_of_bf16(const Linear *s, int64_t row, const Work *job, int64_t n) { tile_of(s, BF16, row, job, n); }
static void tile_of_bytes(const Linear *s, int64_t row, const Work *job, int64_t n) { tile_of(s, BYTE, row, job, n); }
static void tile_of_nibbles(const Linear *s, int64_t row, const Work *job, int64_t n) {
    tile_of(s, NIBBLE, row, job, n);
}

INLINE void unpack_as(const Linear *s, const Form form, const char *w, int64_t block, char *out) {
    int64_t shared = (form == NIBBLE ? s->of->group : s->of->d_in) / 2;
    __m512 table = form == NIBBLE ? _mm512_loadu_ps(s->of->table) : _mm512_setzero_ps();
    for (int64_t first = 0; first < s->of->d_in / 2; first += shared) {
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

typedef void Run(const Linear *, int64_t row, const Work *, int64_t n);

/* Bytes that a thread needs beside what it is told. */
INLINE int64_t room_for(int64_t rows, int64_t d_in, int codes) {
    return codes && rows > TILE ? d_in / 2 * stride(BF16) : 0;
}

INLINE void prepare(const Linear *s, int64_t from, int64_t to, char *room) { (void)s, (void)from, (void)to, (void)room; }

/* Rows ``from`` to ``to`` with a block. Codes become bf16 in ``room`` where rows are more than a tile; compact numbers in
   registers, each time: beside so many products that costs less than to store them. */
static void multiply(const Linear *s, int64_t from, int64_t to, int64_t block, Block next, char *room) {
    static Run *const runs[] = {tile_of_bf16, tile_of_compact, tile_of_bytes, tile_of_nibbles};
    int64_t pairs = s->of->d_in / 2, tiles = (to - from + TILE - 1) / TILE;
    int64_t left = next.of ? (size_of(next.of) + 63) / 64 : 0, times = s->form == COMPACT ? pairs / FOUR : pairs;
    const char *w = s->of->w + block * size_of(s->of);
    int unpacks = tiles > 1 && (s->form == BYTE || s->form == NIBBLE);
    Work job = {w, next.of ? next.of->w + next.block * size_of(next.of) : w, block, 0};
    if (unpacks) unpack(s, w, block, room), job.w = room;
    if (next.of && next.of->highs) fetch_rest(next.of, next.block);
    for (int64_t row = from; row < to; row += TILE, tiles--) {
        job.lines = left > 0 ? (left + times * tiles - 1) / (times * tiles) : 0;
        if (s->form == COMPACT && job.lines && job.lines < STEADY) job.lines = STEADY;
        runs[unpacks ? BF16 : s->form](s, row, &job, to - row);
        job.ahead += job.lines * times * 64, left -= job.lines * times;
    }
}

