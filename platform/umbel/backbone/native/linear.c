/* A frozen linear, y = x W^T + b, for processors whose widest bf16 product is AVX512's.

   W lies in blocks of COLUMNS outputs, each with two inputs of every output side by side, in the order that they are
   read: in bf16, in the same bf16 made compact, or in codes of 8 or 4 bits (forms.h). A number of y is one sum over the
   inputs, two at a time, whatever rows stand beside it: no row needs company. Compact numbers become bf16 in registers;
   codes, too, where few rows want them, and in the cache, a block at a time, where many do. The sums are the same.
   While a block is multiplied with tile after tile of rows, the next one is fetched, so that a step of few rows is as
   fast as the memory, and one of many as fast as the multipliers. */

#include "forms.h"
#include "product.h"
#include "tape.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

#define TILE 8   /* rows: with a block's outputs, their sums fill the registers */
#define MANY 64  /* rows of a thread */
#define STEADY 3 /* lines to be fetched beside FOUR pairs of a compact block, where tiles are many */

typedef struct {
    const Product *of;
    int64_t rows;
    Form form;
} Linear;

/* What a tile reads: a block's weights in ``form``, and the cache lines to fetch meanwhile. */
typedef struct {
    const char *w, *ahead;
    int64_t block, lines; /* for each pair of inputs; for each FOUR of a compact weight */
} Work;

int umbel_has_linear(void) { return 1; }

INLINE void store(const Linear *s, f32x16 sum, int64_t row, int64_t column) {
    int64_t left = s->of->d_out - column;
    bf16 *y = s->of->y + row * s->of->d_out + column;
    if (left <= 0) return;
    if (s->form == BYTE) sum *= wide16(s->of->scales + column);
    if (left >= LANES) {
        narrow16(y, s->of->bias ? sum + wide16(s->of->bias + column) : sum);
        return;
    }
    for (int64_t i = 0; i < left; i++) y[i] = narrow(s->of->bias ? sum[i] + wide(s->of->bias[column + i]) : sum[i]);
}

INLINE void read_group(const Linear *s, Group *g, int64_t block, int64_t at) {
    int64_t offset = (block * (s->of->d_in / s->of->group) + at) * COLUMNS;
    group(g, s->of->scales + offset, s->of->zeros ? s->of->zeros + offset : 0);
}

/* Sums of ``n`` rows with a block. */
typedef f32x16 Sums[TILE][VECTORS];

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
        for (int j = 0; j < VECTORS; j++) sums[i][j] = (f32x16)_mm512_dpbf16_ps((__m512)sums[i][j], xs, ws[j]);
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
            narrow32(y, sums[i][0], sums[i][1]);
            narrow16(y + 2 * LANES, sums[i][2]);
        }
    else
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++) store(s, sums[i][j], row + i, block * COLUMNS + j * LANES);
}

INLINE const char *fetch_lines(const char *ahead, int64_t lines) {
    for (int64_t i = 0; i < lines; i++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    return ahead;
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
        if (l % 2) ws[0] = twos[3], compact_two(at->w, 3 * (l / 2) + 2, highs, ws + 1);
        else {
            compact_two(at->w, 3 * (l / 2), highs, twos), compact_two(at->w, 3 * (l / 2) + 1, highs, twos + 2);
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

/* A block of a linear, or none. */
typedef struct {
    const Product *of;
    int64_t block;
} Block;

INLINE Form form_of(const Product *of) { return of->highs ? COMPACT : !of->scales ? BF16 : of->table ? NIBBLE : BYTE; }

INLINE int64_t blocks_of(const Product *of) { return (of->d_out + COLUMNS - 1) / COLUMNS; }

INLINE int64_t size_of(const Product *of) { return of->d_in / 2 * stride(form_of(of)); }

/* What a compact block has beside its numbers. It is little, but each way to memory takes as long as a tile's tenth. */
static void fetch_rest(const Product *of, int64_t block) {
    int64_t first = of->first[block], next = of->first[block + 1];
    _mm_prefetch(of->highs + block * HIGHS, _MM_HINT_T1);
    for (const int32_t *p = of->others + first + block; p <= of->others + next + block; p += 16)
        _mm_prefetch(p, _MM_HINT_T1);
    for (const char *p = of->whole + first * stride(BF16); p < of->whole + next * stride(BF16); p += 64)
        _mm_prefetch(p, _MM_HINT_T1);
}

typedef void Run(const Linear *, int64_t row, const Work *, int64_t n);

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

/* Blocks are shared out among threads; rows, too, where blocks are too few to give each as much; rows alone where they
   are so many that reading the weights once more costs nothing beside multiplying. A thread's rows are then its own from
   linear to linear, in what stands between them, too: nothing of them is fetched from another core's cache. */
static int64_t parts_of(const Product *of, int64_t rows, int threads) {
    int64_t most = rows / (2 * TILE), parts = 1, blocks = blocks_of(of);
    if (rows >= MANY * threads) return threads;
    while (parts < most && blocks * parts < 4 * threads && blocks * parts % threads) parts++;
    return parts;
}

/* The first row of a part: whole tiles before it. */
static int64_t row_of(const Linear *s, int64_t part, int64_t parts) {
    return part == parts ? s->rows : s->rows * part / parts / TILE * TILE;
}

/* What a thread will read behind a task: the block that follows, or, where that is another thread's, its first one of the
   linear that comes next. Without that a thread waits for memory at the beginning of each of a step's linears. */
static Block behind(const Linear *s, const Team *team, int64_t task, int64_t tasks) {
    const Product *next = s->of->next;
    int64_t blocks = blocks_of(s->of);
    for (int64_t part = 1; part <= team->threads; part++) {
        if (task + 1 != first_of(team, tasks, part)) continue;
        if (!next) return (Block){0};
        blocks = blocks_of(next);
        tasks = blocks * parts_of(next, s->rows, team->threads);
        return (Block){next, first_of(team, tasks, team->me) % blocks};
    }
    return (Block){s->of, (task + 1) % blocks};
}

static void share(Team *team, const void *told) {
    const Linear *s = told;
    int64_t blocks = blocks_of(s->of), parts = parts_of(s->of, s->rows, team->threads), tasks = blocks * parts, task;
    char *room = s->of->room + team->me * (s->of->d_in / 2) * stride(BF16);
    while ((task = take(team, tasks)) >= 0) {
        int64_t part = task / blocks, block = task % blocks;
        multiply(s, row_of(s, part, parts), row_of(s, part + 1, parts), block, behind(s, team, task, tasks), room);
    }
    finish(team, tasks);
}

void umbel_linear(const Product *of, int64_t rows, int threads) {
    Linear s = {of, rows, form_of(of)};
    umbel_in_team(share, &s, threads);
}

void umbel_tape_linear(const Now *now, const void *told, Team *team) {
    Linear s = {told, now->rows, form_of(told)};
    share(team, &s);
}

/* Of the rows whose next token is asked for. */
void umbel_tape_lm_head(const Now *now, const void *told, Team *team) {
    Linear s = {told, now->places, form_of(told)};
    share(team, &s);
}

#else

int umbel_has_linear(void) { return 0; }

void umbel_linear(void) {}

void umbel_tape_linear(void) {}

void umbel_tape_lm_head(void) {}

#endif
